"""The benchmark on tiny models: the sides do the same work, and every figure follows from the measurements."""

import argparse
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import command as call
from processor import HAS_BF16, NARROWEST
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lora.cost import floor, machine, results, steps, subjects
from lora.cost.subjects import changed
from lora.cost.throughput import command, job, peer, runs, sides, tables
from lora.cost.throughput import trace as tracing
from lora.cost.throughput.summary import agrees, our_shares, summarise
from lora.cost.timing import interleave, median_of, name_of, orders, ratio_of, shown, take_turns
from lora.data import metrics
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.methods.configs import FullConfig
from lora.sweep.worker import ensure_record
from lora.table import MARK
from lora.training import loop as training_loop
from lora.training import step as training_step

TOKENIZER_NOTICE = "ignore:.*:UserWarning"  # by torch and datasets, about pinned memory and the like


# Medians, intervals, order.


@pytest.mark.parametrize("n", [2, 3, 6, 9, 15, 40])
def test_the_interval_of_a_median_covers_what_the_binomial_distribution_says(n):
    values = random.Random(n).sample(range(1000), n)
    found, ordered = median_of(values), sorted(values)
    k = ordered.index(found["low"])  # values below the interval
    assert ordered[n - 1 - k] == found["high"]
    assert found["coverage"] == pytest.approx(1 - 2 * stats.binom.cdf(k, n, 0.5), abs=1e-4)
    if n >= 6:
        assert found["coverage"] >= 0.95
        assert 1 - 2 * stats.binom.cdf(k + 1, n, 0.5) < 0.95  # no narrower pair covers 95%
    else:
        assert k == 0


def test_a_single_value_is_its_own_interval_and_none_is_refused():
    assert median_of([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0, "coverage": None, "n": 1}
    with pytest.raises(ValueError, match="at least one"):
        median_of([])


def test_ratios_are_of_pairs():
    found = ratio_of([1.0, 20.0, 3.0], [2.0, 10.0, 3.0])
    assert (found["median"], found["low"], found["high"]) == (1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("n", "name"), [(1, "range"), (2, "range"), (5, "range"), (6, "95% interval"), (40, "95% interval")]
)
def test_fewer_than_six_values_give_a_range_and_no_interval(n, name):
    assert name_of(median_of([float(value) for value in range(n)])) == name
    assert shown(median_of([1000.0, 3000.0, 2000.04]), 1) == "2,000.0 (1,000.0 to 3,000.0)"


def test_each_name_runs_in_each_place_as_often():
    assert list(orders([], 2)) == [[], []]
    drawn = list(orders(["a", "b", "c"], 6, "sides"))
    assert [sorted(place) for place in zip(*drawn, strict=True)] == [["a", "a", "b", "b", "c", "c"]] * 3


def test_actions_take_turns_and_each_is_timed_by_itself():
    ran = []
    work = {"16x28": {name: (lambda name=name: ran.append(name)) for name in "abc"}}
    found = interleave(work, 2, warmup=0, seed=4, clock=lambda action: (action(), float(len(ran)))[1])
    first, second = orders(["a", "b", "c"], 2, 4, "16x28")
    assert ran == [*first, *second]
    assert found == {"16x28": {name: [first.index(name) + 1.0, second.index(name) + 4.0] for name in "abc"}}


def test_what_is_not_timed_runs_before_what_is():
    ran, counted = [], []
    actions = {name: (lambda name=name: ran.append(name)) for name in "ab"}
    clock = lambda action: (action(), counted.append(len(ran)), float(len(ran)))[2]  # noqa: E731
    found = interleave({"": actions}, 3, warmup=2, untimed=1, calls=2, clock=clock)[""]
    assert ran[:4] == ["a", "a", "b", "b"] and len(ran) == 4 + 3 * 2 * (1 + 2)
    assert counted == [n for visit in range(6) for n in (4 + 3 * visit + 2, 4 + 3 * visit + 3)]
    assert sorted([*found["a"], *found["b"]]) == [4 + 3 * visit + 2.5 for visit in range(6)], "the median of two calls"
    assert len(take_turns({"x": lambda: None}, 4)["x"]) == 4


# The machine.


def test_load_is_what_others_did(monkeypatch):
    monkeypatch.setattr(machine, "system_cores", lambda: 4)
    before = machine.Moment(busy=100.0, own=10.0, stolen=5.0, clock=50.0)
    after = machine.Moment(busy=118.0, own=12.0, stolen=9.0, clock=60.0)  # 10 s of 4 cores: 18 s busy, 2 s of them ours
    load = machine.load_between(before, after)
    assert (load.busy, load.stolen, load.busy_cores) == (0.4, 0.1, 1.6)
    assert not load.idle and machine.load_between(before, machine.Moment(101.0, 10.0, 5.0, 60.0)).idle
    assert machine.load_between(before, machine.Moment(101.0, 14.0, 5.0, 60.0)).busy == 0.0, "clocks of two sources"
    assert machine.Load(None, None, None).idle is None and machine.load_between(None, after).busy is None


def test_moments_are_read_from_proc_stat(monkeypatch):
    text = "cpu  100 20 30 4000 500 6 7 8 0 0\ncpu0 1 2 3\n"
    monkeypatch.setattr(machine, "_read", lambda file: text if file == "/proc/stat" else "")
    ticks = os.sysconf("SC_CLK_TCK")
    assert machine.now().busy == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / ticks)
    assert machine.now().stolen == pytest.approx(8 / ticks)
    monkeypatch.setattr(machine, "_read", lambda file: "")
    assert machine.now() is None


def test_one_rule_says_what_idle_is():
    assert machine.is_idle([0.05, None]) is True
    assert machine.is_idle([0.05, 0.3]) is False
    assert machine.is_idle([None]) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="proportional set sizes are Linux's")
def test_memory_of_a_process_is_that_of_its_descendants_too():
    hold = "import sys; held = bytearray(80 << 20); print('held', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert 80 << 20 < machine.tree_bytes(process.pid) < 200 << 20
    finally:
        process.communicate("")
    assert machine.tree_bytes(process.pid) == 0


def test_a_device_is_a_folder_name():
    assert all(part.isalnum() for part in machine.cpu_device().split("-"))
    assert set(machine.versions()) > {"torch", "peft"}
    assert machine.describe()["cores"] >= 1


X86 = (
    "processor: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t: {model}\nmodel name\t: {name}\n"
    "flags\t\t: fpu {flags}\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            X86.format(vendor="AuthenticAMD", family=25, model=17, name="AMD EPYC 9R14", flags="avx2 avx512_bf16"),
            "AMD EPYC 9R14 25 17, avx512-bf16",
        ),
        (
            X86.format(
                vendor="GenuineIntel",
                family=6,
                model=106,
                name="Intel(R) Xeon(R) CPU @ 2.90GHz",
                flags="avx2 avx512_bf16",
            ),
            "Intel Xeon 6 106, avx512-bf16",
        ),
        (
            X86.format(vendor="AuthenticAMD", family=23, model=49, name="DO-Regular", flags="avx2"),
            "AMD DO-Regular 23 49, avx2",
        ),
        (ARM, "Arm 0xd4f, bf16"),
    ],
)
def test_devices_are_told_apart_by_vendor_and_model(cpuinfo, name, tmp_path, monkeypatch):
    """An AMD and an Intel CPU with the same instructions do not share a folder."""
    other = X86.format(vendor="Other", family=1, model=2, name="Second processor", flags="")
    (tmp_path / "cpuinfo").write_text(f"{cpuinfo}\n{other}")
    monkeypatch.setattr("lora.records.machine.PROC", tmp_path)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.cpu_name() == f"{name}, 2 cores"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-2-cores", machine.cpu_device())


# The same run on every side.


@pytest.fixture
def exported(tiny_config, tmp_path):
    """A tiny run of this project, and the same run in the form that the peers take."""
    config = tiny_config("method.rank=2", "task=mrpc", "seed=3")
    return config, runs.peer_run(config, runs.export_rows(config, tmp_path / "rows"))


def exported_rows(run: job.PeerRun, split: str) -> list[dict]:
    return [json.loads(line) for line in Path(run.rows, f"{split}.json").read_text().splitlines()]


def test_exported_rows_are_those_that_this_project_reads(exported):
    config, run = exported
    splits = read(TASKS["mrpc"], "tsv", config.data.path).splits
    assert set(splits) == {"train", "validation"}
    for split, dataset in splits.items():
        rows = exported_rows(run, split)
        assert [row["sentence2"] for row in rows] == dataset["sentence2"][:]
        assert [row["label"] for row in rows] == dataset["label"][:]


@pytest.mark.filterwarnings(TOKENIZER_NOTICE)
@pytest.mark.parametrize(
    "settings",
    [
        job.PeerSettings("max_length", "fp32", 1, "sdpa"),
        job.PeerSettings("longest", "bf16", 1, "eager"),
    ],
    ids=["script loop", "tuned"],
)
def test_peers_train_the_run_with_as_many_parameters_as_ours(settings, exported, tmp_path, monkeypatch):
    config, run = exported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cost = peer.train_run(run, settings, str(tmp_path))
    assert 0 <= cost.metric <= 1
    record = ensure_record(config, mistakes_fail=False)
    assert cost.trainable == sum(record.params[part] for part in ("trainable_method", "trainable_head"))
    assert set(cost.parts) == set(peer.PARTS)
    assert all(seconds > 0 for seconds in cost.parts.values())
    assert sum(cost.parts.values()) <= cost.seconds
    ours = sides.cost_of(record)
    assert (ours.name, ours.metric, ours.trainable) == (run.name, record.selected["last"]["value"], cost.trainable)


@pytest.mark.filterwarnings(TOKENIZER_NOTICE)
def test_a_peers_metric_is_that_of_its_predictions(exported, tmp_path, monkeypatch):
    """At learning rate 0, the peer's metric is that of the untouched encoder with the head that its seed draws."""
    _, run = exported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = job.PeerSettings("longest", "fp32", 1, "eager")
    still = dataclasses.replace(run, lr=0.0, epochs=1)
    cost = peer.train_run(still, settings, str(tmp_path))
    peer.set_seed(run.seed)
    model = peer.build_model(run, "eager").eval()
    tokenizer = peer.AutoTokenizer.from_pretrained(run.model)
    rows = exported_rows(run, "validation")
    texts = [[row[column] for row in rows] for column in run.columns]
    tokens = tokenizer(*texts, truncation=True, max_length=run.max_length, padding=True, return_tensors="pt")
    predicted = model(**tokens).logits.argmax(-1).numpy()
    labels = torch.tensor([row["label"] for row in rows]).numpy()
    assert cost.metric == pytest.approx(metrics.compute(run.metrics, predicted, labels)[run.metric])


def test_jobs_and_answers_survive_their_files(exported, tmp_path):
    _, run = exported
    settings = job.PeerSettings("longest", "fp32", 1, "eager", max_steps=3)
    work = job.Job((run, run), settings, "folder", 1.5)
    job.write(tmp_path / "job.json", work)
    assert job.read(tmp_path / "job.json", job.Job) == work
    done = job.Answer(0.5, (job.RunCost("a.s1", "a", 1, None, 7, 2.0, {"step": 1.0}),))
    job.write(tmp_path / "answer.json", done)
    assert job.read(tmp_path / "answer.json", job.Answer) == done


def test_the_runs_of_rounds_are_whole_and_never_the_same():
    assert [runs.seeds_of_round(number, 6) for number in range(2)] == [[1, 2, 3], [4, 5, 6]]
    assert runs.grid(["a", "b"], [1, 2]) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


# Where our time goes.


def test_a_traced_run_is_all_in_its_parts_and_leaves_nothing_behind(tiny_overrides):
    before = training_loop.collate
    parts = tracing.trace_run(tiny_overrides, (1, 2))
    assert training_loop.collate is before
    assert all(parts[name] > 0 for name in ("data", "model", "batching", "step", "evaluation", "saving"))
    assert parts["other"] >= 0


def test_a_traced_function_within_another_counts_once():
    spent = job.Spent(tracing.TRACED)
    inner = tracing.timed(spent, "lora.data.batching.collate", lambda: None)
    tracing.timed(spent, "lora.training.evaluation.predict", inner)()
    assert spent.seconds["lora.data.batching.collate"] == 0 and spent.seconds["lora.training.evaluation.predict"] > 0
    spent.seconds |= {"lora.data.batching.collate": 2.0, "lora.training.evaluation.predict": 3.0}
    parts = tracing.by_part(spent, 20.0, 10.0)
    assert (parts["step"], parts["batching"], parts["evaluation"], parts["other"]) == (8.0, 2.0, 3.0, 7.0)


# Steps.


@pytest.fixture
def still(tiny_config):
    """A run with this project's kernels, and a loader of its encoder without dropout: forward passes are comparable."""
    config = tiny_config("method.rank=2", "train.dropout=0", "train.kernels=fused")

    def without_dropout(attention: str = "eager") -> nn.Module:
        model, _ = subjects.load(changed(config, model={"attention": attention}))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout_prob = 0.0
        return model

    return config, without_dropout


def test_subjects_compute_the_same_loss_and_all_of_them_learn(still):
    config, encoder = still
    made = [
        subjects.ours(config, encoder()),
        subjects.ours(changed(config, method=FullConfig()), encoder()),
        *(subjects.peft(config, encoder(attention)) for attention in steps.ATTENTIONS),
        subjects.ours(changed(config, train={"kernels": "stock"}), encoder()),
    ]
    batch = subjects.random_batch(made[0].model, "4x8")
    first = [each.loss(batch).item() for each in made]
    assert first == pytest.approx([first[0]] * 5, rel=1e-5)  # B is zero
    counts = [sum(p.numel() for p in each.model.parameters() if p.requires_grad) for each in made]
    assert counts[0] == counts[2] == counts[3] == counts[4] < counts[1]
    for each in made:
        for _ in range(5):
            each.step(batch)
        assert each.loss(batch).item() < first[0]


def test_what_is_timed_is_what_trains(tiny_config, monkeypatch):
    """The training loop and the benchmark call the same step and set it up by the same function."""
    prepared, taken = [], []
    prepare, take = training_step.prepare_step, training_step.Step.take

    def prepare_and_note(*given):
        prepared.append(given[1].train.kernels)
        return prepare(*given)

    monkeypatch.setattr(training_step.Step, "take", lambda step, *given: (taken.append(step), take(step, *given))[1])
    for module in (subjects, training_loop):
        monkeypatch.setattr(module, "prepare_step", prepare_and_note)
    for kernels in ("stock", "fused"):
        config = tiny_config("method.rank=2", "train.epochs=1", f"train.kernels={kernels}")
        training_loop.run(config)
        trained = len(taken)
        subject = subjects.ours(config)
        subject.step(subjects.random_batch(subject.model, "4x8"))
        assert prepared == [kernels, kernels] and len(taken) == trained + 1 and trained > 1
        assert {type(value) for value in vars(taken[0]).values()} == {type(value) for value in vars(taken[-1]).values()}
        prepared.clear(), taken.clear()


def test_saved_bytes_are_of_activations_and_of_casts_of_weights():
    linear = nn.Linear(3, 3)

    def loss(batch):
        hidden = nn.functional.linear(batch["x"], linear.weight.double()).exp()  # keeps its result, 5 x 3 numbers
        return (hidden * hidden).sum()  # the same storage again, twice

    optimizer = torch.optim.SGD(linear.parameters())
    subject = subjects.Subject(linear, optimizer, loss, lambda batch: None)
    x = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    assert steps.saved_bytes(subject, {"x": x}) == 8 * (5 * 3 + 5 * 3 + 3 * 3)  # exp's result, x, the cast weight


def test_products_of_a_step_are_part_of_its_time(still):
    config, encoder = still
    subject = subjects.peft(config, encoder())
    products, seconds = steps.matmul_seconds(subject, subjects.random_batch(subject.model, "4x8"))
    assert 0 < products < seconds


WHO = ("ours", "ours recomputing", "full", "peft eager", "peft sdpa")


def test_everything_about_steps_is_measured_for_every_subject(tiny_config):
    config = tiny_config("method.rank=2")
    precisions = ("fp32", "bf16") if HAS_BF16 else ("fp32",)
    found = steps.measure(config, 2, precisions, ("2x6", "4x8"))
    names = {f"{who} {p}" for who in WHO for p in precisions}
    assert set(found["times"]) == {"2x6", "4x8"}
    assert {len(values) for times in found["times"].values() for values in times.values()} == {2}
    assert set(found["times"]["4x8"]) == set(found["saved_bytes"]) == names
    assert found["saved_shape"] == "4x8"
    assert set(found["matmul_seconds"]["2x6"]) == {f"{who} fp32" for who in WHO if who != "peft sdpa"}
    assert set(found["floors"]) == {"2x6", "4x8"} and set(found["floors"]["2x6"]) == set(precisions)
    assert all(seconds > 0 for floors in found["floors"].values() for seconds in floors.values())
    assert found["saved_bytes"]["ours recomputing fp32"] < found["saved_bytes"]["ours fp32"]


def test_the_floor_counts_the_operations_that_the_step_does(tiny_config):
    """Torch's count is at least the floor, and at most floor, head, repeated scores and the first keys' gradient."""
    config = tiny_config("method.rank=2", "train.kernels=fused")
    subject = subjects.ours(config)
    batch, tokens, rank = 4, 8, 2
    inputs = subjects.random_batch(subject.model, "4x8")
    subject.step(inputs)
    with FlopCounterMode(display=False) as counter:
        subject.step(inputs)
    products = floor.lora_step(floor.sizes_of(subject.model), "4x8", rank)
    d, layers = 32, 2
    head = 3 * 2 * batch * d * d + 3 * 2 * batch * d * 2  # pooler and classifier: forward and both gradients
    scores_again = sum(2 * batch * queries * tokens * d for queries in [tokens] * (layers - 1) + [1])
    first_keys = 2 * batch * tokens * tokens * d  # the first layer's keys need no gradient, and get one
    counted = counter.get_total_flops()
    assert sum(product.operations for product in products) <= counted
    assert counted <= sum(p.operations for p in products) + head + scores_again + first_keys


def test_the_floor_of_products_by_hand():
    products = floor.lora_step(floor.Encoder(layers=1, width=4, heads=2, ffn=8), "3x5", rank=1)
    rows, d, f = 15, 4, 8
    keys_values = 2 * rows * d * d
    queries_output = 3 * 3 * d * d  # both forward, and the output's gradient
    feed_forward = 2 * 2 * 3 * d * f
    attention = 5 * 3 * 5 * d  # scores, context, and the gradients of probabilities, queries and values
    low_rank = (2 + 1 + 2) * (3 + rows) * d
    expected = 2 * (keys_values + queries_output + feed_forward + attention + low_rank)
    assert sum(product.operations for product in products) == expected


@pytest.mark.parametrize("precision", ["fp32", NARROWEST])
@pytest.mark.parametrize("stacked", [1, 3])
def test_every_layout_computes_the_same_product_and_the_fastest_one_counts(precision, stacked, monkeypatch):
    product = floor.Product(5, 16, 8, count=1, stacked=stacked)
    found = {name: action() for name, action in floor.layouts(product, precision).items()}
    assert set(found) >= {"rows", "columns"} and (stacked > 1 or "packed" in found)
    assert all(one.shape[-2:] == (5, 8) for one in found.values())
    for one in found.values():
        torch.testing.assert_close(
            one.float(), found["rows"].float(), atol=0.1 if precision == "bf16" else 1e-4, rtol=0.02
        )
    planned = {"": {"rows": [3.0, 3.0, 9.0], "columns": [2.0, 1.0, 2.0], "packed": [1.0, 4.0, 4.0]}}
    monkeypatch.setattr(floor, "interleave", lambda *given, **named: planned)
    assert floor.product_seconds(product, precision) == 2.0


def test_a_floor_is_the_sum_over_its_products(monkeypatch):
    monkeypatch.setattr(floor, "product_seconds", lambda product, *rest: float(product.rows))
    products = [floor.Product(2, 3, 4, 5), floor.Product(7, 1, 1, 2), floor.Product(2, 3, 4, 1)]
    assert floor.floor_seconds(products, "fp32") == 2 * 5 + 7 * 2 + 2


# From measurements to figures.


def a_run(task: str, seed: int, metric: float, seconds: float) -> dict:
    return {"name": f"{task}.s{seed}", "task": task, "seed": seed, "metric": metric, "trainable": 9, "seconds": seconds}


def a_round(number: int, side: str, seconds: float, values: list[float], peak: int) -> dict:
    made = [a_run("reviews", seed, value, 5.0) for seed, value in enumerate(values)]
    parts = {"start-up": 1.0, "step": 2.0, "other": 1.0}
    return {"round": number, "side": side, "seconds": seconds, "cells": made, "peak_bytes": peak << 20, "parts": parts}


@pytest.fixture
def planted() -> dict:
    """Measurements whose figures can be worked out by hand."""
    names = [f"{who} {p}" for p in ("bf16", "fp32") for who in ("ours", "full", "peft eager", "peft sdpa")]
    seconds = dict(zip(names, (1.0, 4.0, 3.0, 2.0, 3.0, 6.0, 4.0, 5.0), strict=True))
    return {
        "device": "a-machine",
        "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": None, "bf16": []},
        "versions": {"python": "3.11", "torch": "2"},
        "code": {"commit": "abc", "dirty": False},
        "measured_at": "2026-01-01T00:00:00+00:00",
        "settings": {
            "tasks": ["reviews"],
            "train_rows": 1000,
            "epochs": 2,
            "batch": 16,
            "eval_batch": 64,
            "max_length": 128,
            "rank": 8,
            "precision": "bf16",
            "workers": 2,
            "script_threads": 2,
            "tuned_threads": 1,
            "tuned_attention": "eager",
            "script_choices": {"1 threads": 1.0, "2 threads": None},
            "tuned_choices": {"1 threads, eager": 1.0},
            "allocator": machine.ALLOCATOR,
        },
        "loads": [
            {"busy": 0.01, "stolen": 0.0, "average": 0.1},
            {"busy": 0.03, "stolen": 0.02, "average": 0.1},
        ],
        "rounds": [
            a_round(1, "ours", 30.0, [0.80, 0.82, 0.81], 300),
            a_round(0, "ours", 20.0, [0.81, 0.83, 0.82], 200),
            a_round(0, "script_loop", 200.0, [0.82, 0.80], 500),
            a_round(1, "script_loop", 400.0, [0.81, 0.83], 400),
            a_round(0, "tuned_peer", 40.0, [0.2, 0.3], 100),
            a_round(1, "tuned_peer", 80.0, [0.2, 0.3], 100),
        ],
        "trace": {"step": 3.0, "other": 1.0},
        "steps": {
            "times": {
                "16x28": {name: [value, value] for name, value in seconds.items()},
                "32x64": {name: [2 * value, 2 * value] for name, value in seconds.items()},
            },
            "matmul_seconds": {"16x28": {"ours bf16": [1.0, 2.0]}, "32x64": {"ours bf16": [3.0, 4.0]}},
            "saved_bytes": dict(zip(names, (10, 90, 40, 80, 30, 90, 60, 90), strict=True)),
            "saved_shape": "32x64",
        },
    }


def test_figures_follow_from_the_measurements(planted):
    summary = summarise(planted)
    assert summary["cells_per_hour"] == {"script_loop": 27.0, "tuned_peer": 135.0, "ours": 450.0}
    # round by round: 540 / 36 = 15 and 360 / 18 = 20; 540 / 180 = 3 and 360 / 90 = 4
    assert (summary["ratio_script_loop"], summary["ratio_tuned_peer"]) == (17.5, 3.5)
    assert summary["intervals"]["ratio_script_loop"] == {
        "median": 17.5,
        "low": 15.0,
        "high": 20.0,
        "coverage": 0.5,
        "n": 2,
    }
    assert summary["n"] == {
        "rounds": 2,
        "cells": {"script_loop": 4, "tuned_peer": 4, "ours": 6},
        "steps": {"16x28": 2, "32x64": 2},
    }
    assert summary["peak_mib"] == {"script_loop": 500.0, "tuned_peer": 100.0, "ours": 300.0}
    assert summary["shares"]["script_loop"] == {"start-up": 0.25, "step": 0.5, "other": 0.25}
    # 2 workers for 50 s, 6 runs of 5 s: 30 of 100 s in runs, three quarters of them in steps
    assert summary["shares"]["ours"] == {"start-up": 0.7, "step": 0.225, "other": 0.075}
    assert summary["idle"] == {
        "idle": True,
        "busy_share_max": 0.03,
        "busy_share_median": 0.02,
        "stolen_share_max": 0.02,
        "limit": 0.05,
        "samples": 2,
    }


def test_figures_of_steps_are_against_the_better_of_the_peers_attentions(planted):
    summary = summarise(planted)
    assert summary["step_vs_peft"] == {"16x28": 0.5, "32x64": 0.5}
    assert summary["step_vs_full"] == {"16x28": 0.25, "32x64": 0.25}
    assert summary["step_vs_peft_by_precision"]["fp32"] == {"16x28": 0.75, "32x64": 0.75}
    assert summary["intervals"]["step_vs_peft"]["bf16"]["16x28"]["peft"] == "peft sdpa bf16"
    assert summary["saved_bytes_vs_peft_by_precision"] == {"bf16": 0.25, "fp32": 0.5}
    assert summary["saved_bytes_vs_peft"] == 0.25
    assert summary["matmul_share"] == 0.5


def test_the_floors_share_of_a_step_is_that_of_its_own_precision_and_shape(planted):
    assert summarise(planted)["floor_share"] is None  # measured before floors existed
    planted["steps"]["floors"] = {"16x28": {"bf16": 0.8, "fp32": 2.1}, "32x64": {"bf16": 1.8, "fp32": 4.5}}
    summary = summarise(planted)
    assert summary["floor_share"] == {"16x28": 0.8, "32x64": 0.9}
    assert summary["floor_share_by_precision"]["fp32"] == pytest.approx({"16x28": 0.7, "32x64": 0.75})
    said = "in the fastest layout measured, would take 0.80x at 16x28, 0.90x at 32x64 its time"
    assert said in tables.steps_text(summary)


def test_figures_of_recomputing_stand_beside_the_step_that_keeps_all(planted):
    assert summarise(planted)["recomputing"] is None  # measured before this contender existed
    for times in planted["steps"]["times"].values():
        times["ours recomputing bf16"] = [1.5 * value for value in times["ours bf16"]]
    planted["steps"]["saved_bytes"]["ours recomputing bf16"] = 5
    summary = summarise(planted)
    assert summary["recomputing"] == {
        "step_vs_ours": {"16x28": 1.5, "32x64": 1.5},
        "step_vs_peft": {"16x28": 0.75, "32x64": 0.75},
        "saved_bytes_vs_peft": 0.125,
    }
    said = "it keeps 0.12x PEFT's bytes, in 0.75x at 16x28, 0.75x at 32x64 PEFT's time (1.50x at 16x28"
    assert said in tables.steps_text(summary) and summary["step_vs_peft"] == {"16x28": 0.5, "32x64": 0.5}


def test_a_metric_agrees_within_the_noise_of_seeds(planted):
    found = summarise(planted)["metric"]["reviews"]
    assert found["ours"] | {"std": None} == {"median": 0.815, "n": 6, "std": None, "agrees": None}
    assert found["script_loop"]["agrees"] and not found["tuned_peer"]["agrees"]
    assert agrees([0.5], [0.5]) is None and agrees([0.5, 0.6], []) is None


def test_two_sides_of_one_distribution_agree_nearly_always_and_of_two_do_not():
    source = random.Random(0)
    ours = [[source.gauss(0, 1) for _ in range(12)] for _ in range(400)]
    same = [agrees([source.gauss(0, 1) for _ in range(6)], values) for values in ours]
    other = [agrees([source.gauss(5, 1) for _ in range(6)], values) for values in ours]
    assert sum(same) / len(same) > 0.9 and not any(other)


def test_a_busy_machine_is_said_in_the_tables(planted):
    planted["loads"][0]["busy"] = 0.5
    summary = summarise(planted)
    assert summary["idle"]["idle"] is False
    assert "**The machine was not idle** (others took up to 50%)" in tables.document(summary)
    planted["loads"] = [{"busy": None, "stolen": None, "average": None}]
    assert "Whether it was idle is unknown" in tables.document(summarise(planted))


def test_shares_of_workers_that_were_never_idle_are_those_of_the_trace():
    rounds = [{"seconds": 10.0, "cells": [{"seconds": 4.0}, {"seconds": 6.0}]}]
    assert our_shares(rounds, {"step": 9.0, "other": 1.0}, 1) == {"start-up": 0.0, "step": 0.9, "other": 0.1}


def test_the_tables_quote_the_summary_and_nothing_else(planted):
    text = tables.document(summarise(planted))
    row = next(line for line in text.splitlines() if line.startswith("| This project"))
    assert row.split(" | ")[1:] == ["450 (360 to 540)", "8.3", "300", "81.5 |"]
    assert "interleaved rounds, in parentheses their range, of" in text and "interval" not in text
    assert "17.5x (15.0 to 20.0) the script loop and 3.5x (3.0 to 4.0) the tuned peer" in text
    assert "2 of 2 medians" not in text and "1 of 2 medians of a peer agree" in text
    assert "0.50x at 16x28, 0.50x at 32x64 the time of PEFT's" in text


def test_six_rounds_give_an_interval_and_the_peers_choices_are_told(planted):
    planted["rounds"] = [
        each | {"round": 2 * turn + each["round"], "seconds": each["seconds"] + turn}
        for turn in range(3)
        for each in planted["rounds"]
    ]
    planted["settings"] |= {"script_precision": "bf16", "script_attention": "sdpa", "tuned_precision": "fp32"}
    text = tables.document(summarise(planted))
    assert "medians over 6 interleaved rounds, in parentheses their 95% interval, of" in text and "range" not in text
    assert "Script loop: Trainer + PEFT, padded to 128, bf16," in text and "length-grouped, fp32," in text
    assert "- Script loop: bf16, sdpa attention, 2 threads, the fastest of 1 threads (1.0 s); 2 threads (given" in text


def test_tables_are_written_from_measurements_and_into_the_readme(planted, tmp_path):
    folder, readme = tmp_path / "bench", tmp_path / "README.md"
    begin, end = (MARK.format(name="bench", edge=edge) for edge in ("begin", "end"))
    first, last = (MARK.format(name="speed", edge=edge) for edge in ("begin", "end"))
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter: {first}old{last}.\n")
    (folder / "a-machine").mkdir(parents=True)
    (folder / "a-machine" / "measurements.json").write_bytes(results.as_json(planted))
    (summary,) = tables.rebuild(folder, readme)
    assert json.loads((folder / "a-machine" / "summary.json").read_text()) == summary
    spoken = tables.speed([summary])
    assert readme.read_text() == f"before\n{begin}\n{tables.block([summary])}\n{end}\nafter: {first}{spoken}{last}.\n"
    rates = [f"{summary['cells_per_hour'][side]:.0f} (" for side in ("ours", "tuned_peer", "script_loop")]
    assert [part[: len(rate)] for part, rate in zip(spoken.split("), "), rates, strict=True)] == rates
    assert spoken.endswith(f" on {summary['device']}") and tables.with_blocks("no marks", [summary]) == "no marks"


def test_measurements_of_another_kind_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "measurements.json").write_text("{}")
    with pytest.raises(UserError, match="no measurements of this benchmark"):
        tables.rebuild(tmp_path, tmp_path / "README.md")


# The whole benchmark.


def test_the_whole_benchmark_on_tiny_runs(tiny_overrides, tmp_path, monkeypatch):
    """Every side runs in the processes that a real benchmark starts; each peer has one choice of settings."""
    monkeypatch.setattr(sides, "choices", lambda padding: {"1": job.PeerSettings(padding, "fp32", 1, "sdpa")})
    own = ("task=", "runtime.", "train.kernels=")
    overrides = [override for override in tiny_overrides if not override.startswith(own)]
    overrides += ["train.kernels=fused", "data.train_rows=40", "method.rank=2", "runtime.tracking=off"]
    overrides += ["launcher.workers=1"]
    parser = argparse.ArgumentParser()
    command.options(parser)
    chosen = parser.parse_args("--rounds 1 --runs 4 --script-runs 1 --step-repetitions 2".split())
    (tmp_path / "run").mkdir()
    measured = command.measure(chosen, ("cola", "mrpc"), overrides, tmp_path / "run")
    folder, readme = tmp_path / "bench", tmp_path / "README.md"
    readme.write_text("".join(MARK.format(name="bench", edge=edge) for edge in ("begin", "end")))
    (folder / measured["device"]).mkdir(parents=True)
    (folder / measured["device"] / "measurements.json").write_bytes(results.as_json(measured))
    (summary,) = tables.rebuild(folder, readme)
    assert summary["n"]["cells"] == {"script_loop": 1, "tuned_peer": 4, "ours": 4}
    assert all(rate > 0 for rate in summary["cells_per_hour"].values())
    assert {run["trainable"] for each in measured["rounds"] for run in each["cells"]} == {
        measured["rounds"][0]["cells"][0]["trainable"]
    }
    assert set(summary["step_vs_peft"]) == set(summary["step_vs_full"]) == {"16x28", "32x64"}
    assert 0 < summary["recomputing"]["saved_bytes_vs_peft"] < summary["saved_bytes_vs_peft"] < 1
    assert 0 < summary["matmul_share"] < 1
    assert set(summary["floor_share"]) == {"16x28", "32x64"} and all(
        share > 0 for share in summary["floor_share"].values()
    )
    for shares in summary["shares"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert all(path.read_text() for path in (folder / measured["device"] / "bench.md", readme))


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--runs", "5"], "--runs must be a multiple of 2"),
        (["--runs", "2"], "at least 4, got 2"),
        (["--script-runs", "20"], r"--script-runs must be at most --runs \(12\), got 20"),
        (["--train-rows", "1"], "--train-rows must be >= 2, got 1"),
        (["--reference", "--results", "x"], "--results and --reference name two folders"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        call("bench")(arguments)
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_peft_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        call("bench")([])
    assert ended.value.code == 2 and "extra `peers`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=bitfit"], "the peers train LoRA"),
        (["method.targets=[o]"], "the peers train LoRA"),
        (["train.accumulation=2"], "no accumulation"),
    ],
)
def test_a_run_that_the_peers_have_no_words_for_is_refused(overrides, message, tiny_config, tmp_path):
    with pytest.raises(UserError, match=message):
        runs.peer_run(tiny_config(*overrides), tmp_path)


def test_a_file_that_is_no_job_is_refused(tmp_path):
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(UserError, match="is not a job"):
        job.read(tmp_path / "job.json", job.Job)


def test_a_side_that_fails_is_said_with_its_last_words(tmp_path):
    with pytest.raises(UserError, match=r"exit code 3:\n.*out of luck"):
        sides.run_process(["-c", "print('out of luck'); raise SystemExit(3)"], tmp_path, tmp_path / "log")


def test_a_side_that_takes_too_long_is_ended(tmp_path):
    with pytest.raises(TimeoutError):
        sides.run_process(["-c", "import time; time.sleep(600)"], tmp_path, tmp_path / "log", limit_seconds=0)


def test_the_peers_choose_what_is_fastest_and_give_up_what_is_much_slower(exported, tmp_path, monkeypatch):
    _, one_run = exported
    limits = []

    def run(jobs, settings, folder, name, limit_seconds):
        limits.append(limit_seconds)
        if settings.threads > 4:
            raise TimeoutError
        costs = tuple(job.RunCost("a", "a", 1, None, 1, 1.0, {"step": s}) for s in (0.1, 8.0 / settings.threads))
        return sides.Process(10.0, None), job.Answer(1.0, costs)

    monkeypatch.setattr(sides, "run_job", run)
    choices = {f"{n}": job.PeerSettings("longest", "fp32", n, "eager") for n in (1, 4, 8)}
    assert sides.fastest(choices, one_run, tmp_path) == (choices["4"], {"1": 8.0, "4": 2.0, "8": None})
    assert limits == [float("inf"), 30.0, 30.0]


def test_every_peer_may_choose_its_precision_threads_and_attention(monkeypatch):
    monkeypatch.setattr(sides, "cores", lambda: 6)
    monkeypatch.setattr(sides, "cpu_flags", lambda: {"avx2", "avx512_bf16"})
    found = sides.choices("longest")
    assert {each.threads for each in found.values()} == {1, 2, 4, 6}
    assert {(each.precision, each.attention) for each in found.values()} == {
        (precision, attention) for precision in ("fp32", "bf16") for attention in ("eager", "sdpa")
    }
    assert len(set(found.values())) == len(found) == 4 * 2 * 2 and {each.padding for each in found.values()} == {
        "longest"
    }
    monkeypatch.setattr(sides, "cpu_flags", lambda: {"avx2"})
    assert {each.precision for each in sides.choices("max_length").values()} == {"fp32"}


def test_parts_of_a_process_add_up_to_its_time():
    costs = tuple(job.RunCost("a", "a", 1, None, 1, 5.0, {"step": 3.0, "data": 1.0}) for _ in range(2))
    parts = sides.parts_of(sides.Process(20.0, None), job.Answer(4.0, costs))
    assert parts == {"start-up": 4.0, "step": 6.0, "data": 2.0, "other": 8.0}


def test_every_side_gets_the_same_allocator(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = sides.environment(tmp_path)
    assert found.items() >= machine.ALLOCATOR.items() and "OMP_NUM_THREADS" not in found
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_committed_tables_are_what_the_committed_measurements_give():
    found = sorted((results.COMMITTED / "bench").glob("*/summary.json"))
    assert found
    summaries = []
    for path in found:
        summary = json.loads(path.read_text())
        measured = json.loads(path.with_name("measurements.json").read_text())
        assert json.loads(results.as_json(summarise(measured))) == summary, path
        assert path.with_name("bench.md").read_text() == tables.document(summary)
        assert summary["device"] == path.parent.name
        summaries.append(summary)
    for page, name in zip(command.PAGES, ("bench", "speed"), strict=True):
        text = page.read_text()
        assert MARK.format(name=name, edge="begin") in text and tables.with_blocks(text, summaries) == text
