"""`python -m lora efficiency`: measure the cost of each method on this machine, and write its tables."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lora.cost import shapes
from lora.cost.efficiency.plan import MODELS, RANDOM, ROUNDS, TITLES, make_plan, place
from lora.cost.efficiency.summary import read_device, samples_csv
from lora.cost.efficiency.tables import document
from lora.cost.machine import slug
from lora.cost.results import add_place, as_json, check_writable
from lora.errors import UserError
from lora.files import write_atomically


def options(parser: argparse.ArgumentParser) -> None:
    text = f"the encoder; {', '.join(RANDOM)} have random weights (default: minilm)"
    parser.add_argument("--model", choices=list(MODELS), default="minilm", help=text)
    parser.add_argument("--path", help="folder of the encoder, with --model local")
    parser.add_argument("--methods", nargs="+", choices=list(TITLES), default=list(TITLES), help="default: all")
    parser.add_argument("--kernels", choices=["fused", "stock"], help="default: the profile's; stock on a GPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the profile's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"visits to every method (default: {ROUNDS})")
    served = parser.add_mutually_exclusive_group()
    for group, name, usual in ((parser, "step", shapes.STEP), (served, "latency", shapes.LATENCY)):
        text = f"rows x tokens of batches (default: {' '.join(usual)})"
        group.add_argument(f"--{name}-shapes", nargs="+", default=list(usual), help=text)
    text = f"serve Table 1's batches, {' '.join(shapes.TABLE_1)}, with stock modules unless --kernels is given"
    served.add_argument("--table-1", action="store_true", help=text)
    add_place(parser)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or no summary to build tables from."""
    chosen = vars(given).copy()
    results = chosen.pop("results") / "efficiency"
    if chosen.pop("tables"):
        devices = sorted(path for path in results.glob("*") if path.is_dir())
        if not devices:
            raise UserError(f"{results} holds no device's folder: python -m lora efficiency makes one")
        for device in devices:
            write(device)
        print("\n".join(str(device / "efficiency.md") for device in devices))
    else:
        print(measured(results, **chosen))


def measured(results: Path, table_1: bool, **chosen: Any) -> str:
    """Measure, and write the summary, samples and tables. Returns: The tables of this device.

    Raises: UserError: Before anything is written, or if the folder cannot be written.
    """
    from lora.cost.efficiency.measure import device_of, measure, resolve_device  # loads torch
    from lora.training.device import check_precision

    if table_1:  # users serve transformers' own modules
        chosen |= {"latency_shapes": shapes.TABLE_1, "kernels": chosen["kernels"] or "stock"}
    chosen |= {key: tuple(chosen[key]) for key in ("methods", "step_shapes", "latency_shapes")}
    plan = make_plan(**chosen | {"device": resolve_device(chosen["device"], chosen["kernels"])})
    check_precision(plan.precision, plan.device == "cuda", "--precision")
    check_writable(results)
    device = results / slug(device_of(plan.device))
    folder = place(plan, device)
    with tqdm(total=2 * plan.rounds, unit="round", dynamic_ncols=True, file=sys.stderr) as bar:
        summary, samples = measure(plan, bar.write, bar.update)
    write_atomically(folder / "samples.csv", samples_csv(samples))
    write_atomically(folder / "summary.json", as_json(summary))
    return write(device)


def write(device: Path) -> str:
    """Write a device's tables from its summaries. Returns: The text of efficiency.md.

    Raises: UserError: If a summary is broken, or none exists.
    """
    summaries = read_device(device)
    if not summaries:
        raise UserError(f"{device} holds no summary.json: python -m lora efficiency makes one")
    text = document(summaries)
    write_atomically(device / "efficiency.md", text.encode())
    return text
