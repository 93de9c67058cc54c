"""PEFT's methods through its tuner classes: PEFT's own model of the exported folder is the truth."""

import contextlib
import dataclasses
import json
import math
import sys

import peft
import pytest
import tiny
import torch
import yaml
from comparing import equal_science
from stopping import NEVER, stop
from tiny_adapters import bytes_of, logits, train_steps, with_method
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from trained import ensure_record, planned, run

from lora.adapters.adapter import adapter_of
from lora.adapters.folder import save_adapter
from lora.adapters.merge import load_adapter, merge, swap, unmerge
from lora.adapters.peft import to_peft
from lora.cost.machine import COMMITTED
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT, read_object
from lora.methods import apply, stored_bytes
from lora.methods.bridge import REFUSED, parameters, tuner_config
from lora.methods.configs import PeftConfig
from lora.models.modules import checksum, is_head, trainable
from lora.sweep import worker
from lora.sweep.worker import verify_inputs
from lora.training.device import start_process
from lora.training.ranks import allocator
from lora.training.step import MicroBatch, make_optimizer, prepare_step

QV = ("q", "v")
TYPES = {  # type: options that fit width 32
    **{key: {} for key in ("adamss", "beft", "deft", "delora", "glora", "hira", "hra")},
    "adalora": {"init_r": 4, "target_r": 2},
    **{key: {} for key in ("loha", "lokr", "osf", "peanut", "tinylora", "unilora")},
    **{key: {"r": 4} for key in ("miss", "psoft", "pvera", "randlora", "shira", "vera")},
    **{key: {"n_frequency": 20} for key in ("fourierft", "waveft")},
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 16},
    "frod": {"progressbar": False},
    "gralora": {"r": 4, "gralora_k": 2},
    "ia3": {"feedforward_modules": ["f"]},
    "ln_tuning": {},
    "oft": {"r": 0, "oft_block_size": 4},
    "road": {"group_size": 16},
    "supertuning": {},
    "vblora": {"vector_length": 16},
}
OFF_BASE = ("c3a", "fourierft", "unilora", "vblora")  # start off the pretrained model
NAMES = {"ia3": ("k", "v", "f"), "ln_tuning": ("*[Nn]orm",)}
# Every type on BERT, every architecture with some types, and VeRA on all.
CASES = [(kind, "bert") for kind in TYPES]
CASES += [(kind, tiny.ARCHITECTURES[1 + number % 8]) for number, kind in enumerate(TYPES)]
CASES += [("vera", a) for a in tiny.ARCHITECTURES if ("vera", a) not in CASES]


PAGE = ROOT / "experiments" / "successors" / "README.md"
STEPS = read_object(
    COMMITTED / "efficiency" / "authenticamd-25-1-amd-epyc-2-cores" / "minilm-stock-fp32" / "summary.json"
)


def config_of(kind, architecture="bert"):
    targets = NAMES.get(kind, QV)
    if architecture == "modernbert" and kind != "ln_tuning":
        targets = ("q", *(target for target in targets if target not in ("q", "k", "v")), "k", "v")
    return PeftConfig(type=kind, targets=targets, options=TYPES[kind])


def trained(kind, architecture, steps=2):
    model = tiny.model(architecture)
    apply(model, config_of(kind, architecture), seed=3)
    train_steps(model, architecture, steps)
    return model.eval()


def test_every_type_is_tried_or_refused_with_a_reason_and_stands_on_the_page():
    assert {*TYPES} | {*REFUSED} == {kind.value.lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(TYPES) + len(REFUSED)
    assert {f"| `{kind}` | {reason} |" for kind, reason in REFUSED.items()} <= {*rows}


def test_what_peft_cannot_merge_leaves_the_model_as_it_was():
    model = trained("vera", "bert")
    with torch.no_grad():
        next(p for name, p in trainable(model) if "vera_lambda_b" in name)[0] = math.inf
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(UserError, match="PEFT cannot merge vera: NaNs"):
        merge(model)
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # of PEFT, where its own functions are called
@pytest.mark.parametrize(("kind", "architecture"), CASES)
def test_a_method_trains_reloads_bit_for_bit_and_is_peft_s_own(kind, architecture, tmp_path, bases):
    base, model = tiny.model(architecture), tiny.model(architecture)
    torch.rand(3)  # PEFT draws from the global generator
    apply(model, config_of(kind, architecture), seed=3)
    off = (logits(model.eval(), architecture) - logits(base, architecture)).abs().max().item()
    assert (off > 1e-5) == (kind in OFF_BASE)
    start = checksum(adapter_of(model).weights.items())
    model = trained(kind, architecture, 0)
    assert checksum(adapter_of(model).weights.items()) == start
    model = trained(kind, architecture)
    adapter = save_adapter(model, tmp_path / "ours")
    assert checksum(adapter.weights.items()) != start and stored_bytes(model) == bytes_of(adapter)
    assert set(adapter.head) == {name for name, _ in base.named_parameters() if is_head(base, name)}
    loaded = tiny.model(architecture)
    load_adapter(loaded, tmp_path / "ours")  # recognises its base: the pretrained weights are untouched
    assert torch.equal(logits(loaded.eval(), architecture), logits(model, architecture))
    assert {n for n, _ in trainable(loaded)} == {n for n, _ in trainable(model)}
    to_peft(tmp_path / "ours", tmp_path / "peft", base=bases / architecture)
    theirs = peft.PeftModel.from_pretrained(tiny.model(architecture), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs, architecture), logits(model, architecture), rtol=0, atol=1e-5)
    inputs = tiny.inputs(architecture)  # a row's score depends on no other row
    alone = [model(**{key: rows[i : i + 1] for key, rows in inputs.items()}).logits for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), model(**inputs).logits, rtol=0, atol=1e-5)
    before, weights = logits(model, architecture), {name: p.clone() for name, p in model.state_dict().items()}
    merge(model)
    torch.testing.assert_close(logits(model, architecture), before, rtol=0, atol=1e-5)
    unmerge(model)
    assert torch.equal(logits(model, architecture), before)
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    trains = sum(p.numel() for name, p in trainable(model) if not is_head(model, name))
    stores = sum(tensor.numel() for tensor in adapter.weights.values())
    lora = 2 * 2 * 8 * 2 * 32  # of rank 8 on two matrices of two layers
    options = ", ".join(f"{key}={value}" for key, value in TYPES[kind].items() if key != "progressbar") or "defaults"
    tried = ", ".join(sorted({architecture for other, architecture in CASES if other == kind}))
    starts = "yes" if off <= 1e-5 else "no"
    times = [STEPS[name]["step_ms"]["16x28"] for name in (kind, "lora") if kind in STEPS]
    step = f"{times[0] / times[1]:.2f}" if times else "-"
    shares = f"{trains / lora:.2f} | {stores / lora:.2f} | {step}"
    row = f"| `{kind}` | {options} | {starts} | {shares} | {tried} |"
    assert architecture != "bert" or row in PAGE.read_text(), f"{PAGE} should have this row:\n{row}"
    assert off > 1e-5 or (logits(base, architecture) - logits(model, architecture)).abs().max() > 1e-3


def deep():
    """A BERT of 12 layers: PEFT shortens the names of 20 modules or more to their ends."""
    return tiny.model("bert", num_hidden_layers=12)


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", [*TYPES, "ia3 by default"])
def test_an_adapter_of_a_deep_encoder_states_full_names_and_one_with_peft_s_ends_of_names_is_understood(kind, tmp_path):
    config = config_of(kind) if kind in TYPES else dataclasses.replace(config_of("ia3"), options={})
    model = with_method("bert", config, num_hidden_layers=12)
    adapter, expected = save_adapter(model, tmp_path / "ours"), logits(model, "bert")
    names = {name for name, module in model.named_modules() if hasattr(module, "base_layer")}
    assert {*adapter.method.targets} == names and len(names) >= 24
    load_adapter(loaded := deep(), tmp_path / "ours")
    assert torch.equal(logits(loaded, "bert"), expected)
    theirs = model.tuner.peft_config["default"]  # which was stored before
    ends = {"feedforward_modules": sorted(theirs.feedforward_modules)} if "ia3" in kind else {}
    options = adapter.method.options | ends
    earlier = dataclasses.replace(adapter.method, targets=tuple(sorted(theirs.target_modules)), options=options)
    assert (earlier == adapter.method) == (kind == "ia3")  # whose modules are named
    earlier = dataclasses.replace(adapter, method=earlier)
    load_adapter(loaded, earlier)
    assert torch.equal(logits(loaded, "bert"), expected)
    if kind in ("vera", "ia3 by default"):
        load_adapter(fresh := deep(), earlier)
        assert torch.equal(logits(fresh, "bert"), expected)
        deep().base_model.save_pretrained(tmp_path / "base")
        to_peft(earlier, tmp_path / "peft", base=tmp_path / "base")
        reloaded = peft.PeftModel.from_pretrained(deep(), tmp_path / "peft").eval()
        torch.testing.assert_close(logits(reloaded, "bert"), expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of PEFT's FRoD
@pytest.mark.parametrize("kind", TYPES)
def test_a_run_resumed_in_the_middle_is_the_uninterrupted_one_bit_for_bit(tiny_config, listening, kind):
    options = TYPES[kind] | ({"tinit": 3, "tfinal": 3} if kind == "adalora" else {})
    options |= ASA | {"final_warmup": 12} if kind == "adamss" else {}
    method = [f"method.type={kind}", f"method.targets={json.dumps(NAMES.get(kind, QV))}"]
    method.append(f"method.options={{{', '.join(f'{key}: {json.dumps(value)}' for key, value in options.items())}}}")
    config = tiny_config("method=peft", *method, "train.epochs=2", "runtime.save_adapter=true", NEVER)
    whole, *files = run(config)
    stop(config, 7)
    torch.rand(7)  # the next process finds the global generator in another state
    resumed, *again = run(config)
    assert (resumed.provenance["resumed"], whole.provenance["resumed"]) == (1, 0)
    assert equal_science(resumed, whole) and again == files


@pytest.mark.parametrize("kind", ["adalora", "adamss"])
def test_what_peft_allocates_is_as_in_its_own_loop(tiny_config, kind):
    """Its model adds AdaLoRA's penalty to the loss, and its allocators follow the optimizer."""
    options = {"adalora": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}, "adamss": ASA}[kind]
    given = ", ".join(f"{key}: {json.dumps(value)}" for key, value in options.items())
    config = tiny_config("method=peft", f"method.type={kind}", f"method.options={{{given}}}", "train.clip_norm=null")
    steps, batch = 8, tiny.inputs("bert")
    labels = torch.arange(len(batch["input_ids"])) % 2
    model, base = tiny.model("bert").eval(), tiny.model("bert").eval()
    apply(model, config.method, seed=3)
    step = prepare_step(model, config, TASKS[config.task], start_process(config), steps)
    more = {"total_step": steps} if kind == "adalora" else {}
    theirs = peft.get_peft_model(base, tuner_config(kind)(target_modules=["query", "value"], **more, **options))
    ours = {name.replace(".default", ""): p for name, p in trainable(model) if not is_head(model, name)}
    same = {name.removeprefix("base_model.model.").replace(".default", ""): p for name, p in theirs.named_parameters()}
    assert ours.keys() <= same.keys()
    with torch.no_grad():
        for name, parameter in ours.items():
            same[name].copy_(parameter)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad = parameter.requires_grad or is_head(base, name.removeprefix("base_model.model."))
    optimizer = make_optimizer(theirs, config.train)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, step.schedule.lr_lambdas[0])
    for number in range(steps):
        step.take(
            number, [(MicroBatch(torch.arange(len(labels)).numpy(), 1.0), {**batch, "labels": labels})], len(labels)
        )
        loss = theirs.base_model(**batch, labels=labels).loss  # PeftModel itself would leave the penalty out
        loss.backward()
        optimizer.step()
        schedule.step()
        theirs.base_model.update_and_allocate(number + 1)
        optimizer.zero_grad()
        for name, parameter in ours.items():
            torch.testing.assert_close(parameter, same[name], rtol=1e-4, atol=1e-6, msg=f"{name} after step {number}")
        assert {n for n, p in ours.items() if p.requires_grad} == {n for n in ours if same[n].requires_grad}
    if kind == "adalora":
        values = torch.cat([p.flatten() for name, p in ours.items() if "lora_E" in name])
        assert (values != 0).sum() == 2 * 4  # target_r on each of four matrices
    else:
        assert 4 <= sum(p.requires_grad for name, p in ours.items() if "adamss_A" in name) < 16


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("adalora", "init_r: 4, target_r: 2, tinit: 9, tfinal: 9", "lowers its ranks between .*: got 9, 9, 4 and 2"),
        ("adamss", "use_asa: true, asa_target_subspaces: 4", "freezes .* of 20 .*: got 100, 50, 1000 and 4"),
        ("adamss", "use_asa: true, init_warmup: 0, mask_interval: 1", "of 20 .*: got 1, 0, 1000 and 50"),
    ],
)
def test_an_allocator_needs_steps_in_which_it_allocates(tiny_config, kind, options, message):
    with pytest.raises(UserError, match=rf"{message} in a run of \d+ steps"):
        run(tiny_config("method=peft", f"method.type={kind}", f"method.options={{{options}}}", "train.epochs=1"))


# What gives options a meaning, and other values for them; those of one type alone as type.option.
CHANGES = yaml.safe_load("""
- [{}, {adamss.r: 8, adamss.init_weights: null, deft.alpha: 16, hra.r: 4, gralora.r: 6, c3a.block_size: 8, gralora_k: 4,
    shira.random_seed: 1, generator_seed: 1, boft_block_size: 8, oft_block_size: 8, group_size: 8, vector_length: 8,
    effective_rank: 8, tinylora.init_weights: uniform, c3a.init_weights: gaussian, ab_svd_init: pissa_init,
    config_A_B: vector, config_C: vector, config_D_E: vector, psoft_svd: lowrank, decomposition_method: qr,
    wavelet_family: db2, variant: road_2, feedforward_modules: [k], exclude_modules: [v],
    ln_tuning.exclude_modules: ["*output*"]}]
- [&asa {r: 8, num_subspaces: 4, asa_target_subspaces: 4, init_warmup: 1, final_warmup: 5, mask_interval: 3},
    {use_asa: true}]
- [{<<: *asa, use_asa: true}, {asa_target_subspaces: 8, init_warmup: 2, final_warmup: 4, mask_interval: 2,
    asa_importance_beta: 0.5, asa_uncertainty_beta: 0.5, asa_schedule_exponent: 1.0}]
- [{use_dynamic_rank: true, subspace_rank: 4, r: 8}, {svd_threshold: 0.9}]
- [{init_weights: false}, {init_scale: 0.5}]
- [{init_weights: uniform}, {init_v_bound: 0.5}]
- [{init_weights: mini}, {mini_r: 2}]
- [{r: 1}, {decompose_both: true}]
- [{rank_dropout: 0.5}, {rank_dropout_scale: true}]
- [{depth: 2}, {act_fn: gelu}]
- [{psoft_svd: lowrank}, {psoft_svd_lowrank_niter: 1, psoft.random_seed: 1}]
- [{use_cayley_neumann: true}, {num_cayley_neumann_terms: 2, cayley_neumann_eps: 0.01}]
- [{boft_block_size: 0, boft_block_num: 4}, {boft_block_num: 2}]
- [{oft_block_size: 0, r: 4}, {oft.r: 2}]
- [{coft: true}, {eps: 1.0}]
- [{r: 4, lora_alpha: 4}, {supertuning.r: 2, supertuning.lora_alpha: 2, supertuning.lora_dropout: 0.5}]
""")
ASA = {**CHANGES[1][0], "use_asa": True}
UNTRIED = {"pattern": "a mapping, and options hold none", "target_svd_config": "another", "mask_type": "has one value"}
UNTRIED |= {"progressbar": "is for the terminal", "runtime_offload_base_weight": "saves memory"}
UNTRIED |= {"stride_A": "works where PEFT shortens names, from 20 modules on"}


def behaviour(kind, options):
    """The parameters, logits in training and evaluation, and five steps of what PEFT allocates."""
    model, source = tiny.model("bert"), torch.Generator().manual_seed(0)
    batch, labels = tiny.inputs("bert"), torch.arange(5) % 2
    targets = NAMES.get(kind, ("q", "v", "f"))
    apply(model, PeftConfig(type=kind, targets=targets, options=TYPES[kind] | options), seed=3)
    seen = [tensor.clone() for tensor in model.state_dict().values()]
    with torch.no_grad():
        for name, parameter in trainable(model):
            if not is_head(model, name):
                parameter += 0.1 * torch.randn(parameter.shape, generator=source)
        for training in (True, False):
            torch.manual_seed(0)
            seen.append(model.train(training)(**batch).logits)
    if (ranks := allocator(model, 5)) is not None:
        optimizer = torch.optim.SGD([p for _, p in trainable(model)], lr=0.1)
        for step in range(1, 6):
            loss = F.cross_entropy(model(**batch).logits, labels)
            (loss + ranks.penalty() if kind == "adalora" else loss).backward()
            optimizer.step()
            ranks.update(step)
            optimizer.zero_grad()
            seen += [leaf.clone() for leaf in tree_leaves(ranks.state_dict()) if isinstance(leaf, torch.Tensor)]
        seen += [parameter.detach() for parameter in model.parameters()]
    return seen, sorted(adapter_of(model).weights)


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", TYPES)
def test_every_option_changes_a_run_or_is_refused(kind):
    settings = tuner_config(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)} | TYPES[kind]
    inherited = {field.name for field in dataclasses.fields(peft.LoraConfig)} if kind == "adalora" else set()
    refused = {"adalora": inherited - {"lora_alpha", "lora_dropout", "exclude_modules"}}  # AdaLoRA reads no others
    refused |= {"oft": {"module_dropout"}, "boft": {"boft_n_butterfly_factor"}}
    refused = refused.get(kind, set()) | {"fan_in_fan_out", "use_effective_conv2d"}
    near = {bool: lambda old: not old, int: lambda old: old + 1, float: lambda old: old / 2 or 0.5}
    for key in parameters(settings):
        rows = [(needs, values[name]) for needs, values in CHANGES for name in (f"{kind}.{key}", key) if name in values]
        needs, value = rows[0] if rows else ({}, near.get(type(defaults[key]), lambda old: "other")(defaults[key]))
        if key in refused:
            with pytest.raises(UserError, match=rf"options\.{key}(=2: Setting {key} to 1| is no parameter of {kind})"):
                behaviour(kind, {key: value})
        elif not any(key.endswith(word) for word in UNTRIED):
            (one, names), (other, others) = (behaviour(kind, needs | change) for change in ({}, {key: value}))
            equal = len(one) == len(other) and all(map(torch.equal, one, other)) and names == others
            assert not equal, f"{kind} with {key}={value}"


DRAWING = ("vera", "pvera", "randlora", "shira", "frod", "tinylora", "unilora", "fourierft", "waveft")


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", DRAWING)
def test_what_a_type_draws_and_freezes_is_the_same_for_all_seeds_or_each_seed_s_own(kind):
    found = {}
    for draw in ("fixed", "seed"):
        for seed in (1, 2):
            model, source = tiny.model("bert"), torch.Generator().manual_seed(0)
            apply(model, dataclasses.replace(config_of(kind), draw=draw), seed)
            for name, parameter in trainable(model):
                if not is_head(model, name):
                    parameter.data.normal_(generator=source)
            found[draw, seed] = logits(model, "bert")
            load_adapter(loaded := tiny.model("bert"), adapter_of(model))
            assert torch.equal(logits(loaded, "bert"), found[draw, seed])
    assert torch.equal(found["fixed", 1], found["fixed", 2])
    assert len({tuple(found[key].flatten().tolist()) for key in found}) == 3


BAD = [
    ({"type": "veraa"}, r"method\.type must be one of adalora, adamss, .*vera, waveft, got 'veraa'"),
    ({"type": "prefix_tuning"}, r"method\.type=prefix_tuning trains tokens in front"),
    ({"type": "lora"}, r"method\.type=lora is method=lora here"),
    ({"options": {"d_initail": 1.0}}, r"options\.d_initail is no parameter of vera .*; the nearest is d_initial; they"),
    ({"options": {"bias": "all"}}, r"options\.bias is no parameter of vera that can be set"),
    ({"type": "hra", "options": {"r": 4, "layers_to_transform": [0]}}, r"layers_to_transform is no parameter of hra"),
    ({"type": "ia3", "options": {"feedforward_modules": "f"}}, "feedforward_modules must be a list of .*, got 'f'"),
    ({"options": {"r": 4.0}}, r"options\.r must be an integer >= 0, got 4\.0"),
    ({"type": "hra", "draw": "seed"}, "draw must be fixed: hra freezes no draw"),
    ({"draw": "seed", "options": {"projection_prng_key": 1}}, "draw must be fixed: .* options state its seed"),
    ({"targets": ("qq",)}, r"target 'qq' is not in BertFor"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_mistakes_are_one_message(settings, message):
    with pytest.raises(UserError, match=message) as raised:
        apply(tiny.model("bert"), PeftConfig(**settings))
    assert "\n" not in str(raised.value)


def test_a_slice_of_a_fused_layer_is_refused():
    with pytest.raises(UserError, match=r"as a whole, and .*Wqkv\.q is one of 3 slices: name them all"):
        apply(tiny.model("modernbert"), PeftConfig(options={"r": 4}))


def test_a_pattern_means_modules_with_parameters():
    apply(model := tiny.model("modernbert"), PeftConfig(type="ln_tuning", targets=("*norm",)))
    assert len(model.applied.method.targets) == 5  # and an identity in the first of two layers


def test_without_peft_one_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"^method=peft needs PEFT: pip install 'lora-glue\[peers\]'$"):
        tuner_config("vera")


def test_a_merged_one_is_not_saved_or_swapped_and_a_second_adapter_replaces_the_first():
    model, other = trained("vera", "bert"), trained("vera", "bert", 5)
    merge(model)
    merge(model)  # changes nothing
    for change in (lambda: adapter_of(model), lambda: load_adapter(model, adapter_of(other))):
        with pytest.raises(UserError, match="this adapter is merged: call unmerge"):
            change()
    unmerge(model)
    with pytest.raises(UserError, match="swap and AdapterSet are for LoRA alone"):
        swap(tiny.model("bert"), adapter_of(model))
    load_adapter(model, adapter_of(other))
    assert torch.equal(logits(model, "bert"), logits(other, "bert"))
    with pytest.raises(UserError, match="the adapter is of PeftConfig"):
        load_adapter(trained("ia3", "bert", 0), adapter_of(other))


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_what_puts_it_on_keeps_the_mode_of_the_model_with_every_dropout():
    tried = []
    for kind in TYPES:
        keys = [key for key in parameters(tuner_config(kind)) if key.endswith("dropout") and kind != "oft"]
        if keys or kind == "pvera":  # which samples in training
            config = dataclasses.replace(config_of(kind), options=TYPES[kind] | dict.fromkeys(keys, 0.5))
            model, training = tiny.model("bert"), tiny.model("bert").train()
            for each in (model, training):
                apply(each, config, seed=3)
            assert not any(module.training for module in model.modules()), kind
            assert torch.equal(logits(model, "bert"), logits(model, "bert"))
            assert all(module.training for module in training.modules()), kind
            tried.append(kind)
    assert len(tried) > 15


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_what_trains_in_half_precision_is_what_trains_in_float32(kind):
    """PEFT's cast makes new parameters of some that are frozen, such as AdaLoRA's numbers of ranks."""
    config = dataclasses.replace(config_of(kind), targets=(*NAMES.get(kind, ()), *QV))  # ln_tuning takes both
    models = [tiny.model("bert"), tiny.model("bert").bfloat16()]
    names = [apply(model, config, 1) for model in models]
    assert names[0] and sorted(names[0]) == sorted(names[1])
    exact, rounded = (logits(model, "bert") for model in models)
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)
    assert rounded.dtype == torch.bfloat16 and {p.dtype for _, p in trainable(models[1])} == {torch.float32}
    rebuilt = kind in ("adamss", "frod", "psoft")  # whose clusters and signs of singular vectors rounding changes
    for model, other in zip(models, (tiny.model("bert").bfloat16(), tiny.model("bert")), strict=True):
        refused = pytest.raises(UserError, match=f"a part of {kind} from .* trained in .*float.*, and the model is in")
        with refused if rebuilt else contextlib.nullcontext():
            load_adapter(other, adapter_of(model))
            torch.testing.assert_close(logits(other, "bert").float(), logits(model, "bert").float(), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("kind", sorted({*TYPES} - {"ln_tuning"}))
def test_deberta_computes_in_bfloat16_under_autocast(kind):
    model = trained(kind, "deberta-v2")
    exact = logits(model, "deberta-v2")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits(model, "deberta-v2")
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", ["vera", "ln_tuning"])  # the second exchanges modules where it merges
def test_a_merged_model_in_another_dtype_is_unmerged_in_it_and_takes_no_state_dict(kind):
    model, plain = trained(kind, "bert"), trained(kind, "bert")
    merge(model)
    with pytest.raises(UserError, match="call unmerge before it is saved"):
        model.load_state_dict(plain.state_dict())
    unmerge(model.bfloat16())
    plain.bfloat16()
    assert torch.equal(logits(model, "bert"), logits(plain, "bert"))
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.state_dict().items())
    model.load_state_dict(plain.state_dict())


def test_decay_spares_what_multiplies(tiny_config):
    for method, spared in (("ia3", True), ("vera", False)):
        config = tiny_config(f"method={method}", "train.weight_decay=0.1", "train.kernels=auto")
        assert config.train.kernels == "stock"
        model = tiny.model("bert")
        apply(model, PeftConfig(**{**vars(config.method), "options": TYPES[method]}))
        groups = make_optimizer(model, config.train).param_groups
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        mine = [id(p) in decayed for name, p in trainable(model) if not is_head(model, name)]
        assert mine and {*mine} == {not spared} and decayed


def test_it_runs_on_the_stock_kernels_from_the_pretrained_encoder_alone(tiny_config):
    with pytest.raises(UserError, match=r"train\.kernels must be stock or auto with method\.name=peft and"):
        tiny_config("method=vera", "train.kernels=fused")
    with pytest.raises(UserError, match=r"start must be pretrained with method\.name=peft and"):
        tiny_config("method=vera", "task=rte", "start=mnli")
    names = [
        tiny_config("method=peft", f"method.options={options}").run_id
        for options in ("{r: 4}", "{r: 4, d_initial: 0.2}", "{r: 8}")
    ]
    assert len({*names}) == 3 and ".peft-vera-qv-r4.cola." in names[0]
    drawn = [tiny_config("method=peft", "method.options={r: 4}", f"method.draw={d}").run_id for d in ("fixed", "seed")]
    assert drawn[0] == names[0] and drawn[1] not in names  # runs from before the setting was there keep their names


def test_a_run_records_what_peft_resolved_and_decides_no_kernels_for_other_methods(tiny_config, monkeypatch):
    """`auto` takes the kernels of the runs in the folder, and PEFT's methods have no choice."""
    config = tiny_config("method=vera", "method.options={r: 4}", "train.kernels=auto", "train.epochs=1")
    record = ensure_record(config, mistakes_fail=False)
    stated = record.provenance["peft"]
    assert (stated["version"], stated["r"], stated["d_initial"]) == (peft.__version__, 4, 0.1)
    assert tiny_config("method=lora", "train.kernels=auto").train.kernels == "fused"
    assert tiny_config("method=vera", "method.options={r: 4}", "train.kernels=auto", "train.epochs=1") == config
    verify_inputs([planned(config)], [record], ())
    monkeypatch.setattr(worker, "version", lambda name: "0.99")
    with pytest.raises(UserError, match=r"the PEFT versions are not those .*\(0\.99 here, "):
        verify_inputs([planned(config)], [record], ())
