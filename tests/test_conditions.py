"""The line above a table, worked out by hand for curves that rise and curves that do not."""

import pandas as pd

from lora.report.conditions import conditions
from lora.report.runs import Planned

GAINS = (0.2, 1.0, 1.4, 2.4, 3.0)  # points from epoch 4 to epoch 6, seed by seed


def planned(task="cola", method="lora", slug="lora-qv-r8", start="pretrained"):
    return [
        Planned(f"{slug}.{task}.{start}.s{seed}", "minilm", "ours", start, slug, method, task, seed)
        for seed in range(1, 6)
    ]


def curves(runs, gains):
    """Curves of six epochs: 40 points in the first three, then 50, 45, and 50 plus the gain of the run."""
    rows = []
    for p, gain in zip(runs, gains, strict=True):
        for epoch, value in enumerate((40, 40, 40, 50, 45, 50 + gain), start=1):
            rows.append((p.run_id, epoch, 10 * epoch, 0.1, value / 100))
    return pd.DataFrame(rows, columns=["run_id", "epoch", "step", "train_loss", "value"])


def frame(runs, train_rows=2000, is_part=True, device="a CPU"):
    made = {"train_rows": train_rows, "is_part": is_part, "device": device}
    return pd.DataFrame([{"run_id": p.run_id} | made for p in runs])


def test_the_line_says_encoder_epochs_rows_start_and_how_many_cells_still_rise():
    """A rise is the last epoch minus the one at two thirds: 1.6 points on the mean for LoRA, 0.4 for full."""
    full = planned(method="full", slug="full")
    runs, steady = [*planned(), *full], planned("rte")
    every = pd.concat([curves(planned(), GAINS), curves(full, (0.4,) * 5), curves(steady, (-1.0,) * 5)])
    found = conditions(frame([*runs, *steady]), every, [*runs, *steady])
    encoder, rows = "all-MiniLM-L6-v2 (a sentence embedder)", "CoLA 2,000, RTE 2,000"
    about = f"Encoder: {encoder}; epochs: 6; train rows: {rows}; start: pretrained; device: a CPU."
    assert found.startswith(f"{about} Still rising at the end") and found.endswith(": 1 of 3 cells.")
    assert "train rows: all" in conditions(frame(runs, is_part=False), every, runs)
    assert conditions(frame(steady), every, steady).endswith(": 0 of 1 cells.")


def test_starts_are_told_apart():
    runs = [*planned("rte"), *planned("rte", start="mnli")]
    every = pd.concat([curves(planned("rte"), GAINS), curves(planned("rte", start="mnli"), (0.0,) * 5)])
    found = conditions(frame(runs), every, runs)
    assert "start: pretrained and MNLI; device: a CPU." in found and found.endswith(": 1 of 2 cells.")


def test_the_line_says_how_many_rows_were_cut():
    runs = [*planned(), *planned("rte")]
    every = pd.concat([curves(planned(), GAINS), curves(planned("rte"), GAINS)])
    made = frame(runs).assign(truncated=[0.25] * 5 + [0.0] * 5)
    assert "RTE 2,000 (CoLA 25% of the rows longer than max_length, and cut); start" in conditions(made, every, runs)
