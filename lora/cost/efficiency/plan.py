"""What is measured, on which encoder and with which kernels. No torch here: a mistake is told before it is loaded."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora.checks import Problems
from lora.config.compose import compose_run
from lora.config.run import ModelConfig, RunConfig
from lora.cost import shapes
from lora.errors import UserError
from lora.methods.titles import METHOD_TITLES

TITLES = {  # of what is measured, in the tables' order
    "base": "Base, untouched",
    **{name: METHOD_TITLES[name] for name in ("full", "bitfit", "houlsby", "pfeiffer")},
    "lora": "LoRA, unmerged",
    "lora_merged": "LoRA, merged",
}
ONLY_SERVED = ("base", "lora_merged")  # nothing trains in them
MODELS = {  # -> the settings of a profile that trains this encoder
    "minilm": ("profile=mini", "task=reviews"),
    "roberta_base": ("profile=paper", "protocol=printed", "model=roberta_base", "task=sst2"),
    "roberta_large": ("profile=paper", "protocol=printed", "model=roberta_large", "task=sst2"),
    "local": ("profile=small", "model=local", "task=sst2"),
}
RANDOM = ("roberta_base", "roberta_large")  # of full size with random weights, so that nothing is fetched
ROUNDS, CALLS = 20, 1  # ours: MiniLM in about five minutes on two cores


@dataclass(frozen=True)
class Plan:
    """One call of the experiment.

    Args:
        model: A key of `MODELS`.
        path: Folder of the encoder, with model=local.
        methods: Keys of `TITLES`, in their order.
        kernels: As `train.kernels` of a run. `fused` is for the CPU.
        precision: As `train.precision`. What is served is held in it; what trains is float32.
        threads: Of torch.
        rounds: Every method is visited once in each, in an order of its own.
        calls: Timed calls of one visit, after one that is not timed; their median is the visit's.
        seed: Of weights, inputs, methods and orders.
        step_shapes: Of training batches, as `<rows>x<tokens>`.
        latency_shapes: Of served batches.
    """

    model: str
    path: str | None
    methods: tuple[str, ...]
    kernels: Literal["fused", "stock"]
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: int
    rounds: int = ROUNDS
    calls: int = CALLS
    seed: int = 1
    step_shapes: tuple[str, ...] = shapes.STEP
    latency_shapes: tuple[str, ...] = shapes.LATENCY

    def __post_init__(self):
        problems = Problems()
        problems.check(self.model in MODELS, "--model", f"one of {', '.join(MODELS)}", self.model)
        problems.check((self.model == "local") == bool(self.path), "--path", "given with --model local only", self.path)
        problems.check(bool(self.methods), "--methods", "not empty", self.methods)
        for name in self.methods:
            problems.check(name in TITLES, "--methods", f"of {', '.join(TITLES)}", name)
        for key in ("threads", "rounds", "calls"):
            problems.check(getattr(self, key) >= 1, f"--{key}", ">= 1", getattr(self, key))
        problems.check(0 <= self.seed < 2**31, "--seed", "in [0, 2^31)", self.seed)
        problems.check(self.kernels == "stock" or self.device == "cpu", "--kernels", "stock on a GPU", self.kernels)
        for key in ("step_shapes", "latency_shapes"):
            given, option = getattr(self, key), f"--{key.replace('_', '-')}"
            problems.check(len(set(given)) == len(given) > 0, option, "not empty, without repeats", given)
            for shape in given:
                problems.check(shapes.is_shape(shape), option, "<rows>x<tokens>, such as 16x128", shape)
        problems.done()

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(name for name in self.methods if name not in ONLY_SERVED)

    @property
    def largest(self) -> str:
        """The training batch of most tokens: peak memory is that of its steps."""
        return max(self.step_shapes, key=shapes.size)


def make_plan(
    model: str,
    device: str,
    methods: Sequence[str] = tuple(TITLES),
    kernels: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    **others,
) -> Plan:
    """Fill in what was not asked for: kernels, precision and threads of the profile that trains this encoder.

    Raises: UserError: If a setting breaks its rule.
    """
    if model not in MODELS:
        raise UserError(f"--model must be one of {', '.join(MODELS)}, got {model!r}")
    usual = profile_run(model, f"runtime.device={device}")
    return Plan(
        model=model,
        device=device,
        methods=tuple(sorted(set(methods), key=lambda name: [*TITLES, name].index(name))),
        kernels=kernels or ("stock" if device == "cuda" else usual.train.kernels),
        precision=precision or usual.train.precision,
        threads=usual.runtime.threads if threads is None else threads,
        path=others.pop("path", None),
        **others,
    )


def profile_run(model: str, *overrides: str) -> RunConfig:
    """A run of the profile that trains this encoder; with model=local, nothing says yet where it lies."""
    return compose_run([*MODELS[model], "method=lora", *overrides])


def method_run(plan: Plan, name: str) -> RunConfig:
    """The run whose method and optimizer are measured under `name`, with the plan's kernels and precision.

    Methods are those of `mini` on every encoder: Houlsby adapters of size 8 and Pfeiffer adapters of size 16, which are
    of the size of LoRA's r = 8, as in Table 2's rows of 0.8M on RoBERTa-large.
    """
    method = {"base": "full", "lora_merged": "lora"}.get(name, name)
    train = (f"train.kernels={plan.kernels}", f"train.precision={plan.precision}")
    return compose_run([*MODELS["minilm"], f"method={method}", f"seed={plan.seed}", *train])


def model_config(plan: Plan) -> ModelConfig:
    model = profile_run(plan.model).model
    return dataclasses.replace(model, path=plan.path) if plan.model == "local" else model


def is_usual(plan: Plan) -> bool:
    """Whether the plan is the default one of this device, whose summary lies on top."""
    usual = make_plan("minilm", plan.device)
    keys = ("model", "kernels", "precision")
    return all(getattr(plan, key) == getattr(usual, key) for key in keys)


def place(plan: Plan, device: Path) -> Path:
    """The device's own folder for MiniLM as its profile trains it, and folders below it for all else."""
    return device if is_usual(plan) else device / f"{plan.model}-{plan.kernels}-{plan.precision}"
