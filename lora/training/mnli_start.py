"""Start a run from an MNLI run: copy its trained parameters, with a new head (DeBERTa keeps its pooler)."""

import hashlib

import torch
from safetensors.torch import load
from torch import nn

from lora.config.run import RunConfig
from lora.errors import UserError, listed
from lora.methods.lowrank import LOW_RANK
from lora.models.modules import architecture_of, is_head
from lora.records.record import adapter_path, read_record, record_path


def start_from(model: nn.Module, config: RunConfig) -> None:
    """Copy the parameters that the MNLI run trained. The head stays new (paper, sections 5.2 and D.1).

    With full fine-tuning, these are all parameters of the encoder. DeBERTa also keeps its pooler.

    Source: for the head, the load hooks of the released models. If the number of labels differs, RoBERTa's drops both
        layers of the head, DeBERTa's only the classifier.

    Raises: UserError: If that run has no ok record, its weights are missing or changed, or it trained other modules.
    """
    parent = config.start_run
    path = record_path(config.runtime.results, parent)
    record = read_record(path) if path.exists() else None
    if record is None or record.status != "ok":
        state = "missing" if record is None else f"failed ({record.error})"
        raise UserError(f"{config.run_id} starts from {parent}, whose record is {state}: it must be ok first")
    weights = adapter_path(config.runtime.outputs, parent)
    content = weights.read_bytes() if weights.exists() else b""
    if hashlib.sha256(content).hexdigest() != record.adapter:
        state = "differ from those in its record: delete them, and" if content else "are missing:"
        raise UserError(f"the weights of {parent}, {weights}, {state} a sweep trains the run again")
    known = architecture_of(model)
    carried = () if known is None else tuple(f"{part}." for part in known.carried_head)
    tensors = {n: t for n, t in load(content).items() if not is_head(model, n) or n.startswith(carried)}
    saved = [(name, p) for name, p in model.named_parameters() if p.requires_grad or LOW_RANK.fullmatch(name)]
    mine = {n: p for n, p in saved if not is_head(model, n) or n.startswith(carried)}
    theirs, ours = ({name: tuple(t.shape) for name, t in side.items()} for side in (tensors, mine))
    if different := sorted(name for name, _ in set(theirs.items()) ^ set(ours.items())):
        raise UserError(f"{parent} trained other modules than {config.run_id} does: {listed(dict.fromkeys(different))}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(tensors[name])
