"""The check that swapping recovers W0: on adapters that the training loop saved, and on a swap that drifts."""

import itertools
import json
import math

import pytest
import torch
from commands import lora
from trained import ensure_record, planned

from lora.adapters.folder import recorded_adapter
from lora.methods.lowrank import LoraLinear
from lora.models.load import load_encoder
from lora.records.analysis import SUBTRACTION, SWAP, analysis_json, read_analyses
from lora.report.analyses import swaps
from lora.report.analyses.swaps import SWAPS, subtraction, swap_cases
from lora.report.build import build_report
from lora.sweep.request import select_runs

CYCLES = 40
gather = swaps.gather


@pytest.fixture
def trained(tiny_config):
    """Two adapters with different targets and ranks, with their configurations, and the records, by run_id."""
    found, made_from = {}, {}
    for given in (("method.targets=[q,v]", "method.rank=2"), ("method.targets=[k]", "method.rank=4")):
        config = tiny_config("method=lora", *given, "runtime.save_adapter=true")
        record = ensure_record(config, mistakes_fail=False)
        found[config.run_id] = planned(config), recorded_adapter(record, config.runtime.outputs)
        made_from[config.run_id] = record
    return found, made_from


def test_trained_adapters_leave_w0_as_it_was_in_every_dtype(trained, tmp_path):
    adapters, records = trained
    cases = swap_cases(adapters, CYCLES)
    assert all(case["runs"] == sorted(records) for case in cases)
    assert [(case["trials"], case["failures"]) for case in cases] == [(CYCLES, 0)] * 3
    assert [case["label"].rpartition(" ")[2] for case in cases] == ["fp32", "bf16", "fp16"]
    (tmp_path / SWAP).write_bytes(analysis_json({run_id: record.adapter for run_id, record in records.items()}, cases))
    assert list(read_analyses(tmp_path, records, "python -m lora {}".format).checks["swap"]) == cases
    assert "python -m lora analyse swaps" in read_analyses(tmp_path, {}, "python -m lora {}".format).problems[0]


def test_what_subtraction_leaves_is_that_of_numpys_sums(trained):
    """In fp32, added and subtracted again by NumPy. The two adapters are on different matrices."""
    (of_first, first), (_, second) = trained[0].values()
    cases = subtraction(trained[0])
    assert [(case["label"], case["swaps"]) for case in cases] == [*itertools.product(("fp32", "bf16", "fp16"), SWAPS)]
    model = load_encoder(of_first.config.model, of_first.task, of_first.seed).model
    update = {name: first.scale(name) * (b.float() @ a.float()).numpy() for name, (a, b) in first.pairs().items()}
    base = {name: model.get_submodule(name).weight.detach().numpy() for name in [*first.pairs(), *second.pairs()]}
    left = {name: weight.copy() for name, weight in base.items()}
    for name, change in update.items():
        for _ in range(51):  # a hundred swaps between two adapters put this one on 51 times, and take it off
            left[name] = (left[name] + change) - change
    error = math.sqrt(sum(((left[name] - base[name]).astype(float) ** 2).sum() for name in update))
    (case,) = [case for case in cases if (case["label"], case["swaps"]) == ("fp32", 100)]
    by_weight, by_update = (
        error / math.sqrt(sum((value.astype(float) ** 2).sum() for value in of.values())) for of in (base, update)
    )
    assert 0 < by_weight < 1e-5 and case["rows"] > 0
    assert (case["of_weight"], case["of_update"]) == pytest.approx((by_weight, by_update), rel=0.35)
    by_dtype = {case["label"]: case for case in cases if case["swaps"] == 1000}
    assert by_dtype["bf16"]["of_weight"] > by_dtype["fp16"]["of_weight"] > by_dtype["fp32"]["of_weight"]
    assert by_dtype["bf16"]["logits"] > by_dtype["fp32"]["logits"]


def test_a_swap_that_adds_and_subtracts_is_seen_to_drift(trained, monkeypatch):
    """`W += BA; W -= BA`, as section 4.1 words it and peers do it."""

    def add(model, change):
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear | LoraLinear):
                layer.weight.data += change

    monkeypatch.setattr(swaps, "swap", lambda model, adapter: add(model, 0.3))
    monkeypatch.setattr(swaps, "unmerge", lambda model: add(model, -0.3))
    assert all(case["failures"] >= CYCLES - 1 for case in swap_cases(trained[0], CYCLES))


def test_the_command_keeps_what_it_found(tiny_overrides, tmp_path, monkeypatch):
    """From a sweep's records and adapters to the file that the claim is judged on."""
    where = [f"runtime.results={tmp_path}/results/small", f"runtime.outputs={tmp_path}/outputs"]
    kept = [o for o in tiny_overrides if not o.startswith(("task=", "runtime.results", "runtime.outputs", "profile="))]
    given = [*kept, *where, "runtime.save_adapter=true", "method=lora", "task=cola", "seed=1,2"]
    monkeypatch.setattr(swaps, "CYCLES", CYCLES)
    monkeypatch.setattr(swaps, "gather", lambda name, more: gather(name, more, tmp_path / "results"))
    refused = lora("analyse", "swaps", "small", *given)
    assert refused.returncode == 2 and "runtime.save_adapter=true" in refused.stderr
    for one in select_runs("small", [*given, "experiment=null"]):
        ensure_record(one.config, mistakes_fail=False)
    assert "0 of" in lora("analyse", "swaps", "small", *given).stdout
    for file, count in ((SWAP, 3), (SUBTRACTION, 9)):
        content = json.loads((tmp_path / "results" / "small" / "analysis" / file).read_bytes())
        assert len(content["made_from"]) == 2 and len(content["entries"]) == count
    report = build_report("small", given, tmp_path / "results")
    (table,) = [table for table in report.tables if table.name == "subtraction"]
    assert len(table.cells) == 9 and table.cells["Swaps"].tolist() == ["1", "100", "1,000"] * 3
