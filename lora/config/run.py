"""RunConfig: all settings of one run in five sections, and the run_id that names the scientific ones.

conf/config.yaml describes every setting, with its unit and source.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lora.checks import Problems, SettingsError, build
from lora.data.tasks import SOURCES_OF, Task
from lora.methods import METHODS
from lora.methods.configs import MethodConfig

MNLI_CHILDREN = ("mrpc", "rte", "stsb")
# The settings in every run's name. One that is added later takes part only where it differs from its default, so that
# runs that were made before keep their names.
NAMED = {
    "model": "name source hub_id revision pickle unused_weights attention",
    "data": "train_rows max_length batching",
    "train": "lr batch epochs warmup_frac warmup_steps weight_decay clip_norm adam_beta1 adam_beta2 adam_eps dropout "
    "head_dropout selection precision kernels",
    "method": "name targets rank alpha ranks alpha_at_rank dropout init_a init_std scaling "
    "bottleneck activation init_truncated layer_norms drop_layers type options decay",
}
EPOCHS, LENGTH, SIZE, DRAW = "train.epochs", "data.max_length", "data.train_rows", "data.train_draw"  # keys of settings
# Paths, memory and machine, in the sections that do not name them above: they name no run.
UNNAMED = ("path", "source", "revision", "gradient_checkpointing", "accumulation", "eval_batch")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and where it comes from.

    Args:
        name: Name in run ids and tables.
        source: `embedded` (installed by `make setup`), `local` (the folder `path`) or `hub` (the id `hub_id`).
        pickle: `never`, or `weights_only` for a hub id without safetensors: torch's weights-only loader runs no code.
        unused_weights: Regular expressions for checkpoint tensors of the pretraining head.
        gradient_checkpointing: Recompute activations in the backward pass. Affects only memory and time.
    """

    name: str
    source: Literal["embedded", "local", "hub"]
    hub_id: str | None
    path: str | None
    revision: str | None
    pickle: Literal["never", "weights_only"]
    unused_weights: tuple[str, ...]
    attention: Literal["eager", "sdpa"]
    gradient_checkpointing: bool

    def __post_init__(self):
        problems = Problems()
        plain = self.name.replace("_", "").replace("-", "").isalnum()
        problems.check(plain, "name", "letters, digits, - and _", self.name)
        for key in ("hub_id", "revision"):
            problems.check(self.source != "hub" or bool(getattr(self, key)), key, "stated with source=hub", None)
        problems.done()


@dataclass(frozen=True)
class DataConfig:
    """The data and how it is batched.

    Args:
        train_draw: Whether each seed draws train rows of its own, which all methods and sizes share, or all the same.
    """

    source: Literal["embedded", "tsv", "parquet", "hub", "own"]
    path: str | None
    revision: str | None
    train_rows: int | None
    max_length: int
    batching: Literal["random", "similar_length"]
    train_draw: Literal["fixed", "seed"] = "fixed"

    def __post_init__(self):
        problems = Problems()
        problems.check(self.source != "hub" or bool(self.revision), "revision", "stated with source=hub", None)
        fits = self.source != "own" or self.path is None
        problems.check(fits, "path", "null for a task of your own, whose file names its rows", self.path)
        problems.check(self.train_rows is None or self.train_rows > 1, "train_rows", "null or >= 2", self.train_rows)
        problems.check(self.max_length >= 4, "max_length", ">= 4 tokens", self.max_length)
        problems.done()


@dataclass(frozen=True)
class TrainConfig:
    """Optimization: AdamW with linear warm-up and decay, and how the reported epoch is chosen.

    Args:
        selection: What chooses the reported epoch: the dev rows (of MNLI, the matched ones), or as many train rows as
            the run trains on, which it does not train on.
        class_weights: `balanced` weighs the loss of an example of class k by n / (K n_k), of the n train rows.
        accumulation: Names the run where its dropout masks differ from those of whole batches (`RunConfig.settings`).
        weight_decay: Applied to all trainable parameters except biases and LayerNorms (the Trainer of `run_glue.py`).
    """

    lr: float
    batch: int
    accumulation: int
    epochs: int
    warmup_frac: float
    warmup_steps: int | None
    weight_decay: float
    clip_norm: float | None
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    dropout: float | None
    head_dropout: float | None
    selection: Literal["matched", "train_rows"]
    precision: Literal["fp32", "bf16"]
    kernels: Literal["fused", "stock"]
    eval_batch: int
    lora_plus: float | None = None
    head_lr: float | None = None
    class_weights: Literal["balanced"] | None = None

    def __post_init__(self):
        problems = Problems()
        problems.check_ranges(self, "> 0 and finite", "lr adam_eps clip_norm lora_plus head_lr")
        problems.check_ranges(self, ">= 1", "batch accumulation epochs eval_batch")
        problems.check_ranges(self, ">= 0", "warmup_steps weight_decay")
        problems.check_ranges(self, "in [0, 1)", "warmup_frac adam_beta1 adam_beta2 dropout head_dropout")
        fits = self.accumulation < 1 or self.batch % self.accumulation == 0
        problems.check(fits, "batch", f"a multiple of accumulation ({self.accumulation})", self.batch)
        problems.done()


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings that may differ between two launches of the same run; not part of its identity.

    Args:
        save_adapter: Save the adapter of the best epoch, or the whole encoder. Runs that others start from always do.
        rate_from, rate_name: None in older records.
    """

    results: str
    outputs: str
    device: Literal["auto", "cpu", "cuda"]
    threads: int
    save_adapter: bool
    retry_failed: bool
    checkpoint_minutes: float | None = None
    tracking: Literal["auto", "offline", "off"] = "off"
    group: str | None = None
    rate_from: Literal["stated", "tuned", "conf", "default"] | None = None
    rate_name: str | None = None

    def __post_init__(self):
        problems = Problems()
        problems.check_ranges(self, ">= 1", "threads")
        problems.check_ranges(self, ">= 0", "checkpoint_minutes")
        problems.done()


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    Args:
        protocol: Name of the set of hyperparameters that the values come from.
        start: With `mnli`, the parameters that an MNLI run of the same method trained, with a new head (paper, section
            5.2). For full fine-tuning these are the whole encoder.
        start_run: Run_id of that MNLI run: a run's name depends on its parent's settings.
    """

    protocol: Literal["printed", "released", "dagger", "ours", "long"]
    task: str
    seed: int
    start: Literal["pretrained", "mnli"]
    start_seed: int | None
    start_run: str | None
    model: ModelConfig
    method: MethodConfig
    data: DataConfig
    train: TrainConfig
    runtime: RuntimeConfig

    def __post_init__(self):
        problems = Problems()
        problems.check(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
        if self.start == "mnli":
            rule = f"pretrained unless task is {', '.join(MNLI_CHILDREN)}"
            problems.check(self.task in MNLI_CHILDREN, "start", rule, self.start)
            alone = self.method.name == "peft" or getattr(self.method, "starts_in_base", False)
            problems.check(not alone, "start", "pretrained with method.name=peft and init_a=pissa or olora", self.start)
        else:
            for key in ("start_seed", "start_run"):
                problems.check(getattr(self, key) is None, key, "null unless start=mnli", getattr(self, key))
        plus = self.train.lora_plus
        rule = f"null with method.name={self.method.name}, which has no factors"
        problems.check(plus is None or self.method.name == "lora", "train.lora_plus", rule, plus)
        if self.train.kernels == "fused":
            recomputes, rule = self.model.gradient_checkpointing, "false with train.kernels=fused; use stock"
            device = self.runtime.device
            problems.check(device != "cuda", "runtime.device", "cpu or auto with train.kernels=fused", device)
            problems.check(not recomputes, "model.gradient_checkpointing", rule, recomputes)
            covers = not needs_stock(dataclasses.asdict(self.method))
            problems.check(covers, "train.kernels", "stock or auto with method.name=peft and method.dora", "fused")
        problems.done()

    @property
    def rows(self) -> dict[str, Any]:
        """The arguments of `lora.data.read.read` for the rows of this run."""
        rows = {name: getattr(self.data, name) for name in ("source", "path", "revision", "train_rows")}
        return rows | {"draw": self.seed if self.data.train_draw == "seed" else None}

    @property
    def slug(self) -> str:
        """The method's, marked if B has a rate of its own."""
        return f"{self.method.slug}{'-plus' if self.train.lora_plus else ''}"

    @cached_property
    def run_id(self) -> str:
        """The name of the run: a readable part and 8 hex digits of the hash of its scientific settings."""
        canonical = json.dumps(self.settings(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        start = "" if self.start == "pretrained" else f".{self.start}"
        return f"{self.model.name}.{self.slug}.{self.task}{start}.s{self.seed}-{digest}"

    def settings(self) -> dict[str, Any]:
        """The settings that name the run: all except paths and the machine.

        The source of the data is excluded because the same data is available in several forms. The record holds a
        fingerprint of what was read, and a record of other data under the same name is refused.
        """
        settings = dataclasses.asdict(self)
        del settings["runtime"]
        for section, keys in NAMED.items():
            defaults = {f.name: f.default for f in dataclasses.fields(getattr(self, section))}
            for key, value in list(settings[section].items()):
                if key not in keys.split() and (key in UNNAMED or value == defaults[key]):
                    del settings[section][key]
        dropouts = (self.train.dropout, self.train.head_dropout, getattr(self.method, "dropout", 0))
        if self.train.accumulation > 1 and self.train.kernels == "stock" and any(p != 0 for p in dropouts):
            # micro-batches draw other dropout masks than whole batches; the fused kernels' belong to examples
            settings["train"]["accumulation"] = self.train.accumulation
        if "targets" in settings["method"]:
            settings["method"]["targets"] = sorted(settings["method"]["targets"])
        return settings

    def for_record(self) -> dict[str, Any]:
        """The whole configuration for a record. Absolute paths keep only their last name, since records are shared."""
        config = dataclasses.asdict(self)
        for section, key in (("model", "path"), ("data", "path"), ("runtime", "results"), ("runtime", "outputs")):
            if config[section][key] is not None and Path(config[section][key]).is_absolute():
                config[section][key] = Path(config[section][key]).name
        return config


def needs_stock(method: Mapping[str, Any]) -> bool:
    """Whether the fused kernels lack a method: DoRA and those of PEFT."""
    return bool(method.get("dora")) or method.get("name") == "peft"


@dataclass(frozen=True)
class PlannedRun:
    """One run, trained or not.

    Args:
        config: Its validated settings, with every `auto` resolved and the tuned rate, if any.
        experiments: All experiments that expect it. A run shared by several is trained once.
        options: Group of conf/ -> the option that was chosen, for method, model and protocol.
        stated: Setting -> its value, of those that the command or the grid states.
    """

    config: RunConfig
    task: Task
    experiments: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)

    run_id = property(lambda self: self.config.run_id)
    model = property(lambda self: self.config.model.name)
    method = property(lambda self: self.config.method.name)
    slug = property(lambda self: self.config.slug)
    seed = property(lambda self: self.config.seed)
    protocol = property(lambda self: self.config.protocol)
    start = property(lambda self: self.config.start)
    parent = property(lambda self: self.config.start_run, doc="The MNLI run that it starts from, in the same sweep.")
    examples = property(lambda self: self.train_rows * self.config.train.epochs, doc="Over all epochs.")

    whole_rows = property(lambda self: self.task.official_rows["train"], doc="Number of rows of the train split.")

    @property
    def train_rows(self) -> int:
        """Number of train rows: a part of the split, or the whole split."""
        part = self.config.data.train_rows
        return self.whole_rows if part is None else min(part, self.whole_rows)


def run_config(mapping: Mapping[str, Any], task: Task) -> RunConfig:
    """Validate a composed configuration of a task. Raises: SettingsError: With every broken rule of every section."""
    method = mapping.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if name not in METHODS:
        raise SettingsError([f"method.name must be one of {', '.join(METHODS)}, got {name!r}"])
    problems = Problems()
    built = METHODS[name].config()
    config = None
    try:  # each, so that the other sections are checked too
        built = build(METHODS[name].config, method, "method.")
    except SettingsError as error:
        problems += error.problems
    try:
        config = build(RunConfig, {**mapping, "method": built})
        sources = SOURCES_OF[task.family]
        source = config.data.source
        problems.check(source in sources, "data.source", f"{' or '.join(sources)} for task {task.name}", source)
        whole = task.official_rows["train"]
        part = config.data.train_rows
        if config.data.train_draw == "seed":
            least = max(2, len(task.labels))
            rule = f"from {least}, a row for each class, to {whole - 1} with train_draw=seed (all rows need no draw)"
            problems.check(part is not None and least <= part < whole, SIZE, rule, part)
        if config.train.selection == "train_rows":
            rule = f"at most half of {whole} with train.selection=train_rows, since as many choose the epoch"
            problems.check(part is not None and 2 * part <= whole, SIZE, rule, part)
            problems.check(config.data.train_draw == "seed", DRAW, "seed with it", config.data.train_draw)
    except SettingsError as error:
        problems += error.problems
    problems.done()
    return config
