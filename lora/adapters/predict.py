"""`python -m lora predict`: batch prediction with a trained adapter, and the files of a GLUE submission.

An output has the input's columns, then `prediction` and, for classes, a column of probabilities per label. They are
empty in rows with an empty text.
"""

import argparse
import csv
import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

from lora.adapters.adapter import Adapter, Origin
from lora.adapters.folder import read_adapter
from lora.adapters.head import head_parameters
from lora.adapters.merge import load_adapter, swap
from lora.checks import build
from lora.config.encoder_files import longest_input
from lora.config.run import ModelConfig
from lora.data.batching import Encoded, collate, encode, evaluation_batches, to_device
from lora.data.own_task import check_words
from lora.data.read import Rows, choose_rows, read
from lora.data.tables import InputTable, is_empty, read_table
from lora.data.tasks import TASKS, Task
from lora.errors import UserError, listed
from lora.files import ROOT, at_home, write_atomically
from lora.methods.configs import LoraConfig
from lora.models.load import Encoder, load_encoder

TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
FORMS: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": TSV}  # of an output, for csv.writer


def task_of(adapter: Adapter, place: Path) -> Task:
    """The task of an adapter. Raises: UserError: If it is unknown, or has other labels."""
    origin = adapter.origin
    if origin.task is None:
        raise UserError(f"{place} does not say its task: save it with origin=Origin(task=...)")
    if origin.task not in TASKS and origin.columns and origin.labels is not None:  # a task of somebody's own
        if problems := check_words(origin.columns, origin.labels):
            raise UserError(f"{place} describes no task: {'; '.join(problems)}")
        return Task(origin.task, origin.task, origin.columns, origin.labels, (), official_rows={}, test_splits=())
    if origin.task not in TASKS:
        raise UserError(f"{place} is of task {origin.task!r}; the tasks are {', '.join(TASKS)}")
    task = TASKS[origin.task]
    if origin.labels not in (None, task.labels):
        raise UserError(f"{place} has the labels {origin.labels}, and task {task.name} has {task.labels}")
    return task


def local_encoder(folder: str | Path) -> ModelConfig:
    """The configuration of an encoder in a local folder."""
    stated = yaml.safe_load((ROOT / "conf" / "model" / "local.yaml").read_text())
    return build(ModelConfig, stated | {"path": str(folder), "attention": "eager"})  # attention=auto needs a machine


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
    return load_encoder(local_encoder(folder) if folder else encoder, task, seed=0)


def put_on(encoder: Encoder, adapter: Adapter) -> None:
    """Put the adapter on its base. LoRA is merged.

    Raises: UserError: If it does not fit the base, lacks a trained head, or was trained with another tokenizer. A
        commit of the hub and files of a folder cannot be compared.
    """
    trained, here = adapter.origin.tokenizer, encoder.tokenizer_files
    if trained is not None and trained != here and trained.partition(":")[0] == here.partition(":")[0]:
        raise UserError(f"the adapter was trained with other tokenizer files ({trained[:20]}, here {here[:20]})")
    model = encoder.model
    plain = dataclasses.replace(adapter, origin=Origin())  # `output_columns` scales, in float64
    (swap if isinstance(adapter.method, LoraConfig) else load_adapter)(model, plain)
    body = f"{model.base_model_prefix}."  # a pooler inside the body is pretrained
    if lacking := [name for name in head_parameters(model) if not name.startswith(body) and name not in adapter.head]:
        raise UserError(f"the adapter has no {', '.join(lacking)}: predictions with a random head are meaningless")


def predict_rows(
    encoder: Encoder, rows: Rows, task: Task, max_length: int | None, batch: int, device: torch.device
) -> np.ndarray:
    """The float32 logits of the rows, (rows, labels). Rows that are cut are named on stderr."""
    model = encoder.model.to(device).eval()
    longest = longest_input(encoder.model.config.to_dict())
    encoded = encode(rows, task, encoder.tokenizer, min(max_length or longest, longest))
    if cut := encoded.truncated:
        what = f"{len(cut)} of {len(rows['idx'])} rows are longer than {encoded.max_length} tokens and are cut"
        print(f"{what}: {listed(rows['idx'][row] + 1 for row in cut)}", file=sys.stderr)
    return logits_of(model, encoded, encoder.tokenizer.pad_token_id, batch, device)


@torch.no_grad()
def logits_of(model: nn.Module, rows: Encoded, pad_token_id: int, batch: int, device: torch.device) -> np.ndarray:
    """The float32 logits of a model, (rows, labels)."""
    logits = np.empty((len(rows.lengths), model.config.num_labels), np.float32)
    with tqdm(total=len(logits), unit="row", disable=None) as bar:
        for places in evaluation_batches(rows.lengths, batch):
            inputs = to_device(collate(rows, places, pad_token_id), device)
            logits[places] = model(**inputs).logits.float().cpu().numpy()
            bar.update(len(places))
    return logits


def output_columns(logits: np.ndarray, task: Task, origin: Origin) -> dict[str, list[str]]:
    """Output columns: `prediction`, a label or a score, and the probability of each label as `p_LABEL`."""
    if not task.labels:
        digits = 6 + math.ceil(math.log10(max(1.0, abs(origin.shift / origin.factor))))  # 6 that differ in the range
        return {"prediction": [f"{origin.shift + origin.factor * float(output):.{digits}g}" for output in logits[:, 0]]}
    powers = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    probabilities = {f"p_{label}": [f"{p:.6f}" for p in shares[:, i]] for i, label in enumerate(task.labels)}
    return {"prediction": [task.labels[index] for index in logits.argmax(1)], **probabilities}


def as_table(table: InputTable, new: dict[str, list[str]], rows: list[int], output: Path) -> bytes:
    """The output's content: the columns of the input, and new ones, which have values in some rows."""

    def text(cell: Any) -> Any:
        return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, dict | list | bool) else cell

    if clash := sorted({*table.columns} & {*new}):
        raise UserError(f"{table.path} has a column {clash[0]}, which the output adds: rename it")
    columns: dict[str, list[Any]] = {name: [*map(text, cells)] for name, cells in table.columns.items()}
    for name, values in new.items():
        columns[name] = [*map(dict(zip(rows, values, strict=True)).get, range(len(table)))]
    lines: list[str] = []
    # its lines end with CR LF, which makes it quote, or refuse, a lone CR too
    writer = csv.writer(SimpleNamespace(write=lines.append), **FORMS[output.suffix.lower()])
    try:
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
    except csv.Error as error:
        raise UserError(f"{table.path} has tabs or line ends, which {output.name} cannot hold") from error
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode()


def as_submission(logits: np.ndarray, task: Task) -> bytes:
    """A file that GLUE's server accepts, with index and prediction. Scores are clipped, and have three decimals.

    Source: gluebenchmark.com, FAQ and sample submission.
    """
    if task.labels:
        predicted = [(task.tsv.words or task.labels)[index] for index in logits.argmax(1)]
    else:
        predicted = [f"{score:.3f}" for score in np.clip(logits[:, 0], *task.label_range)]
    lines = ["index\tprediction", *(f"{row}\t{word}" for row, word in enumerate(predicted))]
    return "".join(f"{line}\n" for line in lines).encode()


def main(given: argparse.Namespace) -> None:
    """Predict, then write all files. Exit codes: 0 done, 2 a mistake in the call."""
    if not (given.input and given.output) if not given.glue_submission else bool(given.input or given.output):
        raise UserError("give either --input and --output, or --glue-submission")
    if given.glue_submission and not given.glue_dir:
        raise UserError("--glue-submission needs --glue-dir, the folder that holds the official test files")
    if given.batch < 1:
        raise UserError(f"--batch must be >= 1, got {given.batch}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = at_home(given.adapter)
    adapter = read_adapter(place)
    task = task_of(adapter, place)
    rows: dict[Path, Rows] = {}  # of each output
    table, places = InputTable(place, {}), [0]
    if given.glue_submission:
        if task.tsv is None:
            raise UserError(f"a submission has one file for each test set of GLUE, and {task.name} is no GLUE task")
        for split, test in read(task, "tsv", given.glue_dir, splits=task.test_splits).splits.items():
            suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
            rows[Path(given.glue_submission) / f"{task.title}{suffix}.tsv"] = test
    else:
        source, output = at_home(given.input), at_home(given.output)
        if source.resolve() == output.resolve():
            raise UserError(f"{output} would be written over the input")
        if output.suffix.lower() not in FORMS:
            raise UserError(f"{output}: an output is a {' or a '.join(FORMS)} file")
        table = read_table(source)
        columns = {name: table.texts(name, empty_allowed=True) for name in task.columns}
        places = [row for row, texts in enumerate(zip(*columns.values(), strict=True)) if not any(map(is_empty, texts))]
        if not places:
            raise UserError(f"{table.path} has no rows with a text")
        if left_out := listed(row + 1 for row in sorted({*range(len(table))} - {*places})):
            print(f"{table.path}: no prediction for rows with an empty text: {left_out}", file=sys.stderr)
        as_table(table, {"prediction": [""]}, [0], output)  # what cannot be written is refused now
        rows[output] = choose_rows(task, columns | {"label": [None] * len(table)}, np.array(places))
    encoder = load_base(adapter, task, given.model)
    put_on(encoder, adapter)
    files = {}
    for path, of_path in rows.items():
        logits = predict_rows(encoder, of_path, task, adapter.origin.max_length, given.batch, device)
        new = output_columns(logits, task, adapter.origin)
        files[path] = as_submission(logits, task) if given.glue_submission else as_table(table, new, places, path)
    for path, content in files.items():
        write_atomically(path, content)
        print(path)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, metavar="DIR", help="the adapter's folder")
    parser.add_argument("--input", metavar="FILE", help="a table: .csv, .tsv, .jsonl or .parquet")
    parser.add_argument("--output", metavar="FILE", help="a .csv or .tsv file")
    parser.add_argument(
        "--glue-submission", metavar="DIR", help="folder for the submission files of the adapter's task"
    )
    parser.add_argument("--glue-dir", metavar="DIR", help="folder with the official GLUE files, test.tsv included")
    base = "folder of the base, if it is a local one (default: the environment's MODEL_DIR)"
    parser.add_argument("--model", metavar="DIR", help=base)
    parser.add_argument("--batch", type=int, default=64, help="rows per forward pass (default 64)")
