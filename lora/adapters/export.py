"""`python -m lora export ADAPTER FOLDER`: write a trained adapter as a folder that other libraries load alone.

LoRA and PEFT's methods become a folder of `peft`, with the files of a base that lies in a folder. With --merged, LoRA
becomes a folder of `transformers`, as full fine-tuning and BitFit do: model, tokenizer and the names of the labels.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from lora.adapters.adapter import Adapter, in_scores
from lora.adapters.folder import read_adapter
from lora.adapters.peft import PROBLEMS, to_peft
from lora.adapters.predict import load_base, put_on, task_of
from lora.errors import UserError, first_line
from lora.files import at_home
from lora.methods.configs import BitFitConfig, FullConfig, LoraConfig


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or a folder that cannot be written; then nothing is left there."""
    place, out = at_home(given.adapter), at_home(given.folder)
    if os.path.lexists(out) and not (out.is_dir() and not os.listdir(out)):
        raise UserError(f"{out} must be a new folder, or an empty one")
    adapter = read_adapter(place)
    method = adapter.method
    if given.merged and not isinstance(method, LoraConfig | FullConfig | BitFitConfig):
        raise UserError(
            f"--merged is for LoRA, whose weights can be merged, and the adapter is of method {method.name}"
        )
    try:
        if given.merged or isinstance(method, FullConfig | BitFitConfig):
            write_model(adapter, place, out, given.model)
        else:
            to_peft(adapter, out, given.model)
    except UserError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(out, ignore_errors=True)
        raise UserError(f"cannot write {out}: {first_line(error)}") from error
    print(out)


def write_model(adapter: Adapter, place: Path, out: Path, base: str | None) -> None:
    """Write model and tokenizer. The outputs of a regression are scores."""
    task = task_of(adapter, place)
    encoder = load_base(adapter, task, base)
    put_on(encoder, in_scores(adapter, torch.float32))
    encoder.model.config.problem_type = PROBLEMS[bool(task.labels)]
    if task.labels:
        encoder.model.config.id2label = dict(enumerate(task.labels))
        encoder.model.config.label2id = {label: index for index, label in enumerate(task.labels)}
    encoder.tokenizer.model_max_length = adapter.origin.max_length or encoder.tokenizer.model_max_length
    encoder.model.save_pretrained(out)
    encoder.tokenizer.save_pretrained(out)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="the adapter's folder")
    parser.add_argument("folder", metavar="FOLDER", help="a new folder")
    parser.add_argument("--merged", action="store_true", help="merge LoRA into the model, for transformers alone")
    parser.add_argument("--model", metavar="DIR", help="folder of the base, if it is a local one")
