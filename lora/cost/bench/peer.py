"""`python -m lora.cost.bench.peer JOB.json`: train as a user's script does, with Trainer and PEFT.

The process loads only the metric of this project, so it starts as fast as such a script. The job holds `settings`
(padding, precision, threads, attention, max_steps) and `runs`, each with the settings of a run and `rows`, the folder
of its train.json and validation.json. Writes JOB.answer.json, a list of what `train_run` returns.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
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
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.utils import logging

from lora.data import metrics

MODULES = {"q": "query", "k": "key", "v": "value"}  # BERT's names
HEAD_MODULES = ["pooler", "classifier"]  # this project trains these with LoRA; see `lora.models.modules.is_head`


@functools.cache
def tokenized(model: str, rows: str, columns: tuple[str, ...], max_length: int, padding: str) -> tuple[Any, Any]:
    """Tokenizer and tokenised splits, once per process. `datasets` caches them for later processes."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    splits = datasets.load_dataset("json", data_files={s: f"{rows}/{s}.json" for s in ("train", "validation")})

    def tokenize(batch: Mapping[str, list]) -> dict[str, list]:
        texts = [batch[column] for column in columns]
        pad = "max_length" if padding == "max_length" else False
        tokens = dict(tokenizer(*texts, truncation=True, max_length=max_length, padding=pad))
        return tokens | {"length": [len(ids) for ids in tokens["input_ids"]]}

    return tokenizer, splits.map(tokenize, batched=True, remove_columns=list(columns))


def build_model(run: SimpleNamespace, attention: str) -> torch.nn.Module:
    model = AutoModelForSequenceClassification.from_pretrained(
        run.model, num_labels=run.outputs, attn_implementation=attention, dtype=torch.float32
    )
    adapted = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=run.rank,
        lora_alpha=run.alpha,
        lora_dropout=run.dropout,
        target_modules=[MODULES[target] for target in run.targets],
        modules_to_save=HEAD_MODULES,
    )
    return get_peft_model(model, adapted)


def train_run(run: SimpleNamespace, settings: SimpleNamespace) -> dict[str, Any]:
    """Train a run, evaluate it after every epoch, and save its adapter. With `max_steps` it stops without evaluation.

    Returns: task, seed, metric (the headline metric after the last epoch), trainable (number of values, including the
        head's), and step_seconds, the time of the training steps.
    """
    short = settings.max_steps is not None
    torch.set_num_threads(settings.threads)
    set_seed(run.seed)
    tokenizer, splits = tokenized(run.model, run.rows, tuple(run.columns), run.max_length, settings.padding)
    model = build_model(run, settings.attention)

    def compute_metrics(predicted: Any) -> dict[str, float | None]:
        scores = predicted.predictions
        chosen = scores.argmax(-1) if run.outputs > 1 else np.squeeze(scores, -1)
        return metrics.compute(run.metrics, chosen, predicted.label_ids)

    grouped = settings.padding == "longest"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
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
        )
        trained = trainer.train()
        trainer.save_model()
    evaluations = [entry for entry in trainer.state.log_history if "eval_runtime" in entry]
    return {
        "task": run.task,
        "seed": run.seed,
        "metric": evaluations[-1].get(f"eval_{run.metrics[0]}") if evaluations else None,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "step_seconds": trained.metrics["train_runtime"] - sum(entry["eval_runtime"] for entry in evaluations),
    }


def main() -> None:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(), object_hook=lambda item: SimpleNamespace(**item))
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    runs = [train_run(run, job.settings) for run in job.runs]
    path.with_suffix(".answer.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
