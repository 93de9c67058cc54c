"""`python -m lora predict`: batch prediction with trained adapters, and the files of a GLUE submission.

One base is loaded for all adapters. LoRA adapters are merged into it one after another; other methods are put on a
copy. With several adapters, give as many inputs and outputs, in the same order.

An output has the input's columns apart from the texts (or `index`, if there are none), then `prediction` and, for
classes, a column of probabilities per label.
"""

import argparse
import copy
import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lora.adapters.adapter import Adapter
from lora.adapters.base_location import local_encoder
from lora.adapters.folder import existing, read_adapter
from lora.adapters.head import head_parameters
from lora.adapters.merge import load_adapter, remove, swap
from lora.data.batching import collate, encode, evaluation_batches, to_device
from lora.data.own_task import check_words
from lora.data.read import as_dataset, read
from lora.data.tables import read_table
from lora.data.tasks import TASKS, Task, get_task
from lora.errors import UserError
from lora.files import at_home, write_atomically
from lora.methods.configs import LoraConfig
from lora.models.load import Encoder, load_encoder, max_positions

FORMS = {".csv": {}, ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE}}  # of an output, for pandas


@dataclass(frozen=True)
class Served:
    """An adapter, its task, and the name of its folder."""

    name: str
    adapter: Adapter
    task: Task


Work = tuple[Served, datasets.Dataset]  # rows for one adapter


def serve(given: str) -> Served:
    """Read an adapter's folder. Raises: UserError: If there is no adapter, or its task is unknown."""
    place = existing(given)
    adapter = read_adapter(place)
    origin = adapter.origin
    if origin.task is None:
        raise UserError(f"{place} does not say its task: save it with origin=Origin(task=...)")
    if origin.task not in TASKS and origin.columns and origin.labels is not None:  # a task of somebody's own
        if problems := check_words(origin.columns, origin.labels):
            raise UserError(f"{place} describes no task: {'; '.join(problems)}")
        task = Task(
            origin.task, origin.task, origin.columns, origin.labels, metrics=(), official_rows={}, test_splits=()
        )
    else:
        task = get_task(origin.task)
    if origin.labels not in (None, task.labels):
        raise UserError(f"{place} has the labels {origin.labels}, and task {task.name} has {task.labels}")
    return Served(place.resolve().name, adapter, task)


def load_base(adapter: Adapter, task: Task, folder: str | None) -> Encoder:
    """Load the encoder in `folder`, or without one the encoder that the adapter names.

    Raises: UserError: If there is no folder and the adapter's encoder cannot be found without one.
    """
    encoder = adapter.origin.encoder
    if encoder is None or encoder.source == "local":
        folder = folder or os.environ.get("MODEL_DIR")
        if not folder:
            name = "" if adapter.base is None or adapter.base.name is None else f" ({adapter.base.name})"
            raise UserError(f"the adapter does not say where its base{name} is: name its folder with --model")
    if folder:
        encoder = local_encoder(folder)
    try:
        return load_encoder(encoder, task, seed=0)
    except re.error as error:
        raise UserError(f"the adapter's origin.encoder.unused_weights is not a regular expression: {error}") from error


@torch.no_grad()
def predict_all(encoder: Encoder, work: Sequence[Work], batch: int, device: torch.device) -> list[np.ndarray]:
    """The float32 logits of each work's rows, (rows, labels).

    Raises: UserError: If an adapter does not fit the base or its task, or lacks a trained head.
    """
    base, found = encoder.model.to(device), []
    with tqdm(total=sum(len(dataset) for _, dataset in work), unit="row", disable=None) as bar:
        for served, dataset in work:
            adapter, task = served.adapter, served.task
            check_tokenizer(served, encoder)
            longest = max_positions(base)
            encoded = encode(dataset, task, encoder.tokenizer, min(adapter.origin.max_length or longest, longest))
            if isinstance(adapter.method, LoraConfig):
                swap(model := base, adapter)
            else:
                remove(base)
                load_adapter(model := copy.deepcopy(base), adapter)
            body = f"{model.base_model_prefix}."  # a pooler inside the body is pretrained
            lacking = [
                name for name in head_parameters(model) if not name.startswith(body) and name not in adapter.head
            ]
            if lacking:
                raise UserError(
                    f"adapter {served.name} has no {', '.join(lacking)}: with a random head its predictions would "
                    f"be meaningless"
                )
            outputs, labels = model.config.num_labels, len(task.labels) or 1
            if outputs != labels:
                raise UserError(f"adapter {served.name} has {outputs} outputs, and {task.name} needs {labels}")
            bar.set_description(served.name)
            found.append(np.empty((len(dataset), model.config.num_labels), np.float32))
            model.eval()
            for rows in evaluation_batches(encoded.lengths, batch):
                inputs = to_device(collate(encoded, rows, encoder.tokenizer.pad_token_id), device)
                found[-1][rows] = model(**inputs).logits.float().cpu().numpy()
                bar.update(len(rows))
    return found


def check_tokenizer(served: Served, encoder: Encoder) -> None:
    """
    Raises: UserError: If the tokenizer's files are not those that the adapter was trained with. A commit of the hub and
        files of a folder cannot be compared.
    """
    trained, here = served.adapter.origin.tokenizer, encoder.tokenizer_files
    if trained is not None and trained != here and trained.partition(":")[0] == here.partition(":")[0]:
        raise UserError(
            f"adapter {served.name} was trained with other tokenizer files ({trained[:20]}, here {here[:20]}): its "
            f"words have other numbers"
        )


def answers(logits: np.ndarray, task: Task) -> dict[str, list[str]]:
    """Output columns: `prediction`, a label or a score, and the probability of each label as `p_LABEL`."""
    if not task.labels:
        return {"prediction": [f"{score:.6g}" for score in logits[:, 0]]}
    powers = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    probabilities = {f"p_{label}": [f"{p:.6f}" for p in shares[:, i]] for i, label in enumerate(task.labels)}
    return {"prediction": [task.labels[index] for index in logits.argmax(1)], **probabilities}


def to_files(arguments: argparse.Namespace, served: Sequence[Served], device: torch.device) -> dict[Path, bytes]:
    """Output path -> content, one per input. Raises: UserError: If inputs, outputs and adapters do not match."""
    inputs, outputs = [[at_home(path) for path in paths] for paths in (arguments.input, arguments.output)]
    if not len(served) == len(inputs) == len(outputs):
        got = f"{len(inputs)} inputs and {len(outputs)} outputs for {len(served)} adapters"
        raise UserError(f"give one input and one output per adapter; got {got}")
    given, written = [path.resolve() for path in inputs], [path.resolve() for path in outputs]
    if twice := [str(path) for path in written if path in given or written.count(path) > 1]:
        raise UserError(f"{twice[0]} would be written twice, or over an input")
    if strange := [str(path) for path in outputs if path.suffix.lower() not in FORMS]:
        raise UserError(f"{strange[0]}: an output is a {' or a '.join(FORMS)} file")
    tables = [read_table(path) for path in inputs]
    work = []
    for table, each in zip(tables, served, strict=True):
        if not len(table):
            raise UserError(f"{table.path} has no rows")
        columns = {name: table.texts(name) for name in each.task.columns} | {"label": [None] * len(table)}
        work.append((each, as_dataset(each.task, columns, np.arange(len(table)))))
    base = load_base(served[0].adapter, served[0].task, arguments.model)
    found = predict_all(base, work, arguments.batch, device)
    files = {}
    for output, table, each, logits in zip(outputs, tables, served, found, strict=True):
        others = {name: column for name, column in table.columns.items() if name not in each.task.columns}
        kept = pd.DataFrame(others or {"index": list(range(len(table)))}, dtype=object)
        new = pd.DataFrame(answers(logits, each.task))
        if taken := sorted({*kept} & {*new}):
            raise UserError(f"{table.path} has a column {taken[0]}, which the output adds: rename it")
        try:
            content = kept.join(new).to_csv(index=False, lineterminator="\n", **FORMS[output.suffix.lower()])
        except csv.Error as error:
            raise UserError(f"{table.path} has tabs or line ends, which {output.name} cannot hold") from error
        files[output] = content.encode()
    return files


def to_submission(arguments: argparse.Namespace, served: Sequence[Served], device: torch.device) -> dict[Path, bytes]:
    """The files that GLUE's server accepts: `CoLA.tsv`, `MNLI-m.tsv`, ..., with index and prediction.

    Scores are clipped to the task's range and have three decimals.

    Source: gluebenchmark.com, FAQ and sample submission.

    Raises: UserError: If a task is not a GLUE task, occurs twice, or its test file cannot be read.
    """
    tasks = [each.task for each in served]
    for task in tasks:
        if task.tsv is None or tasks.count(task) > 1:
            reason = "is no GLUE task" if task.tsv is None else "has two adapters"
            raise UserError(f"a submission has one file for each test set of GLUE, and {task.name} {reason}")
    work, names = [], []
    for each in served:
        for split in each.task.test_splits:
            rows = read(each.task, "tsv", arguments.glue_dir, splits=(split,)).splits[split]
            work.append((each, rows))
            suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
            names.append(f"{each.task.title}{suffix}.tsv")
    base = load_base(served[0].adapter, served[0].task, arguments.model)
    files = {}
    for name, (each, _), found in zip(names, work, predict_all(base, work, arguments.batch, device), strict=True):
        task = each.task
        if task.labels:
            predicted = [(task.tsv.words or task.labels)[index] for index in found.argmax(1)]
        else:
            predicted = [f"{score:.3f}" for score in np.clip(found[:, 0], *task.label_range)]
        lines = ["index\tprediction", *(f"{row}\t{word}" for row, word in enumerate(predicted))]
        files[Path(arguments.glue_submission) / name] = "".join(f"{line}\n" for line in lines).encode()
    return files


def run(arguments: argparse.Namespace) -> list[Path]:
    """Predict, then write all files. Returns: Their paths. Raises: UserError: If anything in the call is wrong."""
    if bool(arguments.input or arguments.output) == bool(arguments.glue_submission):
        raise UserError("give either --input and --output, or --glue-submission")
    if arguments.glue_submission and not arguments.glue_dir:
        raise UserError("--glue-submission needs --glue-dir, the folder that holds the official test files")
    if arguments.batch < 1:
        raise UserError(f"--batch must be >= 1, got {arguments.batch}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device here")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if arguments.device == "auto" else arguments.device)
    served = [serve(adapter) for adapter in arguments.adapter]
    files = (to_submission if arguments.glue_submission else to_files)(arguments, served, device)
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def options(parser: argparse.ArgumentParser) -> None:
    several = {"action": "append", "default": [], "metavar": "FILE"}
    parser.add_argument("--adapter", action="append", required=True, metavar="DIR", help="an adapter's folder")
    parser.add_argument("--input", help="a table: .csv, .tsv, .jsonl or .parquet", **several)
    parser.add_argument("--output", help="a .csv or .tsv file", **several)
    parser.add_argument("--glue-submission", metavar="DIR", help="folder for submission files of the adapters' tasks")
    parser.add_argument("--glue-dir", metavar="DIR", help="folder with the official GLUE files, test.tsv included")
    base = "folder of the base, if it is a local one (default: the environment's MODEL_DIR)"
    parser.add_argument("--model", metavar="DIR", help=base)
    parser.add_argument("--batch", type=int, default=64, help="rows per forward pass (default 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, 2 a mistake in the call."""
    print(*run(given), sep="\n")
