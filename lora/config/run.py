"""RunConfig: every setting of one run, validated at once; its run_id names the run by its scientific settings."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora.checks import Problems, SettingsError, build
from lora.data.tasks import MIN_TRAIN_ROWS, TASKS
from lora.methods import METHODS
from lora.methods.configs import MethodConfig

PROTOCOLS = ("printed", "released", "dagger", "ours", "long")
MNLI_CHILDREN = ("mrpc", "rte", "stsb")


@dataclass(frozen=True)
class ModelConfig:
    """Where an encoder comes from.

    Args:
        name: Its name in run ids and tables.
        source: `embedded` (installed by `make setup`), `local` (the folder `path`) or `hub` (the id `hub_id`).
        revision: Commit, tag or branch on the hub.
        pickle: `never`, or `weights_only` for a hub id without safetensors: torch's weights-only loader runs no code.
        unused_weights: Regular expressions of checkpoint tensors that belong to the pretraining head.
        attention: The attention's implementation in transformers.
        gradient_checkpointing: Recompute in the backward pass each layer with train.kernels=stock, what GELU takes
            with fused; changes memory and time only.
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
        problems.check(
            self.name.replace("_", "").replace("-", "").isalnum(), "name", "letters, digits, - and _", self.name
        )
        if self.source == "hub":
            problems.check(bool(self.hub_id), "hub_id", "an id with source=hub", self.hub_id)
            problems.check(bool(self.revision), "revision", "stated with source=hub", self.revision)
        problems.done()


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from and how they become batches.

    Args:
        source: `embedded`, `tsv` (the official layout under `path`), `parquet` (the hub's layout under `path`), `hub`.
        train_rows: Use a fixed subset of the train split of this size; None uses all of it.
        max_length: Tokens; longer inputs are cut.
        batching: `random`, or `similar_length` (same rows per epoch, batches of similar length; less padding).
    """

    source: Literal["embedded", "tsv", "parquet", "hub"]
    path: str | None
    revision: str | None
    train_rows: int | None
    max_length: int
    batching: Literal["random", "similar_length"]

    def __post_init__(self):
        problems = Problems()
        if self.source == "hub":
            problems.check(bool(self.revision), "revision", "stated with source=hub", self.revision)
        enough = self.train_rows is None or self.train_rows >= MIN_TRAIN_ROWS
        problems.check(enough, "train_rows", f"null or >= {MIN_TRAIN_ROWS}", self.train_rows)
        problems.check(self.max_length >= 4, "max_length", ">= 4 tokens", self.max_length)
        problems.done()


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation: AdamW, linear warmup and decay, and how the result is chosen.

    Args:
        batch: Examples per optimizer step, over all processes and accumulation steps.
        accumulation: Optimizer steps are split into this many passes; changes memory and time only.
        weight_decay: On everything that trains but biases and LayerNorms (released `run_glue.py`'s Trainer).
        dropout: None keeps the pretrained config's; a number replaces it in the encoder.
        head_dropout: The same, for the classifier (Table 10's "CLS dropout").
        precision: Of activations and matrix products; what trains, and the optimizer, are float32.
        kernels: `stock`, transformers' own modules, under autocast with bf16; or `fused` (`lora.training.fused`):
            compiled loops for CPUs. Their dropout masks differ, so a run's name says which.
        selection: The MNLI split whose headline metric picks the best epoch; other tasks have one split.
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
    selection: Literal["matched", "mismatched", "pooled"]
    precision: Literal["fp32", "bf16"]
    kernels: Literal["fused", "stock"]
    eval_batch: int

    def __post_init__(self):
        problems = Problems()
        for key in ("lr", "adam_eps"):
            value = getattr(self, key)
            problems.check(value > 0 and math.isfinite(value), key, "> 0 and finite", value)
        clip = self.clip_norm
        problems.check(clip is None or (clip > 0 and math.isfinite(clip)), "clip_norm", "null or > 0 and finite", clip)
        for key in ("batch", "accumulation", "epochs", "eval_batch"):
            problems.check(getattr(self, key) >= 1, key, ">= 1", getattr(self, key))
        problems.check(
            self.accumulation < 1 or self.batch % self.accumulation == 0,
            "batch",
            f"a multiple of accumulation ({self.accumulation})",
            self.batch,
        )
        problems.check(0 <= self.warmup_frac < 1, "warmup_frac", "in [0, 1)", self.warmup_frac)
        problems.check(
            self.warmup_steps is None or self.warmup_steps >= 0, "warmup_steps", "null or >= 0", self.warmup_steps
        )
        problems.check(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay)
        for key in ("adam_beta1", "adam_beta2"):
            problems.check(0 <= getattr(self, key) < 1, key, "in [0, 1)", getattr(self, key))
        for key in ("dropout", "head_dropout"):
            value = getattr(self, key)
            problems.check(value is None or 0 <= value < 1, key, "null or in [0, 1)", value)
        problems.done()


@dataclass(frozen=True)
class RuntimeConfig:
    """What may differ between two launches of the same run; not part of its identity.

    Args:
        results: Folder that holds `runs/` and `predictions/`.
        outputs: Folder for checkpoints and logs.
        device: `auto` takes a GPU where there is one, unless train.kernels is `fused`.
        save_adapter: Leave what the best epoch has trained in `outputs`/adapters: for full fine-tuning the whole
            encoder. MNLI runs that others start from do.
        threads: Of torch, per cell. It changes the last bits on a CPU, so the record keeps it.
        retry_failed: Train cells again whose record says `failed`.
        checkpoint_minutes: Between two checkpoints of a run; None, as in records from before there were any, leaves
            one only when the run is asked to stop.
        tracking: A copy for Weights & Biases: `auto` (online with a key, else offline), `offline` or `off`.
        group: Of the copy: the experiment that asked for the run.
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

    def __post_init__(self):
        problems = Problems()
        problems.check(self.threads >= 1, "threads", ">= 1", self.threads)
        minutes = self.checkpoint_minutes
        problems.check(minutes is None or minutes >= 0, "checkpoint_minutes", "null or >= 0", minutes)
        problems.done()


@dataclass(frozen=True)
class RunConfig:
    """One run, whole.

    Args:
        protocol: Which named set of hyperparameters the values came from.
        start: `pretrained`, or `mnli`: what an MNLI run of the same method trained, of full fine-tuning the whole body,
            with a new head (paper, section 5.2).
        start_seed: Seed of that MNLI run; None means the run's own seed.
        start_run: Its run_id, filled in by `compose_run`: a run's name follows all its parent's settings.
        seed: Of the head, the method's init, the data order and dropout, each in a generator of its own.
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
        problems.check(self.task in TASKS, "task", f"one of {', '.join(TASKS)}", self.task)
        problems.check(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
        if self.task in TASKS:
            embedded = TASKS[self.task].family == "embedded"
            problems.check(
                embedded == (self.data.source == "embedded"),
                "data.source",
                f"{'embedded' if embedded else 'tsv, parquet or hub'} for task {self.task}",
                self.data.source,
            )
        if self.start == "mnli":
            problems.check(
                self.task in MNLI_CHILDREN, "start", f"pretrained unless task is {', '.join(MNLI_CHILDREN)}", self.start
            )
        if self.train.kernels == "fused":
            problems.check(
                self.runtime.device != "cuda", "runtime.device", "cpu or auto with train.kernels=fused", "cuda"
            )
        if self.start != "mnli":
            problems.check(self.start_seed is None, "start_seed", "null unless start=mnli", self.start_seed)
        problems.done()

    @property
    def run_id(self) -> str:
        """A readable part and 8 hex digits of the scientific settings: the run's name everywhere."""
        canonical = json.dumps(self.settings(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        start = "" if self.start == "pretrained" else f".{self.start}"
        return f"{self.model.name}.{self.method.slug}.{self.task}{start}.s{self.seed}-{digest}"

    def settings(self) -> dict[str, Any]:
        """The settings that name the run: all but where things lie and which machine computes.

        The source of the rows is left out because the same rows come by several ways; what was read is fingerprinted
        in the record, and a record of other rows under the same name is refused (`lora.records.record`).
        """
        settings = dataclasses.asdict(self)
        del settings["runtime"]
        for key in ("path", "gradient_checkpointing"):
            del settings["model"][key]
        for key in ("source", "path", "revision"):
            del settings["data"][key]
        for key in ("accumulation", "eval_batch"):
            del settings["train"][key]
        if "targets" in settings["method"]:
            settings["method"]["targets"] = sorted(settings["method"]["targets"])
        return settings

    def for_record(self) -> dict[str, Any]:
        """The whole configuration, with only the names of folders of one machine: records are committed and shared."""
        config = dataclasses.asdict(self)
        for section, key in (("model", "path"), ("data", "path"), ("runtime", "results"), ("runtime", "outputs")):
            if config[section][key] is not None and Path(config[section][key]).is_absolute():
                config[section][key] = Path(config[section][key]).name
        return config


def run_config(mapping: Mapping[str, Any]) -> RunConfig:
    """Validate a composed configuration.

    Raises: SettingsError: With every broken rule of every section, each named by its key.
    """
    mapping = dict(mapping)
    method = mapping.get("method")
    name = method.get("name") if isinstance(method, Mapping) else None
    if name not in METHODS:
        raise SettingsError([f"method.name must be one of {', '.join(METHODS)}, got {name!r}"])
    problems: list[str] = []
    try:
        mapping["method"] = build(METHODS[name].config, method)
    except SettingsError as error:
        problems += [f"method.{problem}" for problem in error.problems]
        mapping["method"] = METHODS[name].config()  # only so that the other sections are checked in the same pass
    try:
        config = build(RunConfig, mapping)
    except SettingsError as error:
        raise SettingsError(problems + error.problems) from None
    if problems:
        raise SettingsError(problems)
    return config
