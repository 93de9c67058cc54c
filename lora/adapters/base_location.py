"""Find the base of an adapter on this machine or on the hub, and write it with the adapter's labels.

An adapter's folder names its base and says how to recognise it. It holds no path, because folders are copied between
machines. Files of other formats that must hold one get it when they are written.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from lora.adapters.adapter import Adapter
from lora.adapters.base import check_base
from lora.adapters.fit import fit
from lora.checks import build
from lora.config.encoder_files import locate
from lora.config.sections import ModelConfig
from lora.errors import UserError, first_line
from lora.files import ROOT, at_home, read_object
from lora.models.modules import lasting

BASE = "base"  # the folder of a base below one that PEFT loads
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def locate_base(adapter: Adapter, base: str | Path | None = None) -> tuple[str, str | None]:
    """Find an adapter's base.

    Args:
        base: A folder or a hub id; None uses the adapter's own information: a hub id, or the embedded encoder.
    Returns: The absolute folder or the hub id that `from_pretrained` takes, and the revision.
    Raises: UserError: If neither says where the base is, or the folder `base` does not hold it.
    """
    encoder = adapter.origin.encoder
    revision = None if adapter.base is None else adapter.base.revision
    if base is not None:
        folder = at_home(base)
        if str(base) and folder.is_dir():
            return checked_folder(adapter, folder), None
        if not HUB_ID.fullmatch(str(base)):
            raise UserError(f"base={base} is neither a folder nor a hub id (owner/name)")
        return str(base), revision if encoder is not None and str(base) == encoder.hub_id else None
    if encoder is not None and encoder.source == "hub":
        return encoder.hub_id, revision or encoder.revision
    if encoder is not None and encoder.source == "embedded":
        return locate(encoder)[0], None
    name = None if adapter.base is None else adapter.base.name
    if name is not None and "/" in name:  # a hub id: of a folder, only the last part of the path is stored
        return name, revision
    raise UserError(
        f"the adapter does not say where its base{f' ({name})' if name else ''} is: set base= to the folder or the "
        f"hub id that it is loaded from"
    )


def local_encoder(folder: str | Path) -> ModelConfig:
    """The configuration of an encoder in a local folder."""
    stated = yaml.safe_load((ROOT / "conf" / "model" / "local.yaml").read_text())
    return build(ModelConfig, stated | {"path": str(folder), "attention": "eager"})  # attention=auto needs a machine


@lasting
def checked_folder(adapter: Adapter, folder: Path) -> str:
    """The absolute path of a folder. Raises: UserError: If it does not hold the LoRA adapter's base."""
    place = os.path.abspath(folder)
    locate(local_encoder(place))
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            place, dtype=torch.float32, local_files_only=True, trust_remote_code=False, ignore_mismatched_sizes=True
        )
        fit(model, dataclasses.replace(adapter, base=None))
        if adapter.base is not None:
            check_base(model, adapter.base, adapter.weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserError) as error:
        raise UserError(f"{place} does not hold the adapter's base: {first_line(error)}") from error
    return place


def labelled_base(place: Path, adapter: Adapter) -> dict[str, bytes | Path]:
    """A base's files as links, and its config with the adapter's labels, for which PEFT has no field."""
    outputs = min(len(tensor) for tensor in adapter.head.values() if tensor.dim() == 2)  # the output layer's
    labels = adapter.origin.labels or ()
    names = dict(enumerate(labels if len(labels) == outputs else [f"LABEL_{number}" for number in range(outputs)]))
    config = read_object(place / "config.json")
    config |= {"id2label": names, "label2id": {label: number for number, label in names.items()}}
    links: dict[str, bytes | Path] = {f"{BASE}/{path.name}": path for path in sorted(place.iterdir()) if path.is_file()}
    return links | {f"{BASE}/config.json": json.dumps(config, indent=1).encode()}
