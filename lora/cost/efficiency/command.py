"""`python -m lora efficiency`: what each method costs on this machine, and the tables of it."""

import argparse
import sys

from tqdm import tqdm

from lora.cost.efficiency.plan import (
    CALLS,
    LATENCY_SHAPES,
    MODELS,
    RANDOM,
    ROUNDS,
    STEP_SHAPES,
    TABLE_1_SHAPES,
    TITLES,
    device_folder,
    make_plan,
    place,
)
from lora.cost.efficiency.report import add_results, rebuild, results_root, write
from lora.cost.efficiency.summary import samples_csv, to_json
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
    for group, name, shapes in ((parser, "step", STEP_SHAPES), (served, "latency", LATENCY_SHAPES)):
        text = f"rows x tokens of batches (default: {' '.join(shapes)})"
        group.add_argument(f"--{name}-shapes", nargs="+", default=list(shapes), help=text)
    text = f"serve Table 1's batches, {' '.join(TABLE_1_SHAPES)}, with stock modules unless --kernels is given"
    served.add_argument("--table-1", action="store_true", help=text)
    parser.add_argument("--tables", action="store_true", help="measure nothing: build tables and figures again")
    add_results(parser)


def run(arguments: argparse.Namespace) -> str:
    """Measure, and write the summary with its samples, figures and tables. Returns: The tables of this device.

    Raises: UserError: Before anything is written, or if the folder cannot be.
    """
    from lora.cost.efficiency.measure import measure  # these load torch, which a mistake in the call need not wait for
    from lora.cost.efficiency.subjects import resolve_device
    from lora.training.device import check_precision
    from lora.training.usage import device_name

    chosen = dict(vars(arguments))
    if chosen.pop("table_1"):  # what people serve: transformers' own modules
        chosen |= {"latency_shapes": TABLE_1_SHAPES, "kernels": chosen["kernels"] or "stock"}
    results = results_root(chosen.pop("results"), chosen.pop("reference"))
    if chosen.pop("tables"):
        return rebuild(results)
    device = resolve_device(chosen.pop("device"), chosen["kernels"])
    for key in ("methods", "step_shapes", "latency_shapes"):
        chosen[key] = tuple(chosen[key])
    plan = make_plan(device=device.type, **chosen)
    check_precision(plan.precision, device.type == "cuda", "--precision")
    shown = device_folder(device_name(device), results)
    folder = place(plan, shown)
    with tqdm(total=2 * plan.rounds, unit="round", dynamic_ncols=True, file=sys.stderr) as bar:
        summary, samples = measure(plan, bar.write, bar.update)
    write_atomically(folder / "samples.csv", samples_csv(samples))
    write_atomically(folder / "summary.json", to_json(summary))
    return write(shown)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done, 2 a mistake in the call, or no summary to build tables from."""
    print(run(given))
