"""What this machine's processors set for a sweep: available precisions, concurrent runs, the GPU of each worker."""

import own_tasks
import pytest
import torch
from commands import lora
from launching import launched
from machines import GPU, SpyJob, with_gpus
from trained import planned, run

from lora.errors import UserError
from lora.sweep import pool
from lora.sweep.request import select_runs
from lora.training import device


def test_a_sweep_in_a_precision_that_the_machine_lacks_is_one_message(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(device, "has_bf16", lambda gpu: False)
    with pytest.raises(UserError) as caught:
        launched(monkeypatch, tiny_overrides, "seed=1,2", "train.precision=bf16")
    assert str(caught.value) == "train.precision is bf16, but this CPU has none; use fp32"
    assert not (tmp_path / "results").exists()


def test_one_run_at_a_time_on_each_gpu(tiny_config, monkeypatch):
    def workers(*overrides):
        return pool.local_workers([planned(tiny_config(*overrides))], 8, False)

    for count, expected in ((0, 8), (1, 1), (2, 2), (16, 8)):
        with_gpus(monkeypatch, *[GPU()] * count)
        assert workers("runtime.device=auto") == expected
    assert workers("runtime.device=cpu") == workers("runtime.device=auto", "train.kernels=fused") == 8


@pytest.mark.parametrize(
    ("visible", "count", "names"),
    [
        (None, 0, ()),
        (None, 2, ("0", "1")),
        ("3,1", 2, ("3", "1")),
        ("GPU-1f, MIG-2a", 2, ("GPU-1f", "MIG-2a")),
        ("1,7,0", 1, ("1",)),  # the driver ends the list at a GPU that does not exist
        ("", 0, ()),
    ],
)
def test_gpus_have_the_names_by_which_a_process_sees_them(visible, count, names, monkeypatch):
    monkeypatch.delenv(pool.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(pool.VISIBLE, visible)
    with_gpus(monkeypatch, *[GPU()] * count)
    assert pool.gpu_names() == names


def test_workers_share_the_gpus_evenly(tmp_path, monkeypatch):
    monkeypatch.setenv(pool.VISIBLE, "7,5")
    for gpus, seen in ((("7", "5"), ["5", "5", "7", "7"]), (("7",), ["7,5"] * 4)):
        spied = tmp_path / "-".join(gpus)
        assert pool.run_jobs([SpyJob((), str(tmp_path), str(spied))] * 4, 4, gpus, lambda: None) == {}
        assert sorted(spied.read_text().split()) == seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_default_trains_on_the_gpu(tmp_path):
    """No option names the GPU. The choices are those tested above."""
    asked = ["experiment=glue_table2", "task=reviews", "method=full", "seed=1", "data.train_rows=32"]
    asked += own_tasks.folders(tmp_path)
    (one,) = select_runs("mini", asked)
    bf16 = torch.cuda.get_device_capability()[0] >= 8
    assert (one.config.train.kernels, one.config.model.attention) == ("stock", "sdpa")
    assert one.config.train.precision == ("bf16" if bf16 else "fp32")
    record, _, _ = run(one.config)
    assert record.provenance["device"] == torch.cuda.get_device_name()
    assert record.selected["best"]["value"] is not None


@pytest.mark.parametrize("mode", [(), ("-m", "experiment=null", "seed=1,2")], ids=["one run", "a sweep"])
def test_a_gpu_that_is_not_there_is_not_announced(tiny_overrides, mode, monkeypatch):
    with_gpus(monkeypatch)
    done = lora(*mode, *tiny_overrides, "runtime.device=cuda")
    assert done.returncode == 2 and not done.stdout and "needs a GPU" in done.stderr
