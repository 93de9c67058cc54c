"""The plan of a measurement: encoder, methods, kernels. No torch, so that mistakes are reported before it is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lora.checks import Problems
from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.cost import shapes
from lora.methods.titles import METHOD_TITLES

TITLES = {  # measured form of the encoder -> title, in the tables' order
    "base": "Base, untouched",
    **{name: METHOD_TITLES[name] for name in ("full", "bitfit", "houlsby", "pfeiffer")},
    "lora": "LoRA, unmerged",
    "peft": "LoRA, by PEFT",
    "lora_merged": "LoRA, merged",
}
ONLY_SERVED, ONLY_TRAINED = ("base", "lora_merged"), ("peft",)
MODELS = {  # encoder -> overrides of a run that trains it: its profile, model and task
    "minilm": ("profile=mini", "task=reviews"),
    "roberta_base": ("profile=paper", "protocol=printed", "model=roberta_base", "task=sst2"),
    "roberta_large": ("profile=paper", "protocol=printed", "model=roberta_large", "task=sst2"),
    "local": ("profile=small", "model=local", "task=sst2"),
}
RANDOM = ("roberta_base", "roberta_large")  # full size with random weights, so that nothing is downloaded
ROUNDS = 20  # ours: MiniLM in about five minutes on two cores


@dataclass(frozen=True)
class Plan:
    """The settings of one measurement.

    Args:
        model: A key of `MODELS`.
        path: Folder of the encoder; only with model=local.
        methods: Keys of `TITLES`, in their order.
        kernels: A run's `train.kernels`. `fused` is for CPUs only.
        precision: A run's `train.precision`. Served weights have this precision; trained weights are float32.
        threads: Number of torch threads.
        rounds: Number of rounds. Each visits every method once, in its own order.
        step_shapes: Shapes of training batches, as `<rows>x<tokens>`.
        latency_shapes: Shapes of served batches.
    """

    model: str
    path: str | None
    methods: tuple[str, ...]
    kernels: Literal["fused", "stock"]
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: int
    rounds: int = ROUNDS
    step_shapes: tuple[str, ...] = shapes.STEP
    latency_shapes: tuple[str, ...] = shapes.LATENCY

    def __post_init__(self):
        problems = Problems()
        problems.check((self.model == "local") == bool(self.path), "--path", "given with --model local only", self.path)
        problems.check(self.rounds >= 1, "--rounds", ">= 1", self.rounds)
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
    def served(self) -> tuple[str, ...]:
        return tuple(name for name in self.methods if name not in ONLY_TRAINED)

    @property
    def largest(self) -> str:
        """The training batch with the most tokens, whose steps give the peak memory."""
        return max(self.step_shapes, key=shapes.size)


def make_plan(
    model: str,
    device: str,
    methods: Sequence[str] = tuple(TITLES),
    kernels: str | None = None,
    precision: str | None = None,
    **others,
) -> Plan:
    """Make a plan. Kernels, precision and threads default to those of the profile that trains this encoder.

    Raises: UserError: If a setting breaks its rule.
    """
    usual = profile_run(model, f"runtime.device={device}")
    return Plan(
        model=model,
        device=device,
        methods=tuple(sorted(set(methods), key=[*TITLES].index)),
        kernels=kernels or ("stock" if device == "cuda" else usual.train.kernels),
        precision=precision or usual.train.precision,
        threads=usual.runtime.threads,
        path=others.pop("path", None),
        **others,
    )


def profile_run(model: str, *overrides: str) -> RunConfig:
    """A LoRA run of the profile that trains this encoder; with model=local, it has no path yet."""
    return compose_run([*MODELS[model], "method=lora", *overrides])


def run_of(plan: Plan, name: str) -> RunConfig:
    """The run whose method, optimizer and encoder are measured under `name`.

    Every encoder gets the methods of `mini`: Houlsby adapters of size 8 and Pfeiffer adapters of size 16, which have
    about as many parameters as LoRA with r = 8, as in Table 2's rows of 0.8M on RoBERTa-large.
    """
    method = {"base": "full", "lora_merged": "lora", "peft": "lora"}.get(name, name)
    train = (f"train.kernels={plan.kernels}", f"train.precision={plan.precision}")
    runtime = (f"runtime.device={plan.device}", f"runtime.threads={plan.threads}")
    run = compose_run([*MODELS["minilm"], f"method={method}", *train, *runtime])
    model = profile_run(plan.model, *runtime).model
    return replace(run, model=replace(model, path=plan.path) if plan.model == "local" else model)


def place(plan: Plan, device: Path) -> Path:
    """The plan's folder: the device's own for the default model, kernels and precision, else one below it."""
    usual, keys = make_plan("minilm", plan.device), ("model", "kernels", "precision")
    if all(getattr(plan, key) == getattr(usual, key) for key in keys):
        return device
    return device / f"{plan.model}-{plan.kernels}-{plan.precision}"
