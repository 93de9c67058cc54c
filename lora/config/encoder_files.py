"""Locate, check and hash pretrained files. Torch is not loaded, so that a sweep can be checked before it starts."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora.config.run import ModelConfig
from lora.data.embedded import model_folder
from lora.errors import UserError, first_line
from lora.files import at_home, cached_by_file, hash_file, listing

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model"),
)
AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text")
NAME_LENGTH = 40  # characters of its folder's name in a local encoder's name, at most


def locate(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """The folder or hub id to load from, and the arguments that restrict transformers to it."""
    if config.source == "hub":
        return config.hub_id, {"revision": config.revision}
    if config.source == "local" and not config.path:
        raise UserError(
            "model=local needs model.path, a folder with config.json, model.safetensors and a tokenizer (MODEL_DIR=)"
        )
    folder = model_folder(config.name) if config.source == "embedded" else at_home(config.path)
    check_encoder_folder(folder)
    return str(folder), {"local_files_only": True}


def check_encoder_folder(folder: Path) -> None:
    """Check an encoder's folder. Raises: UserError: If it has no config.json, no safetensors or no tokenizer."""
    if not os.path.isfile(folder / "config.json"):  # False where pathlib raises, as for a name that is too long
        wrong = (
            "" if os.path.isdir(folder) else "; a model on the hub becomes one by `hf download NAME --local-dir FOLDER`"
        )
        raise UserError(f"model folder {folder} has no config.json (found: {listing(folder)}){wrong}")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        raise UserError(
            f"model folder {folder} has no model.safetensors (found: {listing(folder)})"
            + (": pickles are not read from a folder; save it with safetensors" if pickles else "")
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        files = ", ".join(TOKENIZER_FILES)
        raise UserError(f"model folder {folder} has no tokenizer (found: {listing(folder)}), none of {files}")


def refuse_longer(name: str, settings: Mapping[str, Any], max_length: int) -> None:
    """Raises: UserError: If an encoder with this config.json reads fewer tokens."""
    if max_length > longest_input(settings):
        most = longest_input(settings)
        raise UserError(
            f"data.max_length is {max_length}, but {name} reads at most {most} tokens: data.max_length={most}"
        )


def longest_input(settings: Mapping[str, Any]) -> int:
    """The length of the longest input, in tokens; `sys.maxsize` without a limit, as with XLNet's relative positions.

    If positions start after the padding index, as RoBERTa's, the table's rows up to that index are unused.
    """
    positions, kind = settings.get("max_position_embeddings"), settings.get("model_type")
    if not isinstance(positions, int) or positions < 0:
        return sys.maxsize
    if kind not in AFTER_PADDING:
        return positions
    padding = settings.get("pad_token_id", 1) if kind != "mpnet" else 1  # MPNet's start at 2 for any padding
    return positions - (1 if padding is None else padding) - 1


def local_name(path: str) -> str:
    """The name of a local encoder in run ids and tables: its folder's name and six digits of its hash."""
    folder = at_home(path)
    check_encoder_folder(folder)
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


def tokenizer_name(where: str, commit: str | None) -> str:
    """The identity of a tokenizer: `sha256:` and one hash over its files, or `commit:` and the hub's commit."""
    if commit is not None:
        return f"commit:{commit}"
    names = [name for name in TOKENIZER_FILES if (Path(where) / name).is_file()]
    return f"sha256:{hash_files(where, names)}"


def weights_name(where: str, commit: str | None, config: ModelConfig) -> str:
    if config.source != "hub":
        return f"sha256:{hash_weights(where)}"
    if config.pickle == "never":
        return f"commit:{commit}"
    from transformers.utils import cached_file

    return f"sha256:{hash_file(cached_file(where, 'pytorch_model.bin', revision=commit))}"


def hash_weights(folder: str) -> str:
    """One hash over a folder's config and weight files. Raises: UserError: If one is cut or no weights."""
    for path in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(path, framework="np"):
                pass  # reads the header, and compares its sizes with the file's
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a whole file of weights: {first_line(error)}") from error
    return hash_files(folder, ["config.json", *sorted(path.name for path in Path(folder).glob("*.safetensors"))])


def hash_files(folder: str, names: Sequence[str]) -> str:
    """One hash over files of a folder. Raises: UserError: If one cannot be read."""
    try:
        hashes = [(name, _hash(Path(folder) / name)) for name in names]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


_hash = cached_by_file(hash_file)
