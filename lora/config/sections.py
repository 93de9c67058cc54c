"""The sections of a run's settings: encoder, data, optimization, and what may differ between two launches."""

import math
from dataclasses import dataclass
from typing import Literal

from lora.checks import Problems
from lora.data.tasks import MIN_TRAIN_ROWS


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and where it comes from.

    Args:
        name: Name in run ids and tables.
        source: `embedded` (installed by `make setup`), `local` (the folder `path`) or `hub` (the id `hub_id`).
        revision: Commit, tag or branch on the hub.
        pickle: `never`, or `weights_only` for a hub id without safetensors: torch's weights-only loader runs no code.
        unused_weights: Regular expressions for checkpoint tensors of the pretraining head.
        attention: Attention implementation in transformers.
        gradient_checkpointing: Recompute each layer's activations in the backward pass, with train.kernels=stock.
            Affects only memory and time.
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
    """The data and how it is batched.

    Args:
        source: `embedded`, `tsv` (the official layout under `path`), `parquet` (the hub's layout under `path`), `hub`;
            `own` for a user-defined task, whose definition locates its rows.
        train_rows: Size of a fixed subset of the train split; None uses the whole split.
        max_length: Maximum number of tokens; longer inputs are truncated.
        batching: `random`, or `similar_length` (the same examples per epoch, with less padding).
    """

    source: Literal["embedded", "tsv", "parquet", "hub", "own"]
    path: str | None
    revision: str | None
    train_rows: int | None
    max_length: int
    batching: Literal["random", "similar_length"]

    def __post_init__(self):
        problems = Problems()
        if self.source == "hub":
            problems.check(bool(self.revision), "revision", "stated with source=hub", self.revision)
        if self.source == "own":
            problems.check(
                self.path is None, "path", "null for a task of your own, whose file says where its rows lie", self.path
            )
        enough = self.train_rows is None or self.train_rows >= MIN_TRAIN_ROWS
        problems.check(enough, "train_rows", f"null or >= {MIN_TRAIN_ROWS}", self.train_rows)
        problems.check(self.max_length >= 4, "max_length", ">= 4 tokens", self.max_length)
        problems.done()


@dataclass(frozen=True)
class TrainConfig:
    """Optimization: AdamW with linear warm-up and decay, and how the reported epoch is chosen.

    Args:
        batch: Examples per optimizer step, over all processes and micro-batches.
        accumulation: Micro-batches per optimizer step and process. Affects only memory and time, except for dropout
            with train.kernels=stock: there, a value above 1 is part of the run's name.
        weight_decay: Applied to all trainable parameters except biases and LayerNorms (the Trainer of `run_glue.py`).
        dropout: Dropout in the encoder; None keeps the pretrained configuration's.
        head_dropout: Dropout in the classifier (Table 10's "CLS dropout"); None likewise.
        precision: Precision of activations and matrix products. Trainable parameters and the optimizer are float32.
        kernels: `stock`, transformers' modules, under autocast with bf16; or `fused` (`lora.training.fused`):
            compiled loops for CPUs. Their dropout masks differ, so the choice is part of a run's name.
        lora_plus: LoRA+'s ratio of B's rate to A's (Hayou et al. 2024); None trains both at `lr`.
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
    lora_plus: float | None = None

    def __post_init__(self):
        problems = Problems()
        for key in ("lr", "adam_eps"):
            value = getattr(self, key)
            problems.check(value > 0 and math.isfinite(value), key, "> 0 and finite", value)
        clip = self.clip_norm
        problems.check(clip is None or (clip > 0 and math.isfinite(clip)), "clip_norm", "null or > 0 and finite", clip)
        plus = self.lora_plus
        problems.check(plus is None or (plus > 0 and math.isfinite(plus)), "lora_plus", "null or > 0 and finite", plus)
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
    """Settings that may differ between two launches of the same run; not part of its identity.

    Args:
        results: Folder that holds `runs/` and `predictions/`.
        outputs: Folder for checkpoints and logs.
        device: `auto` uses a GPU if there is one, unless train.kernels is `fused`.
        save_adapter: Save the adapter of the best epoch in `outputs`/adapters; for full fine-tuning, the whole encoder.
            MNLI runs that others start from always save it.
        threads: Torch threads per run. They change the last bits on a CPU, so the record holds them.
        retry_failed: Retrain runs whose record says `failed`.
        checkpoint_minutes: Minutes between checkpoints. None, as in records older than checkpoints, writes one only
            when the run is asked to stop.
        tracking: Weights & Biases: `auto` (online with a key, else offline), `offline` or `off`.
        group: Group of the run in Weights & Biases: the experiment that requested it.
        rate_from: Origin of the learning rate: `stated` by the command, `tuned` by the user (`lora.config.rates`), or
            from the task's row in `conf`, or from its `default` row, which was not chosen for the task. None in older
            records.
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

    def __post_init__(self):
        problems = Problems()
        problems.check(self.threads >= 1, "threads", ">= 1", self.threads)
        minutes = self.checkpoint_minutes
        problems.check(minutes is None or minutes >= 0, "checkpoint_minutes", "null or >= 0", minutes)
        problems.done()
