"""`python -m lora efficiency --tables`: rebuild the tables and figures from every summary.json, without torch."""

from pathlib import Path

from lora.cost.efficiency.plan import MODELS
from lora.cost.efficiency.summary import read_summary
from lora.cost.efficiency.tables import csv, document
from lora.errors import UserError
from lora.files import write_atomically


def build(device: Path) -> dict[str, bytes]:
    """The tables and figures of one device, by path below its folder. Writes nothing.

    Raises: UserError: If a summary is broken, or none exists.
    """
    from lora.cost.efficiency.figures import figures  # loads matplotlib, which tables do not need

    found = read_device(device)
    if not found:
        raise UserError(f"{device} holds no summary.json: python -m lora efficiency makes one")
    summaries = list(found.values())
    files = {"efficiency.md": document(summaries).encode(), "efficiency.csv": csv(summaries)}
    for path, summary in found.items():
        below = path.parent.relative_to(device)
        files |= {str(below / name): content for name, content in figures(summary).items()}
    return files


def read_device(device: Path) -> dict[Path, dict]:
    """The summaries in a device's folder by path: the default plan's first, the others by encoder.

    Raises: UserError: If one is broken.
    """
    paths = [path for path in (device / "summary.json", *sorted(device.glob("*/summary.json"))) if path.is_file()]
    found = {path: read_summary(path) for path in paths}
    return {p: found[p] for p in sorted(found, key=lambda path: (path.parent != device, _place(found[path]), path))}


def read_devices(folder: Path) -> list[dict]:
    """All summaries in an efficiency folder, device by device. Raises: UserError: If one is broken."""
    return [summary for device in sorted(folder.glob("*/")) for summary in read_device(device).values()]


def _place(summary: dict) -> int:
    return list(MODELS).index(summary["about"]["plan"]["model"])


def write(device: Path) -> str:
    """Build and write a device's tables and figures. Returns: The text of efficiency.md."""
    files = build(device)
    for name, content in files.items():
        write_atomically(device / name, content)
    return files["efficiency.md"].decode()


def rebuild(folder: Path) -> str:
    """Rebuild the tables and figures of every device. Returns: The paths of each efficiency.md, one per line.

    Raises: UserError: If a summary is broken or missing, or no device has a folder.
    """
    devices = sorted(path for path in folder.glob("*") if path.is_dir())
    if not devices:
        raise UserError(f"{folder} holds no device's folder: python -m lora efficiency makes one")
    for device in devices:
        write(device)
    return "\n".join(str(device / "efficiency.md") for device in devices)
