"""The table of runs that were trained again on another device, against SciPy."""

import dataclasses
import math

import numpy as np
from cells import plan, runs
from scipy import stats
from synthetic import runs_of

from lora.records.record import load_frame, write_record
from lora.report.comparisons import repeated_table

FIRST = {1: 0.80, 2: 0.82, 3: 0.81, 4: 0.85}
AGAIN = {1: 0.81, 2: 0.80, 3: 0.84, 5: 0.90}


def moved(records, device="a GPU", **data):
    return [
        dataclasses.replace(
            one, provenance={**one.provenance, "device": device, "data": {**one.provenance["data"], **data}}
        )
        for one in records
    ]


def table_of(folder, seeds, again):
    """The table of `FIRST` and of records trained again, of planned seeds."""
    for one in again:
        write_record(folder / "repeated", one)
    return repeated_table("x", folder, runs_of(plan(seeds), load_frame(runs(FIRST))))


def test_a_change_is_over_the_seeds_that_were_trained_on_both_devices(tmp_path):
    table = table_of(tmp_path, [1, 2, 3, 4, 5], moved(runs(AGAIN)))
    changes = np.array([1.0, -2.0, 3.0])
    low, high = stats.t.interval(0.95, 2, changes.mean(), stats.sem(changes))
    (line,) = table.cells.to_dict("records")
    assert line == {
        "Method": "LoRA (qv, r8)",
        "Task": "reviews (acc.)",
        "Seeds": "3",
        "Devices": "x86_64 AVX2, a GPU",
        "First": "81.0",
        "Second": "81.7",
        "Change": f"{changes.mean():+.1f} ({low:+.1f} to {high:+.1f})",
        "SD of the change": f"{changes.std(ddof=1):.1f}",
        "SD of two seeds": f"{math.sqrt(2) * np.std([80, 82, 81], ddof=1):.1f}",
    }


def test_without_repetitions_there_is_no_table(tmp_path):
    assert table_of(tmp_path, [1], []) is None
