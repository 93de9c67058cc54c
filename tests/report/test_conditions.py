"""The line above a table, worked out by hand for curves that rise and curves that do not."""

import pandas as pd
from cells import plan
from synthetic import runs_of

from lora.records.record import FRAME_COLUMNS
from lora.report.notes import conditions

SEEDS = range(1, 6)
GAINS = (0.2, 1.0, 1.4, 2.4, 3.0)  # points from epoch 4 to epoch 6, seed by seed


def curves(runs, gains):
    """Curves of six epochs: 40 points in the first three, then 50, 45, and 50 plus the gain of the run."""
    rows = []
    for p, gain in zip(runs, gains, strict=True):
        for epoch, value in enumerate((40, 40, 40, 50, 45, 50 + gain), start=1):
            rows.append((p["run_id"], epoch, 10 * epoch, 0.1, value / 100))
    return pd.DataFrame(rows, columns=["run_id", "epoch", "step", "train_loss", "value"])


def line(runs, every, **more):
    """The line above a table of these runs, trained on a part of the rows."""
    made = {"train_rows": 2000, "is_part": True, "device": "a CPU", "truncated": 0.0}
    frame = pd.DataFrame([dict.fromkeys(FRAME_COLUMNS) | made | p for p in runs], columns=FRAME_COLUMNS)
    return conditions(runs_of(runs, frame.assign(**more)), every)


def test_the_line_says_encoder_epochs_rows_start_and_how_many_cells_still_rise():
    """A rise is the last epoch minus the one at two thirds: 1.6 points on the mean for LoRA, 0.4 for full."""
    lora, full = plan(SEEDS, task="cola"), plan(SEEDS, "full", "full", "cola")
    runs, steady = [*lora, *full], plan(SEEDS, task="rte")
    every = pd.concat([curves(lora, GAINS), curves(full, (0.4,) * 5), curves(steady, (-1.0,) * 5)])
    found = line([*runs, *steady], every)
    encoder, rows = "all-MiniLM-L6-v2 (a sentence embedder)", "CoLA 2,000, RTE 2,000"
    about = f"Encoder: {encoder}; epochs: 6; train rows: {rows}; start: pretrained; device: a CPU."
    assert found.startswith(f"{about} Still rising at the end") and found.endswith(": 1 of 3 cells.")
    assert "train rows: all" in line(runs, every, is_part=False)
    assert "RTE 2,000 (RTE 0.3% of the rows longer" in line(steady, every, truncated=0.003)
    assert line(steady, every).endswith(": 0 of 1 cells.")


def test_the_line_counts_the_seeds_of_a_task_that_have_runs_on_several_devices():
    """Seeds 4 and 5 of CoLA: full fine-tuning on one device, LoRA on another."""
    lora, full = plan(SEEDS, task="cola"), plan(SEEDS, "full", "full", "cola")
    runs = [*lora, *full]
    found = line(runs, curves(runs, (0.0,) * 10), device=["A"] * 3 + ["B"] * 2 + ["A"] * 5)
    assert "; devices: A (8 runs), B (2 runs); 2 of 5 seeds of a task have runs on several. Still" in found
