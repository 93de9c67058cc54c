"""The measurements against closed forms and other libraries. Times are never asserted."""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from commands import command
from machines import inject
from processor import needs_bf16
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lora.cost import floor, harness, subjects
from lora.cost.efficiency.command import write
from lora.cost.efficiency.measure import make_trainee, resolve_device, time_steps
from lora.cost.efficiency.plan import TITLES, Plan, make_plan, place, run_of
from lora.cost.efficiency.summary import read_summary, summarise
from lora.cost.parameters import SIZES
from lora.cost.subjects import changed, load, random_batch, serve, served
from lora.errors import UserError
from lora.methods.configs import FullConfig
from lora.methods.lowrank import LoraLinear
from lora.models.modules import checksum, count_parameters, trainable
from lora.training.device import optimizer_bytes

main = command("efficiency")

KERNELS = pytest.mark.parametrize(
    ("kernels", "precision"),
    [
        ("stock", "fp32"),
        ("fused", "fp32"),
        pytest.param("stock", "bf16", marks=needs_bf16),
        pytest.param("fused", "bf16", marks=needs_bf16),
    ],
)
TRAINED = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "peft")


@pytest.fixture
def plan(model_dir) -> Plan:
    return Plan(
        model="local",
        path=str(model_dir),
        methods=tuple(TITLES),
        kernels="stock",
        precision="fp32",
        device="cpu",
        threads=1,
        rounds=2,
        step_shapes=("3x8", "4x12"),
        latency_shapes=("2x8",),
    )


def other(plan: Plan, **changes) -> Plan:
    return dataclasses.replace(plan, **changes)


# Bytes.


def forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.gelu(module(x)).sum()


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_saved_bytes_of_a_linear_layer_and_a_gelu(frozen: bool) -> None:
    """A trained layer keeps its input. A frozen one keeps only its weight, no activation. GELU keeps its input."""
    n, d_in, d_out = 5, 7, 11
    linear, x = nn.Linear(d_in, d_out).requires_grad_(not frozen), torch.randn(n, d_in, requires_grad=True)
    kept = harness.saved_bytes(linear, lambda: forward(linear, x))
    assert kept == 4 * (n * d_out + (0 if frozen else n * d_in))


def test_saved_bytes_of_lora() -> None:
    """x for A, A x for B, and GELU's input. Two uses of x count once, and the frozen weight does not count."""
    n, d_in, d_out, rank = 5, 7, 11, 3
    layer, x = LoraLinear(nn.Linear(d_in, d_out), rank, 2.0, 0.0), torch.randn(n, d_in, requires_grad=True)
    layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
    assert harness.saved_bytes(layer, lambda: forward(layer, x)) == 4 * n * (d_in + rank + d_out)


def test_saved_bytes_count_a_storage_whole_and_no_casts_of_weights() -> None:
    n, d_in, d_out = 4, 6, 10
    linear, x = nn.Linear(d_in, d_out), torch.randn(n, d_in, requires_grad=True)

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(linear, x)

    assert harness.saved_bytes(linear, autocast) == 2 * n * (d_in + d_out)
    wide = torch.randn(n, d_in, requires_grad=True) * 1
    part = harness.saved_bytes(linear, lambda: (wide[:1] ** 2).sum())
    assert part == 4 * n * d_in, "one row is saved, and with it the storage of all"


@KERNELS
def test_bytes_of_activations_checkpoint_and_optimizer(plan: Plan, kernels: str, precision: str, tmp_path: Path):
    """AdamW keeps two float32 moments per value. Torch's own also keeps a float32 count of steps per tensor."""
    plan, kept = other(plan, kernels=kernels, precision=precision), {}
    for name in TRAINED:
        trainee = make_trainee(plan, name)
        batch = random_batch(trainee.model, "4x12")
        counts = harness.counts(trainee, {"4x12": batch})
        assert counts["saved_activation_bytes"] == harness.counts(trainee, {"4x12": batch})["saved_activation_bytes"]
        kept[name] = counts["saved_activation_bytes"]["4x12"]
        own_kernels = kernels == "fused" and name != "peft"
        values, tensors = counts["trainable_with_head"], len(list(trainable(trainee.model)))
        assert optimizer_bytes(trainee.optimizer) == 8 * values + (0 if own_kernels else 4 * tensors)
        tensors = {n: p.detach() for n, p in trainable(trainee.model)}
        save_file(tensors, tmp_path / "file")
        assert counts["checkpoint_bytes"] == (tmp_path / "file").stat().st_size
        assert sum(p.numel() for p in tensors.values()) == counts["trainable_with_head"]
    assert all(0 < kept[name] < kept["full"] for name in TRAINED[1:-1])
    assert kept["lora"] < kept["peft"] or kernels == "stock"


def test_the_peak_of_a_child_is_its_own(plan: Plan, tmp_path: Path) -> None:
    """Memory of this process does not count, although getrusage would include it. An error keeps its message."""
    ballast = np.ones(2**27)  # 1 GiB
    trainee = harness.partial(make_trainee, plan, "lora")
    peak = harness.in_fresh_process(harness.peak_mib, trainee, "4x12", 1, "cpu")
    assert 0 < peak < ballast.nbytes / 2**20
    with pytest.raises(UserError, match="has no config"):
        harness.in_fresh_process(make_trainee, other(plan, path=str(tmp_path)), "lora")


def test_a_killed_process_is_told() -> None:
    with pytest.raises(UserError, match="was killed, probably because memory ran out"):
        harness.in_fresh_process(os._exit, 9)


# Subjects.


def without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_quietly(config):
        model, weights = load(config)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout_prob = 0.0
        return model, weights

    monkeypatch.setattr(subjects, "load", load_quietly)


def test_subjects_compute_the_same_loss_and_all_of_them_learn(tiny_config, monkeypatch) -> None:
    without_dropout(monkeypatch)
    config = tiny_config("method.rank=2", "train.dropout=0", "train.kernels=fused")
    made = [
        subjects.ours(config),
        subjects.ours(changed(config, method=FullConfig())),
        *(subjects.peft(changed(config, model={"attention": attention})) for attention in ("eager", "sdpa")),
        subjects.ours(changed(config, train={"kernels": "stock"})),
    ]
    batch = random_batch(made[0].model, "4x8")
    first = [subject.loss(batch).item() for subject in made]
    assert first == pytest.approx([first[0]] * 5, rel=1e-5)  # B is zero
    counts = [sum(p.numel() for p in subject.model.parameters() if p.requires_grad) for subject in made]
    assert counts[0] == counts[2] == counts[3] == counts[4] < counts[1]
    for subject in made:
        for _ in range(5):
            subject.step(batch)
        assert subject.loss(batch).item() < first[0]


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "deberta-v2"])
def test_peft_trains_the_same_parameters_on_other_architectures(architecture: str, plan: Plan, tmp_path: Path) -> None:
    plan = other(plan, path=str(tiny.folder(tmp_path / architecture, architecture)))
    ours, theirs = (count_parameters(make_trainee(plan, name).model) for name in ("lora", "peft"))
    assert {**ours, "total": 0} == {**theirs, "total": 0}


@KERNELS
def test_merged_lora_computes_what_unmerged_does(plan: Plan, kernels: str, precision: str) -> None:
    plan = other(plan, kernels=kernels, precision=precision)
    models = {name: served(run_of(plan, name), name == "lora_merged") for name in plan.served}
    batch = random_batch(models["base"], "4x12")
    logits = {name: serve(model, batch).float() for name, model in models.items()}
    largest = logits["base"].abs().max().item()
    tolerance = 1e-5 * largest if precision == "fp32" else 0.05 * largest
    assert (logits["lora_merged"] - logits["lora"]).abs().max().item() <= tolerance
    assert (logits["lora"] - logits["base"]).abs().max().item() > 1e-4 * largest, "B is not zero"
    for name in ("full", "bitfit"):  # before training they equal the base: the experiment's control
        assert torch.equal(logits[name], logits["base"])
    assert not any(p.requires_grad for model in models.values() for p in model.parameters())
    layers = [module for module in models["lora_merged"].modules() if isinstance(module, LoraLinear)]
    assert not layers and any(isinstance(module, LoraLinear) for module in models["lora"].modules())


def test_random_encoders_have_a_seed_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(SIZES, "roberta_base", SIZES["roberta_base"] | small)
    state = torch.random.get_rng_state()
    plan = make_plan("roberta_base", "cpu")
    models = [load(dataclasses.replace(run_of(plan, "base"), seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, third = (checksum(model.named_parameters()) for model, _ in models)
    assert first == again != third and models[0][1] == "random, seed 1"
    assert (plan.kernels, plan.precision) == ("stock", "fp32"), "as the paper's profile has it"


# The floor.


def test_the_floor_counts_the_operations_that_the_step_does(tiny_config) -> None:
    """Torch's count is at least the floor, and at most floor, head, repeated scores and the first keys' gradient."""
    subject = subjects.ours(tiny_config("method.rank=2", "train.kernels=fused"))
    batch, tokens, rank, d, layers = 4, 8, 2, 32, 2
    inputs = random_batch(subject.model, "4x8")
    subject.step(inputs)
    with FlopCounterMode(display=False) as counter:
        subject.step(inputs)
    least = sum(product.operations for product in floor.lora_step(floor.sizes_of(subject.model), "4x8", rank))
    head = 3 * 2 * batch * d * d + 3 * 2 * batch * d * 2  # pooler and classifier: forward and both gradients
    scores_again = sum(2 * batch * queries * tokens * d for queries in [tokens] * (layers - 1) + [1])
    first_keys = 2 * batch * tokens * tokens * d  # the first layer's keys need no gradient, and get one
    assert least <= counter.get_total_flops() <= least + head + scores_again + first_keys


def test_the_floor_of_products_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    products = floor.lora_step((1, 4, 2, 8), "3x5", rank=1)
    rows, d, f = 15, 4, 8
    keys_values = 2 * rows * d * d
    queries_output = 3 * 3 * d * d  # both forward, and the output's gradient
    feed_forward = 2 * 2 * 3 * d * f
    attention = 5 * 3 * 5 * d  # scores, context, and the gradients of probabilities, queries and values
    low_rank = (2 + 1 + 2) * (3 + rows) * d
    expected = 2 * (keys_values + queries_output + feed_forward + attention + low_rank)
    assert sum(product.operations for product in products) == expected
    monkeypatch.setattr(floor, "clock_of", lambda device: lambda call: 2.0)
    twice = [floor.Product(2, 3, 4, 5), floor.Product(7, 1, 1, 2), floor.Product(2, 3, 4, 1)]
    assert floor.floor_seconds(twice, "fp32") == 2.0 * (5 + 2 + 1)


# The whole measurement.


def test_paired_ratios_cancel_what_a_round_shares() -> None:
    slow = np.array([1.0, 9.0, 2.0, 30.0, 1.0, 4.0])
    samples = [
        {"kind": "step", "method": name, "shape": "1x8", "round": number, "ms": ms * factor}
        for name, factor in (("full", 1.0), ("lora", 1.25))
        for number, ms in enumerate(slow)
    ]
    to_full = summarise({key: {"settings": None} for key in ("full", "lora")}, samples, {})["lora"]["to_full"]
    assert (to_full["step_ms"]["1x8"], *to_full["step_ms_interval"]["1x8"]) == pytest.approx((1.25, 1.25, 1.25))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, model_dir) -> Path:
    """The folder of one device, with an encoder measured under two kernels."""
    results = tmp_path_factory.mktemp("results")
    for rounds, kernels, methods in ((6, "stock", "lora_merged peft base full lora"), (1, "fused", "lora_merged base")):
        what = f"--model local --methods {methods} --kernels {kernels} --precision fp32 --device cpu"
        shapes = f"--rounds {rounds} --step-shapes 3x8 4x12 --latency-shapes 2x8"
        main([*what.split(), *shapes.split(), "--path", str(model_dir), "--results", str(results)])
    (device,) = (results / "efficiency").iterdir()
    return device


def test_the_summary_follows_from_the_samples(measured: Path, model_dir: Path) -> None:
    folder = measured / "local-stock-fp32"
    summary = read_summary(folder / "summary.json")
    assert list(summary) == ["about", "base", "full", "lora", "peft", "lora_merged"]
    lora, full, peft, merged = (summary[name] for name in ("lora", "full", "peft", "lora_merged"))
    assert lora["trainable"] == peft["trainable"] == 2 * 2 * 2 * 8 * 32, "layers, q and v, A and B, r = 8, d = 32"
    assert lora["to_full"]["trainable"] == pytest.approx(lora["trainable"] / full["trainable"], abs=1e-6)
    assert lora["checkpoint_bytes"] < full["checkpoint_bytes"] and lora["to_full"]["checkpoint_bytes"] < 1
    assert merged["trainable"] is None and merged["step_ms"] is None and peft["latency_ms"] is None
    assert set(lora["step_ms"]) == set(lora["saved_activation_bytes"]) == set(lora["floor_ms"]) == {"3x8", "4x12"}
    assert set(lora["peak_mib"]) == {"4x12"} and set(merged["latency_ms"]) == {"2x8"}
    samples = np.genfromtxt(folder / "samples.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")

    def times(kind: str, method: str, shape: str) -> np.ndarray:
        chosen = samples[(samples["kind"] == kind) & (samples["method"] == method) & (samples["shape"] == shape)]
        return chosen["ms"][np.argsort(chosen["round"])]

    ratios = times("step", "lora", "3x8") / times("step", "full", "3x8")
    assert len(ratios) == 6
    assert lora["to_full"]["step_ms"]["3x8"] == pytest.approx(np.median(ratios), abs=1e-5)
    assert lora["to_full"]["step_ms_interval"]["3x8"] == pytest.approx([ratios.min(), ratios.max()], abs=1e-5)
    assert merged["latency_ms"]["2x8"] == pytest.approx(np.median(times("latency", "lora_merged", "2x8")), abs=1e-4)
    about, text = summary["about"], (folder / "summary.json").read_text()
    assert about["plan"]["path"] == model_dir.name and str(model_dir) not in text
    assert about["model"]["weights"].startswith("sha256:") and about["machine"]["packages"]["torch"]


def test_tables_are_rebuilt_byte_for_byte(measured: Path) -> None:
    files = {str(path.relative_to(measured)): path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    shown = ("summary.json", "samples.csv")
    folders = ("local-stock-fp32", "local-fused-fp32")
    assert set(files) == {
        "efficiency.md",
        *(f"{f}/{name}" for f in folders for name in shown),
    }
    main(["--tables", "--results", str(measured.parents[1])])
    assert files == {name: (measured / name).read_bytes() for name in files}
    text = files["efficiency.md"].decode()
    assert text.count("| LoRA, merged |") == 2 and text.count("| Full fine-tuning |") == 2
    assert text.count("| LoRA, by PEFT |") == 1 and "The matrix products of LoRA's step alone would take" in text
    one_round, six_rounds = sorted(re.findall(r"Medians of .*", text))
    assert one_round.endswith("too few to say how certain they are: 6 rounds would.") and "interval" in six_rounds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["about"].update(schema=9), "not a summary of schema 1"),
        (lambda s: s.pop("about"), "not a summary of schema 1"),
    ],
)
def test_a_broken_summary_is_refused(measured: Path, tmp_path: Path, change, message: str) -> None:
    summary = json.loads((measured / "local-stock-fp32" / "summary.json").read_text())
    change(summary)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        write(tmp_path)


# Plans and mistakes.


def test_the_plan_follows_the_profile_and_its_folder_follows_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA at r = 8, and bottleneck adapters of its budget; the defaults on top, the rest below."""
    inject(monkeypatch, "bf16")
    plan, top = make_plan("minilm", "cpu"), Path("results/efficiency/some-cpu")
    assert (plan.kernels, plan.precision) == ("fused", "bf16"), "as mini, which follows the machine"
    methods = {name: run_of(plan, name).method for name in ("lora", "houlsby", "pfeiffer")}
    assert (methods["lora"].rank, methods["lora"].targets) == (8, ("q", "v"))
    assert (methods["houlsby"].bottleneck, methods["pfeiffer"].bottleneck) == (8, 16)
    assert place(plan, top) == place(make_plan("minilm", "cuda"), top) == top
    assert place(make_plan("minilm", "cpu", precision="fp32"), top) == top / "minilm-fused-fp32"
    assert place(make_plan("roberta_large", "cpu"), top) == top / "roberta_large-stock-fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt3"], "invalid choice: 'gpt3'"),
        (["--methods", "prefix"], "invalid choice: 'prefix'"),
        (["--device", "cuda"], "--device is cuda, but torch sees no CUDA device here"),
        (["--device", "cpu", "--kernels", "quick"], "invalid choice: 'quick'"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--step-shapes", "16by28"], "--step-shapes must be <rows>x<tokens>, such as 16x128, got '16by28'"),
        (["--latency-shapes", "1x8", "1x8"], "--latency-shapes must be not empty, without repeats"),
        (["--table-1", "--latency-shapes", "1x8"], "not allowed with"),
        (["--model", "local"], "--path must be given with --model local only, got None"),
        (["--model", "local", "--path", "absent"], "model folder absent has no config.json"),
        (["--tables"], "results/efficiency holds no device's folder"),
        (["--results", __file__], "is not a folder in which you may write"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(arguments, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main(["--results", str(tmp_path / "results"), *arguments])
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "results").exists()


def test_kernels_that_do_not_fit(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--kernels must be stock on a GPU, got 'fused'"):
        other(plan, kernels="fused", device="cuda")
    folder = tiny.folder(tmp_path / "distilbert", "distilbert")
    with pytest.raises(UserError, match="does not cover model type distilbert"):
        time_steps(other(plan, path=str(folder), kernels="fused", methods=("full",)), {"full": {}}, lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device("auto", kernels) for kernels in (None, "stock", "fused")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", None) == "cpu"
