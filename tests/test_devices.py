"""What this machine's processors set for a sweep: available precisions, concurrent runs, the GPU of each worker."""

import json
from pathlib import Path

import pytest
import torch
from machines import SpyJob
from test_launch import launched

from lora.config.compose import compose_run
from lora.cost.memory import kept_activations
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.models.load import load_encoder
from lora.sweep import devices, pool
from lora.sweep.devices import PARAMETER_BYTES, PROCESS_BYTES, check_precisions, parameter_count, run_bytes
from lora.sweep.request import select_runs
from lora.training import device
from lora.training.loop import run

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU")


def with_gpu(monkeypatch, memory: int | None, capability: int = 8, gpus: int = 1) -> None:
    """Simulate a machine with GPUs, as its driver would describe them."""
    for place in ("lora.config.kernel_choice.has_gpu", "lora.sweep.estimate.has_gpu"):
        monkeypatch.setattr(place, lambda: True)
    monkeypatch.setattr("lora.config.kernel_choice.ask_driver", lambda ask, kind: capability)
    monkeypatch.setattr(devices, "gpu_memory", lambda: memory)
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)


# The precisions that a processor has.


def test_a_sweep_in_a_precision_that_the_machine_lacks_is_one_message(tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(device, "has_bf16", lambda gpu: False)
    with pytest.raises(UserError) as caught:
        launched(monkeypatch, tiny_overrides, "seed=1,2", "train.precision=bf16")
    assert str(caught.value) == "train.precision is bf16, but this CPU has none; use fp32"
    assert not (tmp_path / "results").exists()


def test_a_gpu_that_lacks_it_is_told_from_the_cpu(tiny_config, monkeypatch):
    config = tiny_config("train.precision=bf16", "runtime.device=auto")
    with_gpu(monkeypatch, 2**33, capability=7)
    monkeypatch.setattr(device, "has_bf16", lambda gpu: not gpu)
    with pytest.raises(UserError, match="this GPU has none"):
        check_precisions([config])
    with_gpu(monkeypatch, 2**33, capability=8)
    check_precisions([config])


# Concurrent runs.


def test_as_many_runs_as_fit_into_a_gpu(tiny_config, monkeypatch):
    small = tiny_config("runtime.device=auto")
    large = tiny_config("runtime.device=auto", "train.batch=64")
    need = run_bytes(large)
    assert need > run_bytes(small) > PROCESS_BYTES
    for memory, workers in ((100 * need, 8), (4 * need, 3), (need / 2, 1), (None, 1)):
        with_gpu(monkeypatch, memory)
        assert devices.runs_at_once([small, large], 8) == workers
    for memory, workers in ((4 * need, 6), (100 * need, 8), (None, 2)):
        with_gpu(monkeypatch, memory, gpus=2)
        assert devices.runs_at_once([small, large], 8) == workers
    assert devices.runs_at_once([small, large], 1) == 1
    with_gpu(monkeypatch, need / 2)
    assert devices.runs_at_once([tiny_config("runtime.device=cpu")], 8) == 8
    assert devices.runs_at_once([tiny_config("runtime.device=auto", "train.kernels=fused")], 8) == 8
    monkeypatch.setattr("lora.config.kernel_choice.has_gpu", lambda: False)
    assert devices.runs_at_once([small, large], 8) == 8


def test_the_launcher_is_told_and_the_command_line_wins(tiny_overrides, monkeypatch):
    overrides = [o for o in tiny_overrides if not o.startswith("runtime.device")]

    def workers(*more: str) -> int:
        ((_, found, _), _) = launched(monkeypatch, overrides, "seed=1,2", *more)
        return found

    monkeypatch.setattr("lora.config.compose.cores", lambda: 6)
    assert workers() == 6
    with_gpu(monkeypatch, None)
    assert workers() == 1
    assert workers("launcher.workers=4") == 4


def test_a_run_takes_no_more_than_is_reckoned(tiny_config):
    """The truth is the real model's parameters and the tensors that its forward pass keeps."""
    config = tiny_config()
    model = load_encoder(config.model, TASKS[config.task], 1).model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = json.loads((Path(config.model.path) / "config.json").read_bytes())
    counted = parameter_count(sizes)
    matrices = [p.numel() for name, p in model.base_model.named_parameters() if p.ndim == 2 and "pooler" not in name]
    types = sizes["type_vocab_size"] * sizes["hidden_size"]
    assert counted == sum(matrices) - types
    kept = kept_activations(model.train(), config.train.batch, config.data.max_length, "fp32")
    needed = 4 * 4 * parameters + kept
    assert needed < run_bytes(config) < PROCESS_BYTES + 4 * needed
    assert PARAMETER_BYTES == 4 * 4  # float32: the weight, its gradient, two moments


def test_an_encoder_of_unknown_size_has_the_gpu_to_itself(monkeypatch):
    with_gpu(monkeypatch, 2**40)
    paper = ["profile=paper", "protocol=printed", "task=rte"]
    known = compose_run([*paper, "model=roberta_base"])
    unknown = compose_run([*paper, "model=roberta_base", "model.name=other", "model.hub_id=an/other"])
    assert devices.runs_at_once([known], 4) == 4
    assert devices.runs_at_once([known, unknown], 4) == 1


# The GPU of each worker.


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
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    monkeypatch.setattr(devices, "visible_gpus", lambda: count)
    assert devices.gpu_names() == names


def test_workers_share_the_gpus_evenly(tmp_path, monkeypatch):
    monkeypatch.setenv(devices.VISIBLE, "7,5")
    for gpus, seen in ((("7", "5"), ["5", "5", "7", "7"]), (("7",), ["7,5"] * 4)):
        spied = tmp_path / "-".join(gpus)
        assert pool.run_jobs([SpyJob((), (), str(tmp_path), str(spied))] * 4, 4, gpus, lambda: None) == {}
        assert sorted(spied.read_text().split()) == seen


# The messages.


# On a machine with a GPU.


@needs_gpu
def test_the_default_trains_on_the_gpu(tmp_path):
    """No option names the GPU. The choices are those tested above, and the memory is at most the estimate."""
    folders = [f"runtime.results={tmp_path}/results", f"runtime.outputs={tmp_path}/outputs"]
    asked = ["experiment=glue_table2", "task=reviews", "method=full", "seed=1", "data.train_rows=32", *folders]
    (one,) = select_runs("mini", asked)
    config = one.config
    bf16 = torch.cuda.get_device_capability()[0] >= 8
    assert (config.train.kernels, config.model.attention) == ("stock", "sdpa")
    assert config.train.precision == ("bf16" if bf16 else "fp32")
    torch.cuda.reset_peak_memory_stats()
    record, _, _ = run(config)
    assert record.provenance["device"] == torch.cuda.get_device_name()
    assert torch.cuda.max_memory_reserved() < run_bytes(config)
    assert record.selected["best"]["value"] is not None
