"""The whole benchmark of adapters on a tiny encoder: its exact figures and its page. No time is asserted."""

import json

import pytest
import tiny
import torch
from commands import command

from lora.cost import adapters as benchmark


def test_the_benchmark_measures_exactness_and_drift_and_writes_both_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "roberta_base", lambda dtype: tiny.model("roberta").to(dtype))
    monkeypatch.setattr(benchmark, "TOKENS", 16)
    arguments = ["--swaps", "4", "--passes", "2", "--cycles", "3", "40", "--threads", str(torch.get_num_threads())]
    command("bench adapters")([*arguments, "--results", str(tmp_path)])
    content = json.loads(next(tmp_path.glob("bench/*/adapters.json")).read_text())
    for dtype in ("fp32", "bf16"):
        assert content["swap"][dtype]["ours_to_peft"]["n"] == 4
        for cycles in ("3", "40"):
            assert content["drift"][dtype][cycles]["ours"] == {"changed_share": 0.0, "max_abs": 0.0}
        assert content["drift"][dtype]["40"]["peft"]["changed_share"] > 0
    batch = content["batch"]
    assert set(batch["ms"]) >= {"base", "merged", "unmerged", "mixed"} and batch["mixed_difference"] < 1e-5
    tensors = 2 * 2 * 2 * 8 * 32 * 4  # layers x (q, v) x (A, B) x rank x width x bytes
    assert tensors < content["bytes"]["without_head"] < tensors + 2000 < content["bytes"]["with_head"]
    page = next(tmp_path.glob("bench/*/adapters.md")).read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    assert "| bf16 | 40 | 0.00% | " in page and "8 adapters in one batch / one unmerged" in page


def test_numbers_below_one_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command("bench adapters")(["--swaps", "0", "--results", str(tmp_path)])
    assert end.value.code == 2 and "must be >= 1" in capsys.readouterr().err and not list(tmp_path.iterdir())
