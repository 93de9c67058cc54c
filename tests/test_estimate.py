"""The choice of records that estimate the time of a run on this machine."""

import pytest
import torch
from test_results import record

from lora.config.compose import compose_config
from lora.records.machine import recorded_cpu
from lora.records.record import write_record
from lora.sweep import estimate
from lora.sweep.estimate import made_on, records_of_this_machine
from lora.training.usage import device_name


def on(device, run_id="minilm.lora-qv-r8.reviews.s1-00000000", **changes):
    made = record(run_id, **changes)
    made.provenance["device"] = device
    return made


def test_the_cpu_is_named_as_records_name_it():
    """The truth is torch's own name."""
    assert device_name(torch.device("cpu")).startswith(recorded_cpu())


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fma avx2 avx512vl avx512bw avx512dq", "x86_64 AVX512"),
        ("fma avx2 avx512f", "x86_64 AVX2"),
        ("sse2", "x86_64 DEFAULT"),
    ],
)
def test_kinds_of_cpus(flags, kind, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr("lora.records.machine.PROC", tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert recorded_cpu() == kind
    assert made_on(on(kind), gpu=False, cpu=kind) and not made_on(on(kind), gpu=True, cpu=kind)
    assert not made_on(on("NVIDIA A100"), gpu=False, cpu=kind) and made_on(on("NVIDIA A100"), gpu=True, cpu=kind)
    assert not made_on(on("x86_64 AVX"), gpu=False, cpu=kind)


def test_the_users_own_records_of_this_cpu_count_and_committed_ones_do_not(tmp_path, monkeypatch):
    results = tmp_path / "results"
    monkeypatch.setattr(estimate, "RESULTS", results)
    mine = recorded_cpu()
    names = [f"minilm.full.reviews.s{seed}-00000000" for seed in range(6)]
    write_record(results / "mini", on(mine, names[0]))
    write_record(results / "small", on("another CPU", names[1]))
    write_record(results / "reference" / "mini", on(mine, names[2]))
    write_record(results / "mini", record(names[3], status="failed", error="it broke", provenance=None))
    write_record(tmp_path / "elsewhere", on(mine, names[4]))
    asked = ["profile=mini", "runtime.device=cpu", f"runtime.results={tmp_path}/elsewhere"]
    assert {r.run_id for r in records_of_this_machine(compose_config(asked))} == {names[0], names[4]}
    config = compose_config([*asked, "launcher.name=slurm"])  # whose nodes are other machines
    assert {r.run_id for r in records_of_this_machine(config)} == {names[0], names[1], names[4]}
