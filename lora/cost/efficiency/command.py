"""`python -m lora efficiency`: the cost of each method on this machine, with its tables."""

import argparse
import sys

from tqdm import tqdm

from lora.cost import shapes
from lora.cost.efficiency.plan import CALLS, MODELS, RANDOM, ROUNDS, TITLES, make_plan, place
from lora.cost.efficiency.report import rebuild, write
from lora.cost.efficiency.summary import samples_csv
from lora.cost.machine import slug
from lora.cost.results import add_place, as_json, folder_of
from lora.files import write_atomically


def options(parser: argparse.ArgumentParser) -> None:
    names = f"{', '.join(MODELS)}; {', '.join(RANDOM)} have random weights"
    parser.add_argument("--model", default="minilm", help=f"the encoder: {names} (default: minilm)")
    parser.add_argument("--path", help="folder of the encoder, with --model local")
    parser.add_argument("--methods", nargs="+", default=list(TITLES), help=f"of {' '.join(TITLES)} (default: all)")
    parser.add_argument("--kernels", choices=["fused", "stock"], help="default: the profile's; stock on a GPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: the profile's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--threads", type=int, help="of torch (default: the profile's)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"visits to every method (default: {ROUNDS})")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"timed calls of a visit (default: {CALLS})")
    parser.add_argument("--seed", type=int, default=1, help="of weights, inputs and orders (default: 1)")
    served = parser.add_mutually_exclusive_group()
    for group, name, usual in ((parser, "step", shapes.STEP), (served, "latency", shapes.LATENCY)):
        text = f"rows x tokens of batches (default: {' '.join(usual)})"
        group.add_argument(f"--{name}-shapes", nargs="+", default=list(usual), help=text)
    text = f"serve Table 1's batches, {' '.join(shapes.TABLE_1)}, with stock modules unless --kernels is given"
    served.add_argument("--table-1", action="store_true", help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build tables and figures again")
    add_place(parser)


def run(arguments: argparse.Namespace) -> str:
    """Measure, and write the summary, samples, figures and tables. Returns: The tables of this device.

    Raises: UserError: Before anything is written, or if the folder cannot be written.
    """
    results = folder_of("efficiency", arguments)
    if arguments.tables:
        return rebuild(results)
    from lora.cost.efficiency.measure import device_of, measure  # loads torch, which tables do not need
    from lora.cost.efficiency.models import resolve_device
    from lora.training.device import check_precision

    chosen = {key: value for key, value in vars(arguments).items() if key not in ("results", "reference", "tables")}
    if chosen.pop("table_1"):  # users serve transformers' own modules
        chosen |= {"latency_shapes": shapes.TABLE_1, "kernels": chosen["kernels"] or "stock"}
    device = resolve_device(chosen.pop("device"), chosen["kernels"])
    for key in ("methods", "step_shapes", "latency_shapes"):
        chosen[key] = tuple(chosen[key])
    plan = make_plan(device=device.type, **chosen)
    check_precision(plan.precision, device.type == "cuda", "--precision")
    shown = results / slug(device_of(plan.device))
    folder = place(plan, shown)
    with tqdm(total=2 * plan.rounds, unit="round", dynamic_ncols=True, file=sys.stderr) as bar:
        summary, samples = measure(plan, bar.write, bar.update)
    write_atomically(folder / "samples.csv", samples_csv(samples))
    write_atomically(folder / "summary.json", as_json(summary))
    return write(shown)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or no summary to build tables from."""
    print(run(given))
