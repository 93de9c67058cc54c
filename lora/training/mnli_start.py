"""Start a run from an MNLI run: copy its trained parameters, with a new head (DeBERTa keeps its pooler)."""

from dataclasses import replace

from torch import nn

from lora.adapters.folder import recorded_adapter
from lora.adapters.merge import load_adapter
from lora.config.run import RunConfig
from lora.models.modules import architecture_of
from lora.records.record import read_record, record_path


def start_from(model: nn.Module, config: RunConfig) -> None:
    """Copy the parameters that the MNLI run trained. The head stays new (paper, sections 5.2 and D.1).

    With full fine-tuning, these are all parameters of the encoder. DeBERTa also keeps its pooler.

    Source: for the head, the load hooks of the released models. If the number of labels differs, RoBERTa's drops both
        layers of the head, DeBERTa's only the classifier.

    Raises: UserError: If that run has no record, its adapter is missing or changed, or it trained other modules.
    """
    record = read_record(record_path(config.runtime.results, config.start_run))
    adapter = recorded_adapter(record, config.runtime.outputs)
    known = architecture_of(model)
    carried = () if known is None else tuple(f"{part}." for part in known.carried_head)
    head = {name: tensor for name, tensor in adapter.head.items() if name.startswith(carried)}
    load_adapter(model, replace(adapter, method=config.method, head=head))
