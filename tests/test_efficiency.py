"""The measurements against closed forms and other libraries. Times are never asserted."""

import dataclasses
import itertools
import json
import mmap
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from commands import command
from machines import inject
from processor import needs_bf16
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from lora.checks import SettingsError
from lora.cost import saved, shapes
from lora.cost.efficiency import measure, peak
from lora.cost.efficiency.models import build_encoder, make_server, make_trainee, resolve_device, serve
from lora.cost.efficiency.plan import MODELS, TITLES, Plan, make_plan, method_run, place
from lora.cost.efficiency.report import build
from lora.cost.efficiency.summary import KEYS, read_summary, summarise
from lora.cost.efficiency.tables import unsteady_text
from lora.cost.parameters import SIZES
from lora.cost.subjects import random_batch
from lora.cost.timing import FEWEST, median_interval, orders
from lora.errors import UserError
from lora.files import ROOT
from lora.methods.lowrank import LoraLinear
from lora.models.modules import checksum, count_parameters, is_head, trainable
from lora.report import build as report
from lora.training.usage import optimizer_bytes

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
TRAINED = ("full", "bitfit", "houlsby", "pfeiffer", "lora")


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
        calls=1,
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
    found = saved.saved_bytes(linear, lambda: forward(linear, x))
    assert found == saved.Saved(activations=4 * (n * d_out + (0 if frozen else n * d_in)), casts=0)


def test_saved_bytes_of_lora() -> None:
    """x for A, A x for B, and GELU's input. Two uses of x count once, and the frozen weight does not count."""
    n, d_in, d_out, rank = 5, 7, 11, 3
    layer, x = LoraLinear(nn.Linear(d_in, d_out), rank, 2.0, 0.0), torch.randn(n, d_in, requires_grad=True)
    layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
    found = saved.saved_bytes(layer, lambda: forward(layer, x))
    assert found == saved.Saved(activations=4 * n * (d_in + rank + d_out), casts=0)


def test_saved_bytes_count_a_storage_whole_and_casts_of_weights_apart() -> None:
    n, d_in, d_out = 4, 6, 10
    linear, x = nn.Linear(d_in, d_out), torch.randn(n, d_in, requires_grad=True)

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(linear, x)

    assert saved.saved_bytes(linear, autocast) == saved.Saved(
        activations=2 * n * (d_in + d_out), casts=2 * d_in * d_out
    )
    wide = torch.randn(n, d_in, requires_grad=True) * 1
    part = saved.saved_bytes(linear, lambda: (wide[:1] ** 2).sum())
    assert part.activations == 4 * n * d_in, "one row is saved, and with it the storage of all"


@KERNELS
def test_methods_that_freeze_keep_less(plan: Plan, kernels: str, precision: str) -> None:
    plan = other(plan, kernels=kernels, precision=precision)
    kept = {}
    for name in TRAINED:
        trainee = make_trainee(plan, name)
        batch = random_batch(trainee.model, "4x12")
        kept[name] = saved.saved_bytes(trainee.model, lambda t=trainee, b=batch: t.loss(b)).activations
        again = saved.saved_bytes(trainee.model, lambda t=trainee, b=batch: t.loss(b)).activations
        assert kept[name] == again > 0
    assert all(kept[name] < kept["full"] for name in TRAINED if name != "full")


@KERNELS
def test_bytes_of_checkpoint_and_optimizer(plan: Plan, kernels: str, precision: str, tmp_path: Path) -> None:
    """AdamW keeps two float32 moments per value. Torch's own also keeps a float32 count of steps per tensor."""
    plan = other(plan, kernels=kernels, precision=precision)
    for name in TRAINED:
        trainee = make_trainee(plan, name)
        counts = count_parameters(trainee.model)
        values = counts["trainable_method"] + counts["trainable_head"]
        trainee.step(random_batch(trainee.model, "3x8"))
        tensors = len(list(trainable(trainee.model)))
        assert optimizer_bytes(trainee.optimizer) == 8 * values + (4 * tensors if kernels == "stock" else 0)
        for with_head, expected in ((True, values), (False, counts["trainable_method"])):
            kept = {name: p for name, p in trainable(trainee.model) if with_head or not is_head(trainee.model, name)}
            save_file({name: p.detach() for name, p in kept.items()}, tmp_path / "file")
            with open(tmp_path / "file", "rb") as file:
                header = 8 + int.from_bytes(file.read(8), "little")  # safetensors: a length, and JSON of that length
            found = saved.checkpoint_bytes(trainee.model, with_head)
            assert found == 4 * expected + header
            assert sum(p.numel() for p in load_file(tmp_path / "file").values()) == expected


def test_the_peak_of_a_child_is_its_own(plan: Plan) -> None:
    """Memory of this process does not count, although getrusage would include it."""
    ballast = np.ones(2**27)  # 1 GiB
    found = peak.peak_of_child(plan, "lora")
    assert 0 < found.libraries_mib < found.peak_mib < ballast.nbytes / 2**20


def test_a_child_that_fails_says_why(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training lora in a process of its own.*exit code 2.*no config.json"):
        peak.peak_of_child(other(plan, path=str(tmp_path)), "lora")


def test_the_peak_starts_again() -> None:
    size = 200 * 2**20
    before = peak.resident_mib("VmHWM")
    with mmap.mmap(-1, size) as block:
        block.write(b"1" * size)
    high = peak.resident_mib("VmHWM")
    assert high >= max(before, peak.resident_mib("VmRSS") + 150)
    peak.reset_peak()
    assert peak.resident_mib("VmHWM") < high - 150


# Models.


@KERNELS
def test_merged_lora_computes_what_unmerged_does(plan: Plan, kernels: str, precision: str) -> None:
    plan = other(plan, kernels=kernels, precision=precision)
    models = {name: make_server(plan, name) for name in TITLES}
    batch = random_batch(models["base"], "4x12")
    logits = {name: serve(model, batch).float() for name, model in models.items()}
    largest = logits["base"].abs().max().item()
    tolerance = 1e-5 if precision == "fp32" else 0.05 * largest
    assert (logits["lora_merged"] - logits["lora"]).abs().max().item() <= tolerance
    assert (logits["lora"] - logits["base"]).abs().max().item() > 10 * 1e-5, "B is not zero"
    for name in ("full", "bitfit"):  # before training they equal the base: the experiment's control
        assert torch.equal(logits[name], logits["base"])
    assert not any(p.requires_grad for model in models.values() for p in model.parameters())
    layers = [module for module in models["lora_merged"].modules() if isinstance(module, LoraLinear)]
    assert not layers and any(isinstance(module, LoraLinear) for module in models["lora"].modules())
    if kernels == "stock":
        names = {name for name, _ in models["base"].named_parameters()}
        assert {name for name, _ in models["lora_merged"].named_parameters()} == names


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_trains_what_the_method_trains(plan: Plan, name: str) -> None:
    trainee = make_trainee(plan, name)
    before = {key: p.detach().clone() for key, p in trainee.model.named_parameters()}
    batch = random_batch(trainee.model, "4x12")
    for _ in range(2):  # A's gradient is zero while B is
        trainee.step(batch)
    moved = {key for key, p in trainee.model.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key, _ in trainable(trainee.model)}
    assert batch.keys() == random_batch(trainee.model, "4x12").keys(), "a step leaves its batch whole"


def test_random_encoders_have_a_seed_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    monkeypatch.setitem(SIZES, "roberta_base", SIZES["roberta_base"] | small)
    state = torch.random.get_rng_state()
    plans = [make_plan("roberta_base", "cpu", seed=seed) for seed in (1, 1, 2)]
    first, again, third = (build_encoder(plan)[0] for plan in plans)
    assert torch.equal(torch.random.get_rng_state(), state)
    hashes = [checksum(model.named_parameters()) for model in (first, again, third)]
    assert hashes[0] == hashes[1] != hashes[2]
    plan = make_plan("roberta_base", "cpu")
    assert (plan.kernels, plan.precision) == ("stock", "fp32"), "as the paper's profile has it"
    model, weights = build_encoder(plan)
    assert checksum(model.named_parameters()) == hashes[0] and weights == "random, seed 1"
    assert serve(model.eval(), random_batch(model, "2x8")).shape == (2, 2)


def test_methods_are_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA at r = 8, and bottleneck adapters of its budget."""
    for precision in ("fp32", "bf16"):
        inject(monkeypatch, precision)
        plan = make_plan("minilm", "cpu")
        assert (plan.kernels, plan.precision) == ("fused", precision), "as mini, which follows the machine"
    assert plan.methods == tuple(TITLES)
    assert method_run(plan, "lora").method.rank == 8 and method_run(plan, "lora").method.targets == ("q", "v")
    assert method_run(plan, "houlsby").method.bottleneck == 8
    assert method_run(plan, "pfeiffer").method.bottleneck == 16


# Time.


def test_orders_are_seeded_permutations() -> None:
    names = list("abcdefg")
    drawn = list(orders(names, 35, 1, "16x28"))
    assert drawn == list(orders(names, 35, 1, "16x28")) != list(orders(names, 35, 2, "16x28"))
    assert all(sorted(order) == names for order in drawn)
    assert len({tuple(order) for order in drawn}) > 25
    assert all(len({order[place] for order in drawn[7 * k : 7 * k + 7]}) == 7 for place in range(7) for k in range(5))
    assert len({(one, other) for order in drawn for one, other in itertools.pairwise(order)}) > 25, "neighbours change"


def test_every_round_visits_every_method_once(plan: Plan) -> None:
    log: list[tuple[str, str]] = []
    rounds, calls, names, batches = 4, 2, ["a", "b", "c"], ["1x2", "3x4"]
    work = {shape: {name: lambda n=name, s=shape: log.append((n, s)) for name in names} for shape in batches}
    ticks: list[int] = []
    plan = other(plan, rounds=rounds, calls=calls)
    samples, busy = measure.visit(plan, "step", work, lambda: ticks.append(1))
    assert len(ticks) == rounds and (busy is None or busy >= 0)
    keys = {(s["round"], s["shape"], s["method"]) for s in samples}
    assert len(keys) == len(samples) == rounds * len(names) * len(batches)
    assert all(s["kind"] == "step" and s["ms"] >= 0 for s in samples)
    warm, visits = log[: len(names) * len(batches)], log[len(names) * len(batches) :]
    assert set(warm) == {(name, shape) for name in names for shape in batches}
    assert len(visits) == len(keys) * (1 + calls), "one call of each visit is not timed"
    planned = {shape: list(orders(names, rounds, plan.seed, shape)) for shape in batches}
    assert visits[:: calls + 1] == [
        (name, shape) for number in range(rounds) for shape in batches for name in planned[shape][number]
    ]


# Statistics.


@pytest.mark.parametrize("count", [6, 7, 9, 12, 20, 41, 100])
def test_the_interval_is_that_of_the_sign_test(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    expected = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    assert median_interval(values) == (expected.low, expected.high)


def test_five_rounds_give_no_interval() -> None:
    assert median_interval(np.arange(5.0)) is None
    assert median_interval(np.arange(6.0)) == (0.0, 5.0)
    assert FEWEST == 6


def test_paired_ratios_cancel_what_a_round_shares() -> None:
    slow = np.array([1.0, 9.0, 2.0, 30.0, 1.0, 4.0])
    samples = [
        {"kind": "step", "method": name, "shape": "1x8", "round": number, "ms": ms * factor}
        for name, factor in (("full", 1.0), ("lora", 1.25))
        for number, ms in enumerate(slow)
    ]
    to_full = summarise({key: {"settings": None} for key in ("full", "lora")}, samples, {})["lora"]["to_full"]
    assert (to_full["step_ms"]["1x8"], *to_full["step_ms_interval"]["1x8"]) == pytest.approx((1.25, 1.25, 1.25))


@pytest.mark.parametrize(("noise", "told"), [(0.02, False), (0.3, True)])
def test_unsteady_times_are_reported(noise: float, told: bool) -> None:
    factors = 1 + noise * np.array([1.0, -1.0, 0.0, 1.0, -1.0, 0.0])
    samples = [
        {"kind": "latency", "method": name, "shape": "1x8", "round": number, "ms": 20 * factor}
        for name in ("base", "lora_merged")
        for number, factor in enumerate(factors)
    ]
    found = unsteady_text(summarise({key: {"settings": None} for key in ("base", "lora_merged")}, samples, {}))
    assert [f"reaches {noise:.0%} from it" in line for line in found] == [True] * told


# The whole measurement.


@pytest.fixture(scope="module")
def measured(tmp_path_factory, model_dir) -> Path:
    """The folder of one device, with an encoder measured under two kernels."""
    results = tmp_path_factory.mktemp("results")
    for rounds, kernels, methods in ((6, "stock", "lora_merged base full lora"), (1, "fused", "lora_merged base")):
        what = f"--model local --methods {methods} --kernels {kernels} --precision fp32 --device cpu"
        shapes = f"--rounds {rounds} --step-shapes 3x8 4x12 --latency-shapes 2x8"
        main([*what.split(), *shapes.split(), "--path", str(model_dir), "--results", str(results)])
    (device,) = (results / "efficiency").iterdir()
    return device


def test_files(measured: Path) -> None:
    found = {str(path.relative_to(measured)) for path in measured.rglob("*") if path.is_file()}
    served = ("summary.json", "samples.csv", "latency.png", "latency.svg")
    assert found == {
        *("efficiency.md", "efficiency.csv", "local-stock-fp32/training.png", "local-stock-fp32/training.svg"),
        *(f"{folder}/{name}" for folder in ("local-stock-fp32", "local-fused-fp32") for name in served),
    }
    assert re.fullmatch(r"[a-z0-9-]+", measured.name)


def test_the_summary_has_every_key_and_follows_from_the_samples(measured: Path) -> None:
    summary = read_summary(measured / "local-stock-fp32" / "summary.json")
    assert list(summary) == ["about", "base", "full", "lora", "lora_merged"]
    assert all(tuple(summary[name]) == KEYS for name in summary if name != "about")
    lora, full, merged = summary["lora"], summary["full"], summary["lora_merged"]
    assert lora["trainable"] == 2 * 2 * 2 * 8 * 32, "layers, q and v, A and B, r = 8, d = 32"
    assert lora["to_full"]["trainable"] == pytest.approx(lora["trainable"] / full["trainable"], abs=1e-6)
    assert lora["checkpoint_bytes"] < full["checkpoint_bytes"] and lora["to_full"]["checkpoint_bytes"] < 1
    for name in ("base", "lora_merged"):
        assert summary[name]["trainable"] is None and summary[name]["step_ms"] is None
        assert summary[name]["peak_mib"] is None and summary[name]["to_full"]["step_ms"] is None
    assert set(lora["step_ms"]) == set(lora["saved_activation_bytes"]) == {"3x8", "4x12"}
    assert set(lora["peak_mib"]) == {"4x12"} and set(merged["latency_ms"]) == {"2x8"}

    samples = np.genfromtxt(
        measured / "local-stock-fp32" / "samples.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )

    def times(kind: str, method: str, shape: str) -> np.ndarray:
        chosen = samples[(samples["kind"] == kind) & (samples["method"] == method) & (samples["shape"] == shape)]
        return chosen["ms"][np.argsort(chosen["round"])]

    ratios = times("step", "lora", "3x8") / times("step", "full", "3x8")
    assert len(ratios) == 6
    assert lora["to_full"]["step_ms"]["3x8"] == pytest.approx(np.median(ratios), abs=1e-5)
    assert lora["to_full"]["step_ms_interval"]["3x8"] == pytest.approx([ratios.min(), ratios.max()], abs=1e-5)
    merged_ratios = times("latency", "lora_merged", "2x8") / times("latency", "base", "2x8")
    assert merged["to_base"]["latency_ms"]["2x8"] == pytest.approx(np.median(merged_ratios), abs=1e-5)
    assert merged["latency_ms"]["2x8"] == pytest.approx(np.median(times("latency", "lora_merged", "2x8")), abs=1e-4)
    assert summary["base"]["to_base"]["latency_ms"]["2x8"] == 1.0


def test_the_summary_says_where_it_is_from_and_no_more(measured: Path, model_dir: Path) -> None:
    text = (measured / "local-fused-fp32" / "summary.json").read_text()
    about = json.loads(text)["about"]
    assert about["plan"]["path"] == model_dir.name and str(model_dir) not in text
    assert about["model"]["weights"].startswith("sha256:") and about["machine"]["packages"]["torch"]
    assert about["idle"]["idle"] in (True, False, None)
    assert set(about["idle"]["cores busy with others"]) == {"before", "during steps", "during served batches"}


def test_tables_and_figures_are_rebuilt_byte_for_byte(measured: Path) -> None:
    files = build(measured)
    assert len(files) == 2 + 4 + 2, "nothing trained in the second, so there is no figure of it"
    assert {name: (measured / name).read_bytes() for name in files} == files
    text = files["efficiency.md"].decode()
    assert text.count("| LoRA, merged |") == 2 and text.count("| Full fine-tuning |") == 2
    one_round, six_rounds = sorted(re.findall(r"Medians of .*", text))
    assert one_round.endswith("too few to say how certain they are: 6 rounds would.") and "interval" in six_rounds
    assert "Hu et al. 2021, Table 1" in text and "LoRA merged / base: 1 lies within the interval at" in text
    rows = files["efficiency.csv"].decode().splitlines()
    assert rows[0] == "model,kernels,precision,method,quantity,shape,value,low,high,to_full,to_base"
    assert "local,stock,fp32,lora,trainable,,2048,,,0." in "\n".join(rows)


def test_a_profiles_page_shows_them_and_follows_them(measured: Path, tmp_path: Path) -> None:
    """Each summary gives a table for training and one for serving. A changed number shows in everything made of it."""
    results = tmp_path / "results"
    shutil.copytree(measured, results / "efficiency" / measured.name)
    before = {table.name: table for table in report.build("mini", (), results).tables if "efficiency" in table.name}
    assert len(before) == 3, "nothing was trained in one of the two"
    path = results / "efficiency" / measured.name / "local-stock-fp32" / "summary.json"
    summary = json.loads(path.read_text())
    summary["lora"]["trainable"] = 31337
    summary["lora_merged"]["latency_ms"]["2x8"] = 987.65
    path.write_text(json.dumps(summary))
    after = report.build("mini", (), results)
    tables = {table.name: table for table in after.tables}
    changed = {name for name, old in before.items() if tables[name].markdown() != old.markdown()}
    assert {name.rpartition("_")[2] for name in changed} == {"training", "serving"}
    page = after.html(dict.fromkeys(after.figures, b""))
    assert b"31,337" in page and b"987.65" in page


def test_tables_need_no_torch(measured: Path) -> None:
    code = "import sys; from lora.cost.efficiency.report import build; from pathlib import Path; import hashlib\n"
    code += f"build(Path({str(measured)!r})); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["about"].update(schema=9), "not a summary of schema 1"),
        (lambda s: s["about"].pop("idle"), "about must have the keys"),
        (lambda s: s.update(gpt={}), "gpt, which is not one of base, full"),
        (lambda s: s["lora"].pop("to_full"), "a method must have the keys"),
        (lambda s: s["lora"]["step_ms"].update({"9x9": 1.0}), "step_ms must be by the plan's shapes"),
        (lambda s: s["lora"]["step_ms"].update({"3x8": "fast"}), "step_ms must hold numbers"),
        (lambda s: s["about"]["plan"].update(rounds=0), "--rounds must be >= 1"),
    ],
)
def test_a_broken_summary_is_refused(measured: Path, tmp_path: Path, change, message: str) -> None:
    summary = json.loads((measured / "local-stock-fp32" / "summary.json").read_text())
    change(summary)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        build(tmp_path)


def test_without_references_there_are_no_ratios(tmp_path: Path) -> None:
    samples = [{"kind": "latency", "method": "lora", "shape": "1x8", "round": 0, "ms": 2.0}]
    summary = summarise({"lora": {"settings": None}}, samples, {})
    assert summary["lora"]["to_full"] is None and summary["lora"]["to_base"] is None
    assert summary["lora"]["latency_ms"] == {"1x8": 2.0} and summary["lora"]["latency_ms_interval"] == {"1x8": None}


def test_table_1_s_batches_are_served_with_stock_modules(model_dir, tmp_path, monkeypatch, capsys) -> None:
    """The paper's: 32x512, 16x256 and 1x128. The tiny encoder reads 64 tokens and refuses them with their length."""
    planned = []

    def measure(plan, *_):
        planned.append(plan)
        build_encoder(plan)

    monkeypatch.setattr("lora.cost.efficiency.measure.measure", measure)
    given = ["--model", "local", "--path", str(model_dir), "--device", "cpu", "--results", str(tmp_path)]
    for more in (["--table-1"], ["--table-1", "--kernels", "fused"]):
        with pytest.raises(SystemExit) as ended:
            main([*given, *more])
        assert ended.value.code == 2 and "a shape has 512 tokens, but local reads at most 64" in capsys.readouterr().err
    assert [plan.kernels for plan in planned] == ["stock", "fused"]
    assert {plan.latency_shapes for plan in planned} == {("1x128", "16x256", "32x512")}
    assert planned[0].step_shapes == make_plan("minilm", "cpu").step_shapes
    with pytest.raises(SystemExit) as ended:
        main([*given, "--table-1", "--latency-shapes", "1x8"])
    assert ended.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_the_default_lies_on_top_and_the_rest_below(monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "bf16")
    top = Path("results/efficiency/some-cpu")
    assert place(make_plan("minilm", "cpu"), top) == top
    assert place(make_plan("minilm", "cuda"), top) == top, "a GPU's default are the stock kernels"
    assert place(make_plan("minilm", "cpu", precision="fp32"), top) == top / "minilm-fused-fp32"
    assert place(make_plan("roberta_large", "cpu"), top) == top / "roberta_large-stock-fp32"
    assert (make_plan("minilm", "cpu").step_shapes, make_plan("minilm", "cpu").latency_shapes) == (
        shapes.STEP, shapes.LATENCY,
    )  # fmt: skip


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt3"], f"--model must be one of {', '.join(MODELS)}, got 'gpt3'"),
        (["--methods", "prefix"], f"--methods must be of {', '.join(TITLES)}, got 'prefix'"),
        (["--device", "cuda"], "--device is cuda, but torch sees no CUDA device here"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
        (["--calls", "0"], "--calls must be >= 1, got 0"),
        (["--threads", "0"], "--threads must be >= 1, got 0"),
        (["--seed", "-1"], "--seed must be in [0, 2^31), got -1"),
        (["--step-shapes", "16by28"], "--step-shapes must be <rows>x<tokens>, such as 16x128, got '16by28'"),
        (["--latency-shapes", "1x8", "1x8"], "--latency-shapes must be not empty, without repeats"),
        (["--model", "local"], "--path must be given with --model local only, got None"),
        (["--path", "somewhere"], "--path must be given with --model local only, got 'somewhere'"),
        (["--model", "local", "--path", "absent"], "model folder absent has no config.json"),
        (["--kernels", "quick"], "invalid choice: 'quick'"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--results", str(tmp_path / "results")])
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "results").exists()


def test_kernels_and_shapes_that_do_not_fit(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--kernels must be stock on a GPU, got 'fused'"):
        other(plan, kernels="fused", device="cuda")
    with pytest.raises(UserError, match="a shape has 65 tokens, but local reads at most 64"):
        build_encoder(other(plan, latency_shapes=("1x65",)))
    folder = tiny.folder(tmp_path / "distilbert", "distilbert")
    with pytest.raises(UserError, match="does not cover model type distilbert"):
        measure.training_work(other(plan, path=str(folder), kernels="fused"), {"full": {}})


def test_auto_is_the_gpu_unless_the_kernels_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device("auto", kernels).type for kernels in (None, "stock", "fused")] == ["cuda", "cuda", "cpu"]
    assert resolve_device("cpu", None).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", None).type == "cpu"
