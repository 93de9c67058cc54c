"""The folders of measurements, the origin that each states, and the writing of their pages. No torch."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora.cost import machine
from lora.errors import UserError
from lora.files import REFERENCE, RESULTS, ROOT, write_atomically
from lora.records.provenance import code_version

COMMITTED = RESULTS / REFERENCE


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folder of measurements."""
    parser.add_argument("--results", type=Path, help="folder (default: results, which git ignores)")
    parser.add_argument("--reference", action="store_true", help=f"{COMMITTED.relative_to(ROOT)}, which is committed")


def folder_of(kind: str, given: argparse.Namespace) -> Path:
    """The folder of `bench` or `efficiency`. It has one folder per device.

    Raises: UserError: If both options are given.
    """
    if given.results is not None and given.reference:
        raise UserError("--results and --reference name two folders: give one")
    return (given.results or (COMMITTED if given.reference else RESULTS)) / kind


def origin(device: str) -> dict[str, Any]:
    """The first keys of every measurement: device, machine, package versions, code and time."""
    return {
        "device": device,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "code": code_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def at_least_one(given: argparse.Namespace, *names: str) -> None:
    """Check options. Raises: UserError: If one of these is below 1."""
    for name in names:
        value = getattr(given, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be >= 1, got {value}")


def publish(folder: Path, name: str, content: dict[str, Any], page: str) -> None:
    """Write a measurement and its page as <name>.json and <name>.md."""
    write_atomically(folder / f"{name}.json", as_json(content))
    write_atomically(folder / f"{name}.md", page.encode())


def as_json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
