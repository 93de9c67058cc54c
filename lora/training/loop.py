"""Train one run, from its configuration to its record."""

import dataclasses
import functools
import hashlib
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from lora.config.run import RunConfig
from lora.data.batching import collate, encode, epoch_batches, to_device
from lora.data.read import TRAIN_ROWS, RunRows, read_for_run
from lora.data.tasks import Task
from lora.errors import DIVERGED, DivergedError
from lora.methods import apply, stored_bytes
from lora.models.load import Encoder, load_encoder
from lora.models.modules import count_parameters
from lora.records.provenance import code_version
from lora.records.record import ADAPTER, RunRecord, checkpoint_path
from lora.training.checkpoints import Checkpointer, made_from
from lora.training.device import device_name, optimizer_bytes, peak_mib, start_process
from lora.training.evaluation import choose_epochs, evaluate, predict, split_half
from lora.training.step import MicroBatch, micro_batches, prepare_step

RECORDED_PACKAGES = ("torch", "transformers", "datasets", "numpy")
RECORDED = (  # of the data
    *("source", "rows", "official_rows", "is_part", "skipped"),
    *("fingerprint", "dev_fingerprint", "train_fingerprint"),
)
FINITE_CHECK_STEPS = 16  # reading the loss after every step would stall a GPU


@dataclass(frozen=True)
class Progress:
    """The progress of a run, shown during training.

    Args:
        epochs: The finished ones, in the record's form.
        losses: The mean loss of each step of this epoch. Reading one waits for the device.
        seconds: The time of each step since the process began.
        rate: The learning rate of this step.
    """

    step: int
    steps: int
    epoch: int
    metric: float | None
    epochs: Sequence[dict[str, Any]] = ()
    losses: Sequence[Tensor] = ()
    seconds: Sequence[float] = ()
    rate: float = 0.0


def run(
    config: RunConfig,
    task: Task,
    report: Callable[[Progress], None] = lambda progress: None,
    run_rows: RunRows | None = None,
) -> tuple[RunRecord, bytes, dict[str, bytes] | None]:
    """Train and evaluate one configuration of a task.

    Args:
        report: Called after every optimizer step.
        run_rows: Of `lora.data.read.read_for_run`, if they are read already.
    Returns: The record, the dev-set predictions of every epoch as a safetensors file, and, if
        runtime.save_adapter is set, the adapter of `best` as the files of its folder.
    Raises: UserError: If data, model, method or device do not fit the configuration. DivergedError: If training
        diverges. InterruptedRunError: After a signal. The next call of the same run resumes from its checkpoint.
    """
    started = time.monotonic()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    train = config.train
    headline = task.scoring_split
    process = start_process(config)

    # Rows, model and method.
    data, further = run_rows or read_for_run(task, config.rows, train.selection)
    max_length = config.data.max_length
    encoder = load_encoder(config.model, task, config.seed, train.dropout, train.head_dropout, max_length)
    model, tokenizer = encoder.model, encoder.tokenizer
    apply(model, config.method, config.seed)
    if config.start == "mnli":
        from lora.training.mnli_start import start_from

        start_from(model, config)
    pack = adapter_packer(model, config, task, encoder) if config.runtime.save_adapter else None
    method = model.applied.method
    params = count_parameters(model)
    stored = stored_bytes(model)
    splits = {name: encode(rows, task, tokenizer, max_length) for name, rows in data.splits.items()}
    more = {
        name: encode(next(iter(part.splits.values())), task, tokenizer, max_length) for name, part in further.items()
    }
    truncated = {name: len(split.truncated) for name, split in splits.items()}
    if process.rank == 0 and any(truncated.values()):
        announce_truncated(config.task, sum(truncated.values()) / sum(data.rows.values()), max_length)

    # Kernels, optimizer and schedule.
    lengths = splits["train"].lengths
    steps = train.epochs * math.ceil(len(lengths) / train.batch)
    step = prepare_step(model, config, task, process, steps, data.splits["train"]["label"])

    # The loop, from the beginning or from the checkpoint.
    fingerprints = "".join([data.fingerprint, *(part.fingerprint for part in further.values())])
    inputs = made_from(config, fingerprints, encoder, process)
    path = checkpoint_path(config.runtime.outputs, config.run_id)
    checkpointer = Checkpointer(path, config.runtime.checkpoint_minutes, step, inputs)
    state = checkpointer.resume(started_at)
    metric = state.epochs[-1]["metrics"][headline][task.metric] if state.epochs else None

    def local_batches(rows: np.ndarray) -> Iterator[tuple[MicroBatch, dict[str, Tensor]]]:
        for micro in micro_batches(rows, process, train.accumulation):
            batch = to_device(collate(splits["train"], micro.rows, tokenizer.pad_token_id), process.device)
            state.tokens += batch["input_ids"].numel()
            yield micro, batch

    for epoch in range(len(state.epochs) + 1, train.epochs + 1):
        model.train()
        batches = epoch_batches(lengths, train.batch, config.seed, epoch, config.data.batching == "similar_length")
        for rows in batches[len(state.losses) :]:
            clock, rate = time.monotonic(), step.schedule.get_last_lr()[0]
            state.losses.append(step.take(state.step, local_batches(rows), len(rows)))
            if state.step % FINITE_CHECK_STEPS == 0:
                check_losses(state.losses, state.step)
            state.step_seconds.append(time.monotonic() - clock)
            report(Progress(state.step, steps, epoch, metric, state.epochs, state.losses, state.step_seconds, rate))
            checkpointer.pause(state)
        check_losses(state.losses, state.step)
        between = functools.partial(checkpointer.pause, state)
        arguments = task, tokenizer.pad_token_id, train.eval_batch, process, between
        predictions = {}
        dev_loss = {}
        for name in task.validation_splits:
            predictions[name], dev_loss[name] = predict(model, splits[name], *arguments)
        values = evaluate(predictions, splits, task, config.runtime.outputs)
        if TRAIN_ROWS in more:
            choosing = {TRAIN_ROWS: predict(model, more[TRAIN_ROWS], *arguments)[0]}
            values |= evaluate(choosing, more, task, config.runtime.outputs)
        metric = values[headline][task.metric]
        mean_loss = torch.stack(state.losses).mean().item()
        losses = {"train_loss": mean_loss, "loss": dev_loss}
        entry = {"epoch": epoch, "step": state.step, **losses, "metrics": values}
        selected = choose_epochs([*state.epochs, entry], task)
        is_best = selected["best"]["epoch"] == epoch
        if "test" in more and is_best:  # after the choice, which it does not enter
            of_test = {"test": predict(model, more["test"], *arguments)[0]}
            values |= evaluate(of_test, more, task, config.runtime.outputs)
        state.epochs.append(entry)
        state.losses = []
        state.predictions[epoch] = {name: torch.from_numpy(predicted) for name, predicted in predictions.items()}
        if pack is not None and is_best:
            state.adapter = pack(selected)

    # The record.
    selected = choose_epochs(state.epochs, task)
    arrays = {epoch: {name: t.numpy() for name, t in tensors.items()} for epoch, tensors in state.predictions.items()}
    selected["split_half"] = {"value": split_half(arrays, splits, task)}
    if "test" in more:
        of_best = state.epochs[selected["best"]["epoch"] - 1]["metrics"]["test"]
        selected["test"] = {"value": of_best[task.metric], "rows": further["test"].rows["test"]}
    seconds = state.earlier_seconds + time.monotonic() - started
    packed = save({f"{epoch}.{name}": array for epoch, by_split in arrays.items() for name, array in by_split.items()})
    record = RunRecord(
        run_id=config.run_id,
        status="ok",
        error=None,
        started_at=state.started_at,
        seconds=round(seconds, 3),
        config=config.for_record(),
        params=params,
        epochs=state.epochs,
        selected=selected,
        cost={
            "step_ms": round(1000 * float(np.median(state.step_seconds)), 3),
            "train_seconds": round(sum(state.step_seconds), 3),
            "examples_per_second": round(train.epochs * len(lengths) / sum(state.step_seconds), 2),
            "tokens": state.tokens,
            "peak_mib": peak_mib(process.device),
            "checkpoint_bytes": stored,
            "optimizer_bytes": optimizer_bytes(step.optimizer),
        },
        provenance={
            "code": code_version(),
            "packages": {name: version(name) for name in RECORDED_PACKAGES},
            "python": platform.python_version(),
            "device": device_name(process.device),
            "processes": process.count,
            "resumed": state.resumed,
            "weights": encoder.weights,
            "tokenizer": encoder.tokenizer_files,
            "revision": encoder.revision,
            "data": {key: getattr(data, key) for key in RECORDED}
            | {"truncated": truncated, "test_fingerprint": getattr(further.get("test"), "fingerprint", None)},
            # PEFT's version and the parameters that it resolved
            **({"peft": {"version": version("peft"), **method.options}} if method.name == "peft" else {}),
        },
        predictions=hashlib.sha256(packed).hexdigest(),
        adapter=None if state.adapter is None else hashlib.sha256(state.adapter[ADAPTER]).hexdigest(),
    )
    return record, packed, state.adapter


def adapter_packer(
    model: nn.Module, config: RunConfig, task: Task, encoder: Encoder
) -> Callable[[dict[str, Any]], dict[str, bytes]]:
    """A function from the record's `selected` to the files of the model's adapter, as it is trained at that moment.

    Call it before the fused kernels round the frozen weights, whose hashes the adapter names.
    """
    from lora.adapters.adapter import Origin, Score, adapter_of
    from lora.adapters.base import describe_base
    from lora.adapters.folder import pack

    base = describe_base(model, config.model.name, encoder.revision)
    unplaced = dataclasses.replace(config.model, path=None)
    columns = None if task.own is None else task.columns

    def packed(selected: dict[str, Any]) -> dict[str, bytes]:
        best = selected["best"]
        score = Score(selected["metric"], selected["split"], best["epoch"], best["value"])
        described = (config.task, task.labels, score, config.run_id, config.data.max_length)
        origin = Origin(*described, unplaced, columns, encoder.tokenizer_files, *task.target_scale)
        return pack(adapter_of(model, base, origin))

    return packed


def check_losses(losses: list[Tensor], step: int) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if not bool(finite.all()):
        first = step - len(losses) + 1 + int((~finite).nonzero()[0])
        raise DivergedError(f"the loss is not finite at step {first}; {DIVERGED}: try a lower train.lr first")


@functools.cache  # once for all runs of a worker
def announce_truncated(task: str, share: float, max_length: int) -> None:
    rows = f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"
    line = f"{task}: {rows} of the rows are longer than data.max_length={max_length} tokens and are cut"
    print(line, file=sys.stderr)
