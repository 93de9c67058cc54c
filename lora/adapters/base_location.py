"""Find the base of an adapter on this machine or on the hub.

An adapter's folder names its base and says how to recognise it. It holds no path, because folders are copied between
machines. Files of other formats that must hold one get it when they are written.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from lora.adapters.adapter import Adapter
from lora.adapters.base import check_base
from lora.adapters.fit import fit
from lora.adapters.head import output_layer
from lora.adapters.torch_modes import lasting
from lora.checks import build
from lora.config.encoder_files import locate
from lora.config.sections import ModelConfig
from lora.errors import UserError, first_line
from lora.files import ROOT, at_home

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Location:
    """The arguments with which `from_pretrained` loads an adapter's base.

    Args:
        place: Absolute folder, or hub id.
        labels: The adapter's labels in the order of its outputs, if the base is in a folder.
    """

    place: str
    revision: str | None = None
    labels: tuple[str, ...] | None = None


def locate_base(adapter: Adapter, base: str | Path | None = None) -> Location:
    """Find an adapter's base.

    Args:
        base: A folder or a hub id; None uses the adapter's own information: a hub id, or the embedded encoder.
    Raises: UserError: If neither says where the base is, or the folder does not hold the adapter's base.
    """
    encoder = known_encoder(adapter)
    revision = None if adapter.base is None else adapter.base.revision
    if base is not None:
        folder = at_home(base)
        if str(base) and folder.is_dir():
            return checked_folder(adapter, folder)
        if not HUB_ID.fullmatch(str(base)):
            raise UserError(f"base={base} is neither a folder nor a hub id (owner/name)")
        asked = encoder is not None and str(base) == encoder.hub_id
        return Location(str(base), (revision or encoder.revision) if asked else None)
    if encoder is not None and encoder.source == "hub":
        return Location(encoder.hub_id, revision or encoder.revision)
    if encoder is not None and encoder.source == "embedded":
        return checked_folder(adapter, Path(locate(encoder)[0]))
    name = None if adapter.base is None else adapter.base.name
    if name is not None and "/" in name:  # a hub id: of a folder, only the last part of the path is stored
        return Location(name, revision)
    raise UserError(
        f"the adapter does not say where its base{f' ({name})' if name else ''} is: set base= to the folder or the "
        f"hub id that it is loaded from"
    )


def known_encoder(adapter: Adapter) -> ModelConfig | None:
    """The configuration of the base in the adapter's run, or else the entry of conf/model with the base's name."""
    if adapter.origin.encoder is not None or adapter.base is None:
        return adapter.origin.encoder
    return model_entries().get(adapter.base.name)


def model_entries() -> dict[str, ModelConfig]:
    """The encoders of conf/model by name."""
    paths = (ROOT / "conf" / "model").glob("*.yaml")
    # attention=auto follows the machine, and does not matter for where files lie
    return {p.stem: build(ModelConfig, {**yaml.safe_load(p.read_text()), "attention": "eager"}) for p in paths}


@lasting
def checked_folder(adapter: Adapter, folder: Path) -> Location:
    """The location of a folder. Raises: UserError: If it does not hold the LoRA adapter's base."""
    place = os.path.abspath(folder)
    model = load_folder(place)
    try:
        head = fit(model, adapter, allow_other_base=True).head
    except UserError as error:
        raise UserError(f"the adapter does not fit the base in {place}: {error}") from error
    if adapter.base is not None:
        try:
            check_base(model, adapter.base, adapter.weights)
        except UserError as error:
            raise UserError(f"{place} does not hold the adapter's base: {error}") from error
    outputs, labels = len(head[f"{output_layer(model)}.weight"]), adapter.origin.labels or ()
    named = labels if len(labels) == outputs else tuple(f"LABEL_{number}" for number in range(outputs))
    return Location(place, labels=named)


def load_folder(place: str) -> nn.Module:
    """Load a folder's model in float32; its head is meaningless. Raises: UserError: If that fails."""
    locate(ModelConfig("local", "local", None, place, None, "never", (), "eager", False))
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            place, dtype=torch.float32, local_files_only=True, trust_remote_code=False, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the base from {place}: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
