"""RunConfig: all settings of one run, validated together, and the run_id that names its scientific settings."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora.checks import Problems, SettingsError, build
from lora.config.sections import DataConfig, ModelConfig, RuntimeConfig, TrainConfig
from lora.data.tasks import SOURCES_OF, TASKS, fitting_sources
from lora.methods import METHODS
from lora.methods.configs import MethodConfig

PROTOCOLS = ("printed", "released", "dagger", "ours", "long")
MNLI_CHILDREN = ("mrpc", "rte", "stsb")
# The settings in every run's name. One that is added later takes part only where it differs from its default, so that
# runs that were made before keep their names.
NAMED = {
    "model": "name source hub_id revision pickle unused_weights attention",
    "data": "train_rows max_length batching",
    "train": "lr batch epochs warmup_frac warmup_steps weight_decay clip_norm adam_beta1 adam_beta2 adam_eps dropout "
    "head_dropout selection precision kernels",
    "method": "name targets rank alpha ranks alpha_at_rank dropout init_a init_std scaling "
    "bottleneck activation init_truncated layer_norms drop_layers",
}
# Paths, memory and machine: they name no run.
UNNAMED = {
    "model": ("path", "gradient_checkpointing"),
    "data": ("source", "path", "revision"),
    "train": ("accumulation", "eval_batch"),
    "method": (),
}


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    Args:
        protocol: Name of the set of hyperparameters that the values come from.
        start: `pretrained`, or `mnli`: the parameters that an MNLI run of the same method trained, with a new head
            (paper, section 5.2). For full fine-tuning these are the whole encoder.
        start_seed: Seed of that MNLI run; None means the run's own seed.
        start_run: Run_id of that MNLI run, which composing fills in: a run's name depends on its parent's settings.
        seed: Seed of the head, the method's initialization, the data order and dropout, each with its own generator.
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
            task = TASKS[self.task]
            fits = self.data.source in SOURCES_OF[task.family]
            rule = f"{fitting_sources(task)} for task {self.task}"
            problems.check(fits, "data.source", rule, self.data.source)
        if self.start == "mnli":
            problems.check(
                self.task in MNLI_CHILDREN, "start", f"pretrained unless task is {', '.join(MNLI_CHILDREN)}", self.start
            )
        if self.method.name != "lora":
            rule = f"null with method.name={self.method.name}, which has no factors"
            problems.check(self.train.lora_plus is None, "train.lora_plus", rule, self.train.lora_plus)
        if self.start == "mnli":
            taken = getattr(self.method, "starts_in_base", False)
            rule = "kaiming_uniform, gaussian or orthogonal with start=mnli"
            problems.check(not taken, "method.init_a", rule, getattr(self.method, "init_a", None))
        if self.train.kernels == "fused":
            problems.check(
                not getattr(self.method, "dora", False), "method.dora", "false with train.kernels=fused", True
            )
            problems.check(
                self.runtime.device != "cuda", "runtime.device", "cpu or auto with train.kernels=fused", "cuda"
            )
            checkpointing, rule = self.model.gradient_checkpointing, "false with train.kernels=fused; use stock"
            problems.check(not checkpointing, "model.gradient_checkpointing", rule, checkpointing)
        if self.start != "mnli":
            for key in ("start_seed", "start_run"):
                problems.check(getattr(self, key) is None, key, "null unless start=mnli", getattr(self, key))
        problems.done()

    @property
    def train_rows(self) -> int:
        """Number of train rows: a fixed part of the split, or the whole split."""
        official = TASKS[self.task].official_rows["train"]
        return official if self.data.train_rows is None else min(self.data.train_rows, official)

    @property
    def run_id(self) -> str:
        """The name of the run: a readable part and 8 hex digits of the hash of its scientific settings."""
        canonical = json.dumps(self.settings(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        start = "" if self.start == "pretrained" else f".{self.start}"
        return f"{self.model.name}.{self.method.slug}.{self.task}{start}.s{self.seed}-{digest}"

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
                if key not in keys.split() and (key in UNNAMED[section] or value == defaults[key]):
                    del settings[section][key]
        if self._accumulation_changes_results:
            settings["train"]["accumulation"] = self.train.accumulation
        if "targets" in settings["method"]:
            settings["method"]["targets"] = sorted(settings["method"]["targets"])
        return settings

    @property
    def _accumulation_changes_results(self) -> bool:
        """Whether micro-batches draw other dropout masks than whole batches. The fused kernels' belong to examples."""
        dropouts = (self.train.dropout, self.train.head_dropout, getattr(self.method, "dropout", 0))
        return self.train.accumulation > 1 and self.train.kernels == "stock" and any(p != 0 for p in dropouts)

    def for_record(self) -> dict[str, Any]:
        """The whole configuration for a record. Absolute paths keep only their last name, since records are shared."""
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
        mapping["method"] = METHODS[name].config()  # so that the other sections are checked too
    try:
        config = build(RunConfig, mapping)
    except SettingsError as error:
        raise SettingsError(problems + error.problems) from None
    if problems:
        raise SettingsError(problems)
    return config
