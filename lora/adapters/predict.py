"""`python -m lora predict`: batch prediction with trained adapters, and the files of a GLUE submission.

One base is loaded for all adapters. LoRA adapters are merged into it one after another; other methods are put on a
copy. With several adapters, give as many inputs and outputs, in the same order, or one of each; the input's column
`adapter` then names each row's adapter. Inputs have a header. They are CSV if they are called so, else tab-separated
without quoting, as GLUE's files.
"""

import argparse
import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lora.adapters.adapter import Adapter
from lora.adapters.base_location import model_entries
from lora.adapters.head import head_parameters
from lora.adapters.merge import load_adapter, remove, swap
from lora.adapters.predict_inputs import NAMES, Served, Work, read_input, serve, words
from lora.data.batching import Encoded, collate, encode, evaluation_batches, to_device
from lora.data.glue_tsv import find_file
from lora.data.read import read
from lora.data.tasks import Task
from lora.errors import UserError
from lora.files import write_atomically
from lora.methods.configs import LoraConfig
from lora.models.load import Encoder, load_encoder, max_positions


def load_base(adapter: Adapter, task: Task, folder: str | None) -> Encoder:
    """Load the encoder in `folder`, or without one the encoder that the adapter names.

    Raises: UserError: If there is no folder and the adapter's encoder cannot be found without one.
    """
    encoder = adapter.origin.encoder
    if folder is not None:
        encoder = dataclasses.replace(model_entries()["local"], path=folder)
    elif encoder is None or encoder.source == "local":
        name = "" if adapter.base is None or adapter.base.name is None else f" ({adapter.base.name})"
        raise UserError(f"the adapter does not say where its base{name} is: name its folder with --model")
    try:
        return load_encoder(encoder, task, seed=0)
    except re.error as error:
        raise UserError(f"the adapter's origin.encoder.unused_weights is not a regular expression: {error}") from error


def predict_all(encoder: Encoder, work: Sequence[Work], batch: int, device: torch.device) -> list[np.ndarray]:
    """The float32 logits of each work's rows, (rows, labels).

    Raises: UserError: If an adapter does not fit the base or its task, or lacks a trained head.
    """
    base, found = encoder.model.to(device), []
    with tqdm(total=sum(len(each.rows) for each in work), unit="row", disable=None) as bar:
        for each in work:
            adapter, task = each.served.adapter, each.served.task
            check_tokenizer(each.served, encoder)
            longest = max_positions(base)
            encoded = encode(each.rows, task, encoder.tokenizer, min(adapter.origin.max_length or longest, longest))
            if isinstance(adapter.method, LoraConfig):
                swap(model := base, adapter)
            else:
                remove(base)
                load_adapter(model := copy.deepcopy(base), adapter)
            lacking = [n for n in head_parameters(model) if is_random(model, n) and n not in adapter.head]
            if lacking:
                raise UserError(
                    f"adapter {each.served.name} has no {', '.join(lacking)}: with a random head its predictions would "
                    f"be meaningless"
                )
            outputs = len(task.labels) or 1
            if model.config.num_labels != outputs:
                raise UserError(
                    f"adapter {each.served.name} has {model.config.num_labels} outputs, and task {task.name} has "
                    f"{words(task.labels)}"
                )
            bar.set_description(each.served.name)
            found.append(logits_of(model, encoded, encoder.tokenizer.pad_token_id, batch, device, bar))
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


def is_random(model: nn.Module, name: str) -> bool:
    """Whether a parameter of the head is random in a loaded base. A pooler inside the body is pretrained."""
    return not name.startswith(f"{model.base_model_prefix}.")


@torch.inference_mode()
def logits_of(
    model: nn.Module, encoded: Encoded, pad_token_id: int, batch: int, device: torch.device, bar: tqdm
) -> np.ndarray:
    model.eval()
    found = np.empty((len(encoded.lengths), model.config.num_labels), np.float32)
    for rows in evaluation_batches(encoded.lengths, batch):
        found[rows] = model(**to_device(collate(encoded, rows, pad_token_id), device)).logits.float().cpu().numpy()
        bar.update(len(rows))
    return found


def predicted(logits: np.ndarray, task: Task, submission: bool = False) -> list[str]:
    """Label words or scores. In a submission, scores are clipped to the task's range and have three decimals."""
    if task.labels:
        labels = (task.tsv.words or task.labels) if submission else task.labels
        return [labels[index] for index in logits.argmax(1)]
    scores = np.clip(logits[:, 0], *task.label_range) if submission else logits[:, 0]
    return [f"{score:.3f}" if submission else f"{score:.6g}" for score in scores]


def as_tsv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """The content of a tab-separated file."""
    return "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]).encode()


def to_files(arguments: argparse.Namespace, served: Sequence[Served], device: torch.device) -> dict[Path, bytes]:
    """Output path -> content, one per input. Raises: UserError: If inputs, outputs and adapters do not match."""
    inputs, outputs = [Path(path) for path in arguments.input], [Path(path) for path in arguments.output]
    if len(inputs) not in (1, len(served)) or len(inputs) != len(outputs):
        raise UserError(
            f"{len(served)} adapters need as many inputs and outputs, or one of each and a column {NAMES}; got "
            f"{len(inputs)} inputs and {len(outputs)} outputs"
        )
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(f"two outputs are the same file: {', '.join(map(str, outputs))}")
    together = len(inputs) == 1
    works = [read_input(path, served if together else [served[i]]) for i, path in enumerate(inputs)]
    flat = [work for works_of_file in works for work in works_of_file]
    logits = iter(
        predict_all(load_base(served[0].adapter, served[0].task, arguments.model), flat, arguments.batch, device)
    )
    named, files = together and len(served) > 1, {}
    for output, works_of_file in zip(outputs, works, strict=True):
        rows = []
        for work in works_of_file:
            name = [work.served.name] if named else []
            found = predicted(next(logits), work.served.task)
            rows += [(place, *name, word) for place, word in zip(work.places, found, strict=True)]
        files[output] = as_tsv(("index", *([NAMES] if named else []), "prediction"), sorted(rows))
    return files


def to_submission(arguments: argparse.Namespace, served: Sequence[Served], device: torch.device) -> dict[Path, bytes]:
    """The files that GLUE's server accepts: `CoLA.tsv`, `MNLI-m.tsv`, ..., with index and prediction.

    Source: gluebenchmark.com, FAQ and sample submission.

    Raises: UserError: If a task is not a GLUE task, occurs twice, or its test file cannot be read.
    """
    tasks = [each.task for each in served]
    foreign = [task.name for task in tasks if task.tsv is None]
    twice = sorted({task.name for task in tasks if tasks.count(task) > 1})
    if foreign or twice:
        reason = f"not a GLUE task: {', '.join(foreign)}" if foreign else f"two adapters for {', '.join(twice)}"
        raise UserError(f"a submission has one file for each test set of GLUE: {reason}")
    work, names = [], []
    for each in served:
        for split in each.task.test_splits:
            find_file(Path(arguments.glue_dir), each.task.tsv.folder, each.task.tsv.files[split])
            rows = read(each.task, "tsv", arguments.glue_dir, splits=(split,)).splits[split]
            work.append(Work(each, rows, np.arange(len(rows))))
            suffix = {"test_matched": "-m", "test_mismatched": "-mm"}.get(split, "")
            names.append(f"{each.task.tsv.folder}{suffix}.tsv")
    logits = predict_all(load_base(served[0].adapter, served[0].task, arguments.model), work, arguments.batch, device)
    folder = Path(arguments.glue_submission)
    files = {}
    for name, each, found in zip(names, work, logits, strict=True):
        rows = enumerate(predicted(found, each.served.task, submission=True))
        files[folder / name] = as_tsv(("index", "prediction"), list(rows))
    return files


def run(arguments: argparse.Namespace) -> list[Path]:
    """Predict, then write all files. Returns: Their paths. Raises: UserError: If anything in the call is wrong."""
    filed = bool(arguments.input or arguments.output)
    if filed == bool(arguments.glue_submission):
        raise UserError("give either --input and --output, or --glue-submission")
    if arguments.glue_submission and not arguments.glue_dir:
        raise UserError("--glue-submission needs --glue-dir, the folder that holds the official test files")
    if arguments.batch < 1:
        raise UserError(f"--batch must be >= 1, got {arguments.batch}")
    if arguments.task and len(arguments.task) != len(arguments.adapter):
        raise UserError(
            f"give --task for every adapter or for none: got {len(arguments.task)} tasks for {len(arguments.adapter)}"
        )
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device here")
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if arguments.device == "auto" else arguments.device)
    tasks = arguments.task or [None] * len(arguments.adapter)
    served = [serve(adapter, task) for adapter, task in zip(arguments.adapter, tasks, strict=True)]
    names = [each.name for each in served]
    if len(set(names)) < len(names):
        raise UserError(f"adapters need distinct names (NAME=FOLDER), got {', '.join(names)}")
    make = to_submission if arguments.glue_submission else to_files
    files = make(arguments, served, device)
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="an adapter's folder, and the name that rows use for it (default: the folder's own); an existing folder "
        "is taken as a whole, even if its path contains =",
    )
    own = "each adapter's task, or the file of one of your own (default: the one it was trained on)"
    parser.add_argument("--task", action="append", help=own)
    form = "with a header: CSV if it is called .csv, else tab-separated"
    parser.add_argument("--input", action="append", default=[], metavar="FILE", help=form)
    parser.add_argument("--output", action="append", default=[], metavar="FILE")
    parser.add_argument(
        "--glue-submission", metavar="DIR", help="folder for the submission files of the adapters' tasks"
    )
    parser.add_argument("--glue-dir", metavar="DIR", help="folder with the official GLUE files, test.tsv included")
    parser.add_argument("--model", metavar="DIR", help="folder of the base, if the adapter does not say where it is")
    parser.add_argument("--batch", type=int, default=64, help="rows per forward pass (default 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, 2 a mistake in the call."""
    written = run(given)
    print(*written, sep="\n")
