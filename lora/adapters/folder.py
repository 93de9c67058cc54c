"""An adapter as a self-describing folder: `adapter.safetensors` and `adapter.json`.

The JSON states its format, the method with all arguments (for LoRA: alpha, rank, targets and more), the base and how to
recognise it, the adapter's origin, and what the tensor file must hold. A folder is treated as hostile: nothing in it is
executed, and nothing outside it is read.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lora.adapters.adapter import Adapter, Origin, adapter_of
from lora.adapters.base import Base
from lora.checks import SettingsError, build
from lora.errors import UserError, first_line
from lora.files import at_home, listing, read_object, written_whole
from lora.methods import METHODS
from lora.methods.configs import MethodConfig
from lora.models.modules import lasting
from lora.records.record import ADAPTER, DESCRIPTION, RunRecord, adapter_path, has_adapter

FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """What the tensor file must hold.

    Args:
        file: Name of the file in the folder, the same for all.
        sha256: Hash of the whole file.
        shapes: Tensor name -> shape.
        head: Names of the tensors that belong to the head.
    """

    file: str
    sha256: str
    shapes: dict[str, tuple[int, ...]]
    head: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """The content of `adapter.json`, apart from its format."""

    method: MethodConfig
    base: Base | None
    origin: Origin
    contents: Contents


def save_adapter(model: nn.Module, folder: str | Path, origin: Origin | None = None) -> Adapter:
    """Save a model's trained tensors, merged or not, as an adapter folder.

    Args:
        folder: Created, or replaced if it holds an adapter and nothing else.
    Raises: UserError: If the model has no method, a value is not finite, or the folder cannot be written.
    """
    write_adapter(adapter := adapter_of(model, origin=origin), folder)
    return adapter


def write_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Save an adapter as a folder. Raises: UserError: If it cannot be written or holds anything else."""
    write_folder(Path(folder), pack(adapter))


def pack(adapter: Adapter) -> dict[str, bytes]:
    """The files of an adapter's folder: name -> content."""
    tensors = apart(adapter.weights | adapter.head)
    weights = save(tensors)
    description = Description(
        adapter.method,
        adapter.base,
        adapter.origin,
        Contents(
            ADAPTER,
            hashlib.sha256(weights).hexdigest(),
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            tuple(adapter.head),
        ),
    )
    content = {"format": FORMAT, **dataclasses.asdict(description)}
    return {ADAPTER: weights, DESCRIPTION: f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()}


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors requires them: contiguous, and none sharing memory."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def write_folder(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write a folder with exactly these files. An existing one is replaced if it holds no other files.

    Files are replaced one by one, each atomically. A description comes last and has the hash of the weights, so a
    folder between two writes is recognised as broken.

    Args:
        files: Name, which may be below a folder -> content, or the file that has it; in order of writing.
    Raises: UserError: If it holds anything else, or cannot be written.
    """
    folder = at_home(folder)
    there = os.listdir(folder) if os.path.isdir(folder) else []
    own = {Path(name).parts[0] for name in files}
    strange = sorted(name for name in there if name not in own and not name.startswith("."))
    if strange or (os.path.lexists(folder) and not os.path.isdir(folder)):
        found = f"holds {', '.join(strange[:4])}" if strange else "is a file"
        raise UserError(f"{folder} {found}: only a folder without files other than {', '.join(files)} is replaced")
    for name, content in files.items():
        with written_whole(folder / name) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder and check everything in it.

    Raises: UserError: If a file is missing, a link, cut short, changed, or in another format; or if a value is not
        finite.
    """
    folder = at_home(folder)
    description = read_description(folder)
    contents, path = description.contents, inside(folder, ADAPTER)
    tensors, content = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    whole = contents.file == ADAPTER and hashlib.sha256(content).hexdigest() == contents.sha256
    if not whole or shapes != contents.shapes or not set(contents.head) <= set(shapes):
        raise UserError(f"{path} is not the file that {DESCRIPTION} was written for: its hash or its tensors differ")
    try:
        return Adapter(
            description.method,
            {name: tensors[name] for name in contents.shapes if name not in contents.head},
            {name: tensors[name] for name in contents.head},
            description.base,
            description.origin,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def recorded_adapter(record: RunRecord, outputs: str | Path) -> Adapter:
    """Read the adapter that a run saved.

    Raises: UserError: If it is missing, broken, or not the one that the record names.
    """
    path = adapter_path(outputs, record.run_id)
    adapter = read_adapter(path.parent)
    if not has_adapter(record, outputs):
        raise UserError(f"{path} is not the adapter that the record of {record.run_id} names")
    return adapter


def read_description(folder: Path) -> Description:
    """Read `adapter.json`. Raises: UserError: If it is missing, in another format, or has any wrong value."""
    path = inside(folder, DESCRIPTION)
    content = read_object(path)
    if (number := content.pop("format", None)) != FORMAT:
        raise UserError(f"{path} is in format {number!r}; this version reads format {FORMAT}")
    method = content.get("method")
    title = method.get("name") if isinstance(method, dict) else None
    if not isinstance(title, str) or title not in METHODS:
        raise UserError(f"{path}: method.name must be one of {', '.join(METHODS)}, got {title!r}")
    try:
        return build(Description, content | {"method": build(METHODS[title].config, method)})
    except SettingsError as error:
        raise UserError(f"{path}: {'; '.join(error.problems)}") from error


def inside(folder: Path, name: str) -> Path:
    """The path of a file in the folder. Raises: UserError: If it is missing, or a link."""
    path = folder / name
    if os.path.islink(path):
        raise UserError(f"{path} is a link to {os.readlink(path)}: an adapter's files must be in its folder")
    if not os.path.isfile(path):  # False where pathlib raises, as for a name that is too long
        raise UserError(f"adapter folder {folder} has no file {name} (found: {listing(folder)})")
    return path


@lasting
def read_tensors(path: Path) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of a safetensors file, and its bytes. Raises: UserError: If it is cut short or in another format."""
    try:
        content = path.read_bytes()
        return load(content), content
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise UserError(f"{path} is not a whole safetensors file for torch: {first_line(error)}") from error
