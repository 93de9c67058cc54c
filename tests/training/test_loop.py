"""The training loop against a plain one, against itself, and under faults."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import peft.optimizers
import pytest
import tiny
import torch
from processor import HAS_BF16
from safetensors.numpy import load
from torch.nn import functional as F
from trained import run
from transformers import DebertaConfig, DebertaForSequenceClassification, Trainer, get_linear_schedule_with_warmup

from lora.config.run import run_config
from lora.data.batching import collate, encode, epoch_batches
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import DivergedError, UserError
from lora.files import ROOT
from lora.methods import METHODS, apply
from lora.methods.configs import BitFitConfig, FullConfig, LoraConfig
from lora.models.load import load_encoder
from lora.models.modules import trainable
from lora.rng import seed_for
from lora.training import device
from lora.training.device import start_process
from lora.training.step import lr_factor, make_optimizer

NO_DROPOUT = ("train.dropout=0.0", "train.head_dropout=0.0")


def plain_losses(config):
    """The mean loss of every epoch by a separate loop: plain torch, and the schedule by its formula."""
    task, train = TASKS[config.task], config.train
    data = read(task, config.data.source, config.data.path, None, None)
    encoder = load_encoder(config.model, task, config.seed, train.dropout, train.head_dropout)
    model = encoder.model
    apply(model, config.method, config.seed)
    rows = encode(data.splits["train"], task, encoder.tokenizer, config.data.max_length)
    named = dict(trainable(model))
    decayed = [p for n, p in named.items() if not n.endswith("bias") and "LayerNorm" not in n]
    others = [p for n, p in named.items() if n.endswith("bias") or "LayerNorm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_eps,
    )
    per_epoch = math.ceil(len(rows.lengths) / train.batch)
    total, step, means = per_epoch * train.epochs, 0, []
    warmup = math.ceil(train.warmup_frac * total)
    torch.manual_seed(seed_for(config.seed, "dropout", 0))
    for epoch in range(1, train.epochs + 1):
        model.train()
        losses = []
        for chosen in epoch_batches(rows.lengths, train.batch, config.seed, epoch, True):
            factor = step / warmup if step < warmup else (total - step) / (total - warmup)
            for group in optimizer.param_groups:
                group["lr"] = train.lr * factor
            batch = collate(rows, chosen, encoder.tokenizer.pad_token_id)
            labels = batch.pop("labels")
            out = model(**batch).logits
            loss = F.cross_entropy(out, labels) if task.labels else F.mse_loss(out.squeeze(-1), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(named.values(), train.clip_norm)
            optimizer.step()
            step += 1
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return means


@pytest.mark.parametrize(
    ("method", "task", "batch"),
    [("full", "cola", 12), ("lora", "stsb", 12), ("lora", "cola", 8), ("houlsby", "stsb", 8)],
)
def test_the_loop_equals_a_plain_one(tiny_config, method, task, batch):
    """With dropout: draws come in the same order. 40 examples in batches of 8, and of 12 with an uneven last one."""
    config = tiny_config(f"method={method}", f"task={task}", f"train.batch={batch}", "train.warmup_frac=0.3")
    record, *_ = run(config)
    assert [epoch["train_loss"] for epoch in record.epochs] == pytest.approx(plain_losses(config), rel=1e-5)


def test_accumulation_is_part_of_the_name_where_it_changes_dropout(tiny_config):
    names = {tiny_config(f"train.accumulation={n}").run_id for n in (1, 2, 4)}
    assert len(names) == 3
    dry = {tiny_config(f"train.accumulation={n}", *NO_DROPOUT).run_id for n in (1, 2)}
    fused = {tiny_config(f"train.accumulation={n}", "train.kernels=fused").run_id for n in (1, 2)}
    assert len(dry) == len(fused) == 1
    on_inputs = ("method=lora", "method.dropout=0.1", *NO_DROPOUT)
    assert len({tiny_config(f"train.accumulation={n}", *on_inputs).run_id for n in (1, 2)}) == 2


def test_gradient_checkpointing_changes_nothing(tiny_config):
    plain = run(tiny_config("method=lora"))[0]
    checkpointed = run(tiny_config("method=lora", "model.gradient_checkpointing=true"))[0]
    assert plain.run_id == checkpointed.run_id
    assert checkpointed.epochs == plain.epochs


def test_stored_predictions_give_the_recorded_metric(tiny_config):
    config = tiny_config("task=mnli", "train.epochs=3")
    record, packed, _ = run(config)
    stored = load(packed)
    assert set(stored) == {f"{epoch}.validation_{s}" for epoch in (1, 2, 3) for s in ("matched", "mismatched")}
    data = read(TASKS["mnli"], "tsv", config.data.path, None, None)
    for entry in record.epochs:
        epoch, metrics = entry["epoch"], entry["metrics"]
        hits = {s: stored[f"{epoch}.{s}"] == np.array(data.splits[s]["label"]) for s in TASKS["mnli"].validation_splits}
        for split, values in hits.items():
            assert metrics[split]["accuracy"] == pytest.approx(values.mean())
        assert metrics["pooled"]["accuracy"] == pytest.approx(np.concatenate(list(hits.values())).mean())
    for rule in ("best", "last"):
        metrics = record.epochs[record.selected[rule]["epoch"] - 1]["metrics"]
        assert record.selected[rule]["value"] == metrics["validation_matched"]["accuracy"]
    assert 0 < record.selected["split_half"]["value"] <= record.selected["best"]["value"]


def test_divergence_is_named_by_its_step(tiny_config):
    with pytest.raises(DivergedError, match=r"not finite at step \d+"):
        run(tiny_config("method=full", "train.lr=1e30", "train.clip_norm=1e30"))


def test_divergence_in_the_last_step_fails_the_run(tiny_config):
    """The loss of the last step is finite; the parameters after it are not."""
    config = tiny_config("method=full", "train.lr=1e39", "train.epochs=1", "train.batch=40", "train.warmup_steps=0")
    with pytest.raises(DivergedError, match="logits of evaluated examples are not finite"):
        run(config)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 10), (10, 10), (12, 10), (1, 1)])
def test_the_schedule_is_transformers_own(warmup, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (theirs,) = get_linear_schedule_with_warmup(optimizer, warmup, steps).lr_lambdas
    assert [lr_factor(step, warmup, steps) for step in range(steps + 3)] == [theirs(step) for step in range(steps + 3)]


ALONE = """
import sys
from lora.cli import main
from lora.training import loop
sys.modules |= dict.fromkeys(("accelerate", "peft", "loralib"))
print("sklearn" in sys.modules)
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code
print("loaded", *{"transformers.trainer", "evaluate", "wandb"} & set(sys.modules))
"""


def test_a_run_needs_no_peers_and_loads_nothing_that_is_slow(tiny_overrides):
    """Accelerate comes with the extra `peers`, for transformers' Trainer. Each of the others would double the start."""
    done = subprocess.run([sys.executable, "-c", ALONE, *tiny_overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded" and "copies:" not in done.stdout
    assert done.stdout.startswith("False\n"), "scikit-learn is loaded at the first evaluation"


def decay_groups(model, train):
    """The names of the parameters that decay, and of those that do not."""
    decayed, others = make_optimizer(model, train).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    found = [[names[id(p)] for p in group["params"]] for group in (decayed, others)]
    assert sorted(found[0] + found[1]) == sorted(name for name, _ in trainable(model))
    return set(found[0]), set(found[1])


def test_lora_plus_has_the_groups_of_its_released_code(tiny_config):
    """PEFT carries that code. Its model has the same head; the pooler, which it freezes, is a matrix and a bias too."""
    train = tiny_config("method=lora", "train.lora_plus=16", "train.weight_decay=0.1").train
    wrapped = peft.get_peft_model(tiny.model("bert"), peft.LoraConfig(r=3, target_modules=["query", "value"]))
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad = "lora_" in name or "pooler" in name or "classifier" in name
    theirs = peft.optimizers.create_loraplus_optimizer(
        wrapped, torch.optim.AdamW, lr=train.lr, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    model = tiny.model("bert")
    apply(model, LoraConfig(rank=3), seed=0)

    def groups(optimizer, named):
        of = {id(p): name for name, p in named}
        return {of[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}

    def renamed(name):
        short = name.removeprefix("base_model.model.").replace(".default.weight", "")
        return short.replace("lora_A", "lora_a").replace("lora_B", "lora_b")

    expected = groups(theirs, ((renamed(name), p) for name, p in wrapped.named_parameters()))
    assert groups(make_optimizer(model, train), trainable(model)) == expected


def test_the_head_trains_at_its_own_rate(tiny_config):
    model = tiny.model("bert")
    apply(model, LoraConfig(rank=3), seed=0)
    train = tiny_config("train.lr=1e-3", "train.head_lr=4e-3", "train.lora_plus=2", "train.weight_decay=0.1").train
    rates = {id(p): group["lr"] for group in make_optimizer(model, train).param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in trainable(model)}
    part = {"lora_a": 1e-3, "lora_b": 2e-3}
    assert found == {name: part.get(name.rpartition(".")[2], 4e-3) for name in found} and len(set(found.values())) == 3


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "deberta"])
@pytest.mark.parametrize("config", [FullConfig(), BitFitConfig(), LoraConfig(rank=2)], ids=lambda config: config.name)
def test_decay_spares_what_transformers_trainer_spares(config, architecture, tiny_config):
    if not tiny.takes(architecture, config.name):
        return
    if architecture == "deberta":  # has its own LayerNorm class, and one matrix for query, key and value
        model = DebertaForSequenceClassification(DebertaConfig(**tiny.COMMON, type_vocab_size=0))
        config = config if config.name != "lora" else LoraConfig(rank=2, targets=("o",))
    else:
        model = tiny.model(architecture)
    apply(model, config)
    decayed, others = decay_groups(model, tiny_config("train.weight_decay=0.1").train)
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    named = {name for name, _ in trainable(model)}
    assert decayed == theirs & named and others == named - theirs
    assert len(decayed) >= 2 and others


@pytest.mark.parametrize(("architecture", "method"), tiny.pairs(*tiny.BOTTLENECKS))
def test_with_adapters_all_trained_matrices_decay_and_no_vectors(architecture, method, tiny_config):
    """Pfeiffer adapters too, although they lie inside the module that replaces a LayerNorm."""
    model = tiny.model(architecture)
    dropped = {"drop_layers": 1} if method == "adapterdrop" else {}
    apply(model, METHODS[method].config(bottleneck=6, layer_norms="trained", **dropped))
    decayed, others = decay_groups(model, tiny_config("train.weight_decay=0.1").train)
    assert decayed == {name for name, p in trainable(model) if p.dim() == 2}
    assert any(".adapter.down.weight" in name for name in decayed) and others


def test_the_record_holds_a_config_that_names_it(tiny_config):
    config = tiny_config()
    record, *_ = run(config)
    assert run_config(record.config, TASKS[config.task]).run_id == record.run_id
    assert record.config["data"]["path"] == Path(config.data.path).name  # no path of this machine
    assert "/" not in record.config["model"]["path"]
    assert record.provenance["data"]["rows"] == {"train": 40, "validation": 20}
    assert record.provenance["data"]["is_part"] is True
    assert record.cost["optimizer_bytes"] >= 8 * (record.params["trainable_method"] + record.params["trainable_head"])


def test_bf16_where_the_processor_has_none_is_refused(tiny_config, monkeypatch):
    config = tiny_config("train.precision=bf16", "runtime.device=cpu")
    if HAS_BF16:
        start_process(config)
    monkeypatch.setattr(device, "has_bf16", lambda gpu: False)
    with pytest.raises(UserError, match=r"train\.precision is bf16, but this CPU has none"):
        start_process(config)
    start_process(tiny_config("train.precision=fp32", "runtime.device=cpu"))
