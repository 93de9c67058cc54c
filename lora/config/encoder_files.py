"""Locate, check and hash pretrained files. Torch is not loaded, so that a sweep can be checked before it starts."""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lora.config.run import ModelConfig
from lora.data.embedded import model_folder
from lora.errors import UserError, first_line
from lora.files import file_state, hash_file

NAME_LENGTH = 40  # characters of its folder's name in a local encoder's name, at most


def locate(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The folder or hub id to load from, and the arguments that restrict transformers to it."""
    if config.source == "hub":
        return config.hub_id, {"revision": config.revision}
    if config.source == "local" and not config.path:
        raise UserError(
            "model=local needs model.path, a folder with config.json, model.safetensors and a tokenizer (MODEL_DIR=)"
        )
    folder = model_folder(config.name) if config.source == "embedded" else Path(config.path).expanduser()
    check_folder(folder)
    return str(folder), {"local_files_only": True}


def check_folder(folder: Path) -> None:
    """Check an encoder's folder. Raises: UserError: If it has no config.json, or no safetensors."""
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise UserError(f"model folder {folder} has no config.json (found: {found or 'nothing'})")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        raise UserError(
            f"model folder {folder} has no model.safetensors"
            + (
                f", only {', '.join(pickles)}: pickles are not read from a folder; save it with safetensors"
                if pickles
                else ""
            )
        )


def local_name(path: str) -> str:
    """The name of a local encoder in run ids and tables: its folder's name and six digits of its hash.

    Raises: UserError: If the folder holds no encoder.
    """
    folder = Path(path).expanduser()
    check_folder(folder)
    kept = re.sub(r"[^A-Za-z0-9]+", "_", folder.resolve().name).strip("_")[:NAME_LENGTH] or "encoder"
    return f"{kept}-{hash_weights(str(folder))[:6]}"


def hub_commit(hub_id: str, source: dict[str, Any]) -> str:
    """The commit of a branch or tag on the hub: the name of the snapshot folder that holds its files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub_id, "config.json", **source)).parent.name
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(f"cannot read the model's config from {hub_id}: {first_line(error)}") from error


def weights_name(where: str, commit: str | None, config: ModelConfig) -> str:
    if config.source != "hub":
        return f"sha256:{hash_weights(where)}"
    if config.pickle == "never":
        return f"commit:{commit}"
    from transformers.utils import cached_file

    return f"sha256:{cached_hash(cached_file(where, 'pytorch_model.bin', revision=commit))}"


def hash_weights(folder: str) -> str:
    """One hash over a folder's config and weight files."""
    names = ["config.json", *sorted(path.name for path in Path(folder).glob("*.safetensors"))]
    return hashlib.sha256(json.dumps([(name, cached_hash(f"{folder}/{name}")) for name in names]).encode()).hexdigest()


def cached_hash(path: str) -> str:
    """A file's SHA-256, computed once until the file changes. Raises: UserError: If it cannot be read."""
    try:
        return _hash_once(path, file_state(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache
def _hash_once(path: str, state: tuple[int, ...]) -> str:
    del state  # part of the cache's key, so that a changed file is read again
    return hash_file(path)
