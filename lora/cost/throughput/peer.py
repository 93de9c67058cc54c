"""`python -m lora.cost.throughput.peer JOB.json`: train as a user's script does, with Trainer and PEFT.

The process loads only the job's form and the metric of this project, so it starts as fast as such a script.
"""

import functools
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import evaluate  # noqa: F401  such a script computes its metric with it, so it counts as start-up
import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging

from lora.cost.throughput.job import Answer, Job, PeerRun, PeerSettings, RunCost, Spent, read, write
from lora.data import metrics
from lora.errors import UserError

PARTS = ("data", "model", "batching", "step", "evaluation", "saving")


class StepClock(TrainerCallback):
    """Separates the time of making a batch, which ends when a step begins, from that of the step."""

    def __init__(self, spent: Spent):
        self.spent, self.mark = spent, time.perf_counter()

    def _lap(self, part: str | None) -> None:
        now = time.perf_counter()
        if part is not None:
            self.spent.seconds[part] += now - self.mark
        self.mark = now

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._lap(None)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._lap("batching")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._lap("step")


@functools.cache
def tokenized(
    model: str, rows: str, columns: tuple[str, ...], max_length: int, padding: str, folder: str
) -> tuple[Any, Any]:
    """Tokenizer and tokenised splits, once per process. `datasets` caches them in `folder` for later processes."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    files = {split: f"{rows}/{split}.json" for split in ("train", "validation")}
    splits = datasets.load_dataset("json", data_files=files, cache_dir=f"{folder}/datasets")

    def tokenize(batch: Mapping[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in columns]
        pad = "max_length" if padding == "max_length" else False
        tokens = dict(tokenizer(*texts, truncation=True, max_length=max_length, padding=pad))
        return tokens | {"length": [len(ids) for ids in tokens["input_ids"]]}

    return tokenizer, splits.map(tokenize, batched=True, remove_columns=list(columns))


def build_model(run: PeerRun, attention: str) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(
        run.model, num_labels=run.outputs, attn_implementation=attention, dtype=torch.float32
    )
    adapted = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=run.rank,
        lora_alpha=run.alpha,
        lora_dropout=run.lora_dropout,
        target_modules=list(run.targets),
        modules_to_save=list(run.head),
    )
    return get_peft_model(model, adapted)


def train_run(run: PeerRun, settings: PeerSettings, folder: str) -> RunCost:
    """Train a run, evaluate it after every epoch, and save its adapter."""
    started, spent = time.perf_counter(), Spent(PARTS)
    torch.set_num_threads(settings.threads)
    set_seed(run.seed)
    with spent.on("data"):
        tokenizer, splits = tokenized(run.model, run.rows, run.columns, run.max_length, settings.padding, folder)
    with spent.on("model"):
        model = build_model(run, settings.attention)
    short = settings.max_steps is not None

    def compute_metrics(predicted: Any) -> dict[str, float | None]:
        scores = predicted.predictions
        chosen = scores.argmax(-1) if run.outputs > 1 else np.squeeze(scores, -1)
        return metrics.compute(run.metrics, chosen, predicted.label_ids)

    grouped = settings.padding == "longest"
    arguments = TrainingArguments(
        output_dir=f"{folder}/{run.name}",
        num_train_epochs=run.epochs,
        max_steps=settings.max_steps if short else -1,
        per_device_train_batch_size=run.batch,
        per_device_eval_batch_size=run.eval_batch,
        learning_rate=run.lr,
        warmup_steps=run.warmup_frac,  # below 1, a fraction of all steps
        weight_decay=run.weight_decay,
        max_grad_norm=run.clip_norm,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length" if grouped else "random",
        seed=run.seed,
        bf16=settings.precision == "bf16",
        use_cpu=True,
        eval_strategy="no" if short else "epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer) if grouped else default_data_collator,
        compute_metrics=compute_metrics,
        callbacks=[StepClock(spent)],
    )
    untimed = trainer.evaluate

    def evaluate_timed(*args: Any, **kwargs: Any) -> dict[str, float]:
        with spent.on("evaluation"):
            return untimed(*args, **kwargs)

    trainer.evaluate = evaluate_timed
    trainer.train()
    with spent.on("saving"):
        trainer.save_model()
    values = [entry[f"eval_{run.metric}"] for entry in trainer.state.log_history if f"eval_{run.metric}" in entry]
    return RunCost(
        name=run.name,
        task=run.task,
        seed=run.seed,
        metric=values[-1] if values else None,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=time.perf_counter() - started,
        parts=spent.seconds,
    )


def answer(job: Job) -> Answer:
    startup = time.monotonic() - job.started
    return Answer(startup, tuple(train_run(run, job.settings, job.folder) for run in job.runs))


def main() -> None:
    """Write the answer next to the job, as <name>.answer.json. Exit codes: 0 done; 2 the argument is not a job."""
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        if len(sys.argv) != 2:
            raise UserError(
                f"python -m lora.cost.throughput.peer takes one file, a job, got {len(sys.argv) - 1} arguments"
            )
        path = Path(sys.argv[1])
        write(path.with_suffix(".answer.json"), answer(read(path, Job)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
