"""The runs that every side trains: this project's configurations, and the same settings and examples as files."""

import json
from collections.abc import Sequence
from pathlib import Path

from lora.config.compose import compose_run
from lora.config.encoder_files import locate
from lora.config.run import RunConfig
from lora.cost.throughput.job import PeerRun
from lora.data.tasks import TASKS
from lora.errors import UserError

TASKS_TIMED = ("reviews", "ratings")  # one sentence each; far above chance after two epochs of 1,000 examples
TRAIN_ROWS = 1000
EPOCHS = 2
PEFT_TARGETS = {"q": "query", "k": "key", "v": "value"}  # PEFT's suffixes of module names, for BERT and RoBERTa
PEFT_HEAD = ("pooler", "classifier")  # this project trains these with LoRA; see `lora.models.modules.is_head`


def common_overrides(train_rows: int = TRAIN_ROWS, epochs: int = EPOCHS) -> list[str]:
    """The overrides of the profile mini in every run. The profile's precision is the faster one on this machine."""
    return [
        "profile=mini",
        "method=lora",
        "rates=null",  # user-defined rates differ from those of the committed measurements
        f"data.train_rows={train_rows}",
        f"train.epochs={epochs}",
        "runtime.tracking=off",  # no side sends copies to W&B
    ]


def grid(tasks: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """(task, seed) pairs, seed by seed, so that the first few runs cover every task."""
    return [(task, seed) for seed in seeds for task in tasks]


def seeds_of_round(number: int, runs: int, tasks: Sequence[str] = TASKS_TIMED) -> list[int]:
    """The seeds of one round; no two rounds share one.

    Raises: UserError: If `runs` is not a multiple of the number of tasks, or gives a task fewer than two seeds.
    """
    if runs < 2 * len(tasks) or runs % len(tasks):
        raise UserError(
            f"--runs must be a multiple of {len(tasks)} (the tasks {', '.join(tasks)}) and at least "
            f"{2 * len(tasks)}, got {runs}"
        )
    count = runs // len(tasks)
    return list(range(number * count + 1, (number + 1) * count + 1))


def export_rows(config: RunConfig, folder: Path) -> Path:
    """Write the splits that a run reads as JSON lines, for a script. Returns: Their folder."""
    from lora.data.read import read  # loads pandas and datasets

    task, data = TASKS[config.task], config.data
    splits = read(task, data.source, data.path, data.revision, data.train_rows).splits
    target = folder / config.task
    target.mkdir(parents=True)
    for split, name in zip(task.training_splits, ("train", "validation"), strict=True):
        columns = {column: splits[split][column][:] for column in (*task.columns, "label")}
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        (target / f"{name}.json").write_text("\n".join(lines) + "\n")
    return target


def peer_run(config: RunConfig, rows: Path) -> PeerRun:
    """The peers' form of a LoRA run on an encoder with BERT's module names.

    Raises: UserError: If the run has a setting that the peers' script lacks.
    """
    task, train, method = TASKS[config.task], config.train, config.method
    if method.name != "lora" or method.ranks or not set(method.targets) <= set(PEFT_TARGETS):
        raise UserError(
            f"the peers train LoRA of one rank on {', '.join(PEFT_TARGETS)} of BERT, got {config.method.slug}"
        )
    if train.warmup_steps is not None or train.accumulation != 1 or train.clip_norm is None:
        raise UserError("the peers' script has warmup_frac, clip_norm and no accumulation; the run has others")
    shared = {key: getattr(train, key) for key in ("epochs", "batch", "eval_batch", "lr", "weight_decay", "clip_norm")}
    return PeerRun(
        task=config.task,
        seed=config.seed,
        model=locate(config.model)[0],
        rows=str(rows),
        columns=task.columns,
        outputs=len(task.labels) or 1,
        metric=task.metric,
        metrics=task.metrics,
        max_length=config.data.max_length,
        warmup_frac=train.warmup_frac,
        rank=method.rank,
        alpha=method.alpha,
        lora_dropout=method.dropout,
        targets=tuple(PEFT_TARGETS[target] for target in method.targets),
        head=PEFT_HEAD,
        **shared,
    )


def peer_runs(pairs: Sequence[tuple[str, int]], rows: Path, overrides: Sequence[str]) -> list[PeerRun]:
    """The peers' form of the runs. Writes their examples below `rows`, once per task."""
    found = []
    for task, seed in pairs:
        config = compose_run([*overrides, f"task={task}", f"seed={seed}"])
        written = rows / task
        found.append(peer_run(config, written if written.is_dir() else export_rows(config, rows)))
    return found
