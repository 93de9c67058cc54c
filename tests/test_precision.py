"""The precision behind `train.precision=auto`: its measurement, its cache, and the settings that take precedence."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from machines import inject, measured
from synthetic import write_run

from lora.checks import SettingsError
from lora.config import precision_choice, recorded
from lora.config.compose import compose_run
from lora.config.precision_choice import MINILM, Measurement, choose_precision, machine_choices, measurement
from lora.errors import UserError
from lora.files import ROOT
from lora.records import machine
from lora.sweep.announce import kernels_of
from lora.sweep.expand import expand
from lora.sweep.request import requested
from lora.training import precision_probe
from lora.training.device import has_bf16
from lora.training.loop import run

REVIEWS = ("task=reviews", "method=lora", "seed=1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, on a CPU that lists bf16 and in a process that has measured nothing."""
    monkeypatch.setattr(precision_choice, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(precision_choice, "_MEASURED", {})
    monkeypatch.setattr(precision_choice, "cpu_flags", lambda: {"avx512_bf16"})
    return tmp_path / "cache"


@pytest.fixture
def probed(monkeypatch):
    """The sizes passed to a fake measurement, in which bf16 is the faster precision."""
    asked = []

    def run_probe(width: int, ffn: int) -> Measurement:
        asked.append((width, ffn))
        return here("bf16", width, ffn)

    monkeypatch.setattr(precision_choice, "run_probe", run_probe)
    return asked


def here(precision: str, width: int = MINILM[0], ffn: int = MINILM[1], **others) -> Measurement:
    """A measurement of this CPU and torch."""
    identity = {"cpu": machine.cpu_kind(), "torch": precision_choice.torch_version()}
    return measured(precision, width, ffn, **identity | others)


def forget(monkeypatch) -> None:
    """Forget this process's measurements, so that it resembles a new process."""
    monkeypatch.setattr(precision_choice, "_MEASURED", {})


# The measurement.


def test_the_real_measurement_has_the_form_that_is_read(cache):
    """Its outcome is not tested: the machine may be busy."""
    found = measurement(48, 96)
    assert (found.cpu, found.torch) == (machine.cpu_kind(), precision_choice.torch_version())
    assert (found.width, found.ffn, found.format) == (48, 96, precision_choice.FORMAT)
    assert found.fp32_ms > 0 and found.low <= found.gain <= found.high and 1 <= found.tries <= precision_probe.TRIES
    assert (found.bf16_ms is not None) == has_bf16(gpu=False)
    (path,) = cache.glob("*.json")
    assert precision_choice.read_measurement(path, 48, 96) == found


def test_the_products_are_those_of_a_layer_forward_and_backward(monkeypatch):
    """Torch's own counter against the shapes of Vaswani et al.: 2 (4 d^2 + 2 d f) each way, for every row."""
    from torch.utils.flop_counter import FlopCounterMode

    width, ffn = 12, 20
    with FlopCounterMode(display=False) as counter:
        precision_probe.layer_products(width, ffn, torch.float32)()
    assert counter.get_total_flops() == 2 * 2 * precision_probe.ROWS * (4 * width**2 + 2 * width * ffn)


def clock(times):
    """A clock that returns the given seconds, in the order of the actions."""
    values = iter(times)
    return lambda action: next(values)


@pytest.mark.skipif(not has_bf16(gpu=False), reason="this CPU has no bfloat16")
@pytest.mark.parametrize(
    ("gains", "tries", "precision", "clear"),
    [
        ([2.0] * 7, 1, "bf16", True),
        ([1.2] * 7, 1, "bf16", True),
        ([1.1] * 7, 1, "fp32", True),
        ([0.6] * 7, 1, "fp32", True),
        ([9.0, 0.1] + [2.0] * 5, 1, "bf16", True),  # two disturbed repetitions change nothing
        ([0.5, 2.0] * 3 + [2.0] * 8, 2, "bf16", True),  # busy at first
        ([0.5, 2.0] * 10 + [2.0], 3, "bf16", False),  # busy all the time
    ],
)
def test_repetitions_that_disagree_are_repeated(gains, tries, precision, clear):
    times = [seconds for gain in gains for seconds in (gain / 100, 0.01)]
    found = precision_probe.measure(8, 16, clock(times))
    assert (found.tries, found.precision, found.clear) == (tries, precision, clear)
    assert ("not clear after 3 tries, as on a busy machine: remove outputs" in found.words) == (not clear)
    assert found.bf16_ms == pytest.approx(10)


def test_a_cpu_without_bf16_instructions_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(precision_choice, "run_probe", None)  # calling it would fail
    for flags, listed in (("flags\t\t: fpu sse2 avx512f", True), ("Features\t: neon not_bf16", True), ("", False)):
        if listed:
            (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
        else:
            (tmp_path / "cpuinfo").unlink()
        monkeypatch.setattr(machine, "PROC", tmp_path)
        assert compose_run(REVIEWS).train.precision == "fp32"


@pytest.mark.parametrize("flags", ["flags\t\t: amx_bf16", "flags\t: avx512_bf16", "Features\t: neon bf16"])
def test_one_with_them_is(flags, cache, probed, tmp_path, monkeypatch):
    key = flags.partition(":")[0]
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\n{key}: none\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(precision_choice, "cpu_flags", machine.cpu_flags)
    assert compose_run(REVIEWS).train.precision == "bf16" and probed == [MINILM]


def test_the_width_is_the_encoders(cache, probed, model_dir):
    settings = json.loads((model_dir / "config.json").read_bytes())
    compose_run([*REVIEWS, "model=local", f"model.path={model_dir}"])
    assert probed == [(settings["hidden_size"], settings["intermediate_size"])]


def test_what_was_asked_for_is_not_measured(cache, monkeypatch):
    monkeypatch.setattr(precision_choice, "run_probe", None)
    for asked in ("fp32", "bf16"):
        assert compose_run([*REVIEWS, f"train.precision={asked}"]).train.precision == asked
        assert {c.run_id for c in expand("mini", [f"train.precision={asked}", "seed=77"], ["lora_ranks"])}
    assert compose_run(["profile=small", "task=rte"]).train.precision == "fp32"
    assert compose_run(["profile=long", "protocol=long", "task=rte"]).train.precision == "fp32"


# The cache.


def test_it_is_measured_once(cache, probed, monkeypatch):
    for _ in range(2):
        assert measurement(*MINILM) == here("bf16")
        forget(monkeypatch)
    assert probed == [MINILM]
    assert measurement(768, 3072).width == 768 and len(probed) == 2, "another encoder"
    monkeypatch.setattr(precision_choice, "cpu_kind", lambda: "another CPU")
    measurement(*MINILM)
    assert len(probed) == 3
    monkeypatch.setattr(precision_choice, "torch_version", lambda: "3.0")
    measurement(*MINILM)
    assert len(probed) == 4 and len(list(cache.glob("*.json"))) == 4


BROKEN = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-10],
    "no mapping": lambda content: b"[1, 2]",
    "another format": lambda content: changed(content, format=0),
    "another torch": lambda content: changed(content, torch="1.0"),
    "another width": lambda content: changed(content, width=768),
    "no number": lambda content: content.replace(b'"gain": 0.7', b'"gain": NaN'),
    "a key too many": lambda content: changed(content, more=1),
    "a word for a number": lambda content: changed(content, gain="fast"),
}


def changed(content: bytes, **values) -> bytes:
    return json.dumps(json.loads(content) | values).encode()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_or_one_of_another_version_is_made_anew(kind, cache, probed):
    path = precision_choice.cache_file(*MINILM)
    content = json.dumps(dataclasses.asdict(here("fp32"))).encode()
    cache.mkdir()
    path.write_bytes(BROKEN[kind](content))
    assert path.read_bytes() != content
    assert measurement(*MINILM) == here("bf16") and probed == [MINILM]
    assert json.loads(path.read_bytes()) == dataclasses.asdict(here("bf16"))


def test_a_whole_file_is_taken(cache, monkeypatch):
    monkeypatch.setattr(precision_choice, "run_probe", None)
    cache.mkdir()
    precision_choice.cache_file(*MINILM).write_text(json.dumps(dataclasses.asdict(here("fp32"))))
    assert compose_run(REVIEWS).train.precision == "fp32"


def test_where_it_cannot_be_kept_each_process_measures_once(cache, probed, monkeypatch):
    cache.write_text("no folder")
    for _ in range(3):
        assert compose_run(REVIEWS).train.precision == "bf16"
    assert probed == [MINILM]
    forget(monkeypatch)
    compose_run(REVIEWS)
    assert probed == [MINILM] * 2
    forget(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")  # processes of one run, which could measure different precisions
    with pytest.raises(
        UserError, match=r"cannot write .*; with several processes, state train\.precision=fp32 or bf16"
    ):
        compose_run(REVIEWS)


def test_of_those_that_ask_at_once_one_measures(cache, monkeypatch):
    asked, found = [], []

    def run_probe(width: int, ffn: int) -> Measurement:
        asked.append(width)
        time.sleep(0.2)
        return here("bf16")

    monkeypatch.setattr(precision_choice, "run_probe", run_probe)
    path = precision_choice.cache_file(*MINILM)
    ask = [threading.Thread(target=lambda: found.append(precision_choice.measured_alone(path, *MINILM))) for _ in "abc"]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len(asked) == 1 and found == [here("bf16")] * 3


def test_a_measurement_that_fails_is_one_message(cache, monkeypatch):
    monkeypatch.setattr(precision_choice.sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match=r"cannot measure which precision is faster here: .*; state train\.precision="):
        compose_run(REVIEWS)
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot measure"):
        precision_choice.run_probe(-1, -1)


def test_planning_loads_no_torch(tmp_path):
    """A separate process loads no torch, whether the cache answers or a measurement runs."""
    script = (
        "import sys, pathlib\n"
        "from lora.config import precision_choice as p\n"
        "p.CACHE = pathlib.Path(sys.argv[1]); p.cpu_flags = lambda: {'avx512_bf16'}\n"
        "if sys.argv[2] == 'cached': p.run_probe = None\n"
        "from lora.sweep.expand import expand\n"
        "runs = expand('mini', ['task=reviews', 'seed=' + sys.argv[3]], ['glue_table2'])\n"
        "print({run.overrides[-3] for run in runs}, 'torch' in sys.modules)"
    )
    said = []
    for how, seed in (("measured", "8101"), ("cached", "8102")):  # seeds that no other test has expanded
        command = [sys.executable, "-c", script, str(tmp_path / "cache"), how, seed]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and re.fullmatch(r"\{'train\.precision=(fp32|bf16)'\} False\n", said[0])


def test_a_file_that_is_no_measurement_is_refused():
    with pytest.raises(SettingsError, match="gain must be >= 0 and finite"):
        measured("bf16", gain=float("inf"))
    with pytest.raises(SettingsError, match="fp32_ms must be >= 0 and finite"):
        measured("bf16", fp32_ms=-1.0)


# The settings that take precedence.


def test_a_results_folder_keeps_the_precision_of_its_runs(tmp_path, monkeypatch):
    """A sweep that is resumed on another machine, or after an update of torch, keeps its precision."""
    where = f"runtime.results={tmp_path}"
    grid = ["task=reviews,ratings", "method=lora", "seed=1,2,3", where]
    inject(monkeypatch, "bf16")
    before = requested("mini", grid)
    write_run(tmp_path, before[0], 0.6)
    inject(monkeypatch, "fp32")
    assert [planned.run_id for planned in requested("mini", grid)] == [planned.run_id for planned in before]
    assert compose_run([*REVIEWS, where]).train.precision == "bf16"
    assert compose_run([*REVIEWS, where, "train.precision=fp32"]).train.precision == "fp32"
    assert compose_run(REVIEWS).train.precision == "fp32", "another folder"
    assert compose_run([*REVIEWS, where, "train.kernels=stock"]).train.precision == "fp32", "other runs"
    config = compose_run([*REVIEWS, where])
    assert choose_precision(config.model, "fused", "auto", str(tmp_path)) == ("bf16", f"as the 1 run in {tmp_path}")


@pytest.mark.parametrize("first", ["a CPU", "a GPU"])
def test_a_results_folder_keeps_the_kernels_and_the_attention_of_its_runs(first, tmp_path, monkeypatch):
    """A sweep that is resumed on a machine with a GPU, or without the one that it had, keeps its run ids."""
    where = f"runtime.results={tmp_path}"
    grid = ["task=reviews,ratings", "method=lora", "seed=1,2", "train.precision=fp32", where]

    def on(machine_name):
        for place in ("lora.config.kernel_choice.has_gpu",):
            monkeypatch.setattr(place, lambda: machine_name == "a GPU")
        return requested("mini", grid)

    before = on(first)
    other = {"a CPU": "a GPU", "a GPU": "a CPU"}[first]
    assert not {run.run_id for run in before} & {run.run_id for run in on(other)}, "nothing is recorded yet"
    write_run(tmp_path, before[0], 0.6)
    assert [run.run_id for run in on(other)] == [run.run_id for run in before]
    config = compose_run([*REVIEWS, where, "train.precision=fp32"])
    expected = {"a CPU": ("fused", "eager"), "a GPU": ("stock", "sdpa")}
    assert (config.train.kernels, config.model.attention) == expected[first]
    idle = {"a CPU": "; train.kernels=stock would take the GPU", "a GPU": ""}[first]
    assert kernels_of(config) == f"{config.train.kernels} (as the 1 run in {tmp_path}{idle})"
    asked = ["train.kernels=stock", "model.attention=eager"]
    config = compose_run([*REVIEWS, where, "train.precision=fp32", *asked])
    assert (config.train.kernels, config.model.attention) == ("stock", "eager"), "what is stated wins"
    config = compose_run([*REVIEWS, "train.precision=fp32", f"runtime.results={tmp_path}/other"])
    assert (config.train.kernels, config.model.attention) == expected[other], "another folder"
    config = compose_run([*REVIEWS, where, "train.precision=fp32", "runtime.device=cuda"])
    assert config.train.kernels == "stock", "fused kernels compute on no GPU"


def test_of_two_precisions_the_one_of_most_runs_is_kept(tmp_path, monkeypatch):
    inject(monkeypatch, "fp32")
    where = f"runtime.results={tmp_path}"

    def add(precision: str, seeds: str) -> str:
        asked = ["task=reviews", "method=lora", f"seed={seeds}", where, f"train.precision={precision}"]
        for planned in requested("mini", asked):
            write_run(tmp_path, planned, 0.6)
        return compose_run([*REVIEWS, where]).train.precision

    assert add("bf16", "1,2") == "bf16"
    assert add("fp32", "1,1") == "bf16"
    assert add("fp32", "2,3") == "fp32"


def test_runs_that_failed_and_files_that_are_none_keep_nothing(tmp_path, monkeypatch):
    inject(monkeypatch, "bf16")
    where = f"runtime.results={tmp_path}"
    (planned,) = requested("mini", [*REVIEWS, where, "data.train_rows=30,30"])[:1]
    write_run(tmp_path, planned, 0.6)
    path = next((tmp_path / "runs").glob("*.json"))
    record = json.loads(path.read_bytes())
    inject(monkeypatch, "fp32")
    assert recorded.recorded(str(tmp_path), recorded.PRECISION) == {("minilm", "fused"): ("bf16", 1)}
    for content in (json.dumps(record | {"status": "failed"}), "{", "[]", json.dumps({"status": "ok"})):
        path.unlink()
        path = path.with_name(f"other{len(content)}.json")
        path.write_text(content)
        recorded._recorded.cache_clear()  # one file added, one removed: the folder's time may be too coarse
        assert recorded.recorded(str(tmp_path), recorded.PRECISION) == {}
        assert compose_run([*REVIEWS, where]).train.precision == "fp32"


def test_the_runs_that_are_kept_follow_what_was_measured(cache, monkeypatch):
    """The runs of a sweep are cached in a file. Another measured precision leads to another file."""
    grid, found = ["task=reviews", "method=lora", "seed=71,72"], []
    for precision in ("bf16", "fp32", "bf16"):
        forget(monkeypatch)
        monkeypatch.setattr(precision_choice, "run_probe", lambda width, ffn, p=precision: here(p))
        for path in cache.glob("*.json"):
            path.unlink()
        found.append({compose_run(planned.overrides).train.precision for planned in requested("mini", grid)})
        kept = machine_choices("results/mini")
        found.append({compose_run(planned.overrides).train.precision for planned in requested("mini", grid)})
        assert machine_choices("results/mini") == kept
    assert found == [{"bf16"}] * 2 + [{"fp32"}] * 2 + [{"bf16"}] * 2


def test_a_runs_bits_do_not_follow_what_was_measured(tiny_config, monkeypatch):
    outcomes = []
    for precision in ("bf16", "fp32"):
        inject(monkeypatch, precision)
        config = tiny_config("train.kernels=fused", "method=lora")
        record, predictions, _ = run(config)
        outcomes.append((record.run_id, record.epochs, predictions))
    assert outcomes[0] == outcomes[1]


def test_no_training_asks_what_was_measured():
    """Below the entry points, a run's settings alone decide."""
    files = [path for path in (ROOT / "lora" / "training").rglob("*.py") if path.name != "precision_probe.py"]
    assert len(files) > 10
    assert not [path for path in files if "precision_choice" in path.read_text()]


def test_the_environment_of_a_measurement_is_one_thread(monkeypatch, cache):
    seen = {}

    def called(command, **settings):
        seen.update(settings["env"], command=command)
        return subprocess.CompletedProcess(command, 0, json.dumps(dataclasses.asdict(here("bf16"))))

    monkeypatch.setattr(precision_choice.subprocess, "run", called)
    assert measurement(*MINILM) == here("bf16")
    assert seen["OMP_NUM_THREADS"] == "1" and seen["PATH"] == os.environ["PATH"]
    assert seen["command"][1:] == ["-m", "lora.training.precision_probe", "384", "1536"]
