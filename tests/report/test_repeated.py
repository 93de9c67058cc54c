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


def test_a_change_is_over_the_seeds_that_were_trained_on_both_devices(tmp_path):
    first = runs_of(plan([1, 2, 3, 4, 5]), load_frame(runs(FIRST)))
    assert repeated_table("x", tmp_path, first) is None
    for one in runs(AGAIN):
        write_record(tmp_path / "repeated", dataclasses.replace(one, provenance=one.provenance | {"device": "a GPU"}))
    table = repeated_table("x", tmp_path, first)
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
