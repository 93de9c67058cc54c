"""`python -m lora bench` (`make bench`): cells per hour and steps beside today's scripts, and their tables."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora.config.compose import compose_config, compose_run
from lora.cost.bench import cells as grid_of
from lora.cost.bench import machine, sides, table
from lora.cost.bench.job import PeerCell
from lora.cost.bench.output import add_reference, as_json, results_folder, say, write_tables
from lora.cost.bench.summary import SIDES
from lora.cost.bench.timing import rotated
from lora.errors import UserError
from lora.files import ROOT, write_atomically
from lora.records.provenance import code_version

ROUNDS, CELLS, SCRIPT_CELLS, STEP_REPETITIONS = 2, 12, 3, 11


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="each side's turns (default %(default)s)")
    parser.add_argument(
        "--cells", type=int, default=CELLS, help="cells per round of this project and of the tuned peer (%(default)s)"
    )
    parser.add_argument(
        "--script-cells",
        type=int,
        default=SCRIPT_CELLS,
        help="of these, cells per round of the script loop (%(default)s)",
    )
    parser.add_argument("--train-rows", type=int, default=grid_of.TRAIN_ROWS, help="of a cell (%(default)s)")
    parser.add_argument(
        "--step-repetitions", type=int, default=STEP_REPETITIONS, help="of every contender's step (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=grid_of.EPOCHS, help="of a cell (%(default)s)")
    parser.add_argument(
        "--tables",
        action="store_true",
        help="measure nothing: build summaries and tables from the measurements",
    )
    add_reference(parser)


def check(chosen: argparse.Namespace) -> None:
    """
    Raises: UserError: If an argument is out of range, or PEFT is not installed.
    """
    for name in ("rounds", "script_cells", "step_repetitions", "epochs"):
        if getattr(chosen, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(chosen, name)}")
    if chosen.train_rows < 2:
        raise UserError(f"--train-rows must be >= 2, got {chosen.train_rows}")
    grid_of.seeds_of_round(0, chosen.cells)  # raises
    if chosen.script_cells > chosen.cells:
        raise UserError(f"--script-cells must be at most --cells ({chosen.cells}), got {chosen.script_cells}")
    if not chosen.tables and find_spec("peft") is None:
        raise UserError("the benchmark needs peft, of the extra `peers`: `make setup` installs it")


def measure(chosen: argparse.Namespace, tasks: Sequence[str], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Everything, as measurements.json has it.

    Args:
        tasks: Of the cells.
        overrides: What composes every cell but for its task and seed.
        folder: For rows, caches and logs of this run.
    """
    config = compose_run([*overrides, f"task={tasks[0]}"])
    precision = config.train.precision
    turns = [
        grid_of.peer_cells(grid_of.grid(tasks, seeds), folder / "rows", overrides)
        for seeds in (grid_of.seeds_of_round(number, chosen.cells, tasks) for number in range(chosen.rounds))
    ]
    say("warming up: the peers' choices of threads and attention, one sweep of ours")
    script, script_seconds = sides.fastest(sides.script_choices(), turns[0][0], folder)
    tuned, tuned_seconds = sides.fastest(sides.tuned_choices(precision), turns[0][0], folder)
    sides.run_ours(-1, tasks, [0], overrides, folder)
    loads, rounds = [], []
    for number, cells in enumerate(turns):
        for side in rotated(SIDES, number):
            loads.append(machine.sample_load())
            rounds.append(one_turn(side, number, cells, script, tuned, chosen.script_cells, overrides, folder))
            say(f"round {number + 1} of {chosen.rounds}, {side}: {rounds[-1].seconds:.0f} s")
    say("where the time of one of our cells goes")
    trace_file, steps_file = folder / "trace.json", folder / "steps.json"
    cell = [*overrides, f"task={tasks[0]}"]
    sides.run_process(["-m", "lora.cost.bench.trace", str(trace_file), *cell], folder, folder / "trace.log")
    say("steps")
    loads.append(machine.sample_load())
    asked = [str(steps_file), str(chosen.step_repetitions), *cell]
    sides.run_process(["-m", "lora.cost.bench.steps", *asked], folder, folder / "steps.log")
    return {
        "device": machine.cpu_device(),
        "machine": machine.describe_machine(),
        "versions": machine.versions(),
        "code": code_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "tasks": list(tasks),
            "train_rows": config.data.train_rows,
            "epochs": config.train.epochs,
            "batch": config.train.batch,
            "eval_batch": config.train.eval_batch,
            "max_length": config.data.max_length,
            "rank": config.method.rank,
            "precision": precision,
            "workers": int(compose_config(overrides).launcher.workers),
            "script_threads": script.threads,
            "script_choices": script_seconds,
            "tuned_threads": tuned.threads,
            "tuned_attention": tuned.attention,
            "tuned_choices": tuned_seconds,
            "allocator": machine.ALLOCATOR,
        },
        "loads": [dataclasses.asdict(load) for load in loads],
        "rounds": [dataclasses.asdict(each) for each in rounds],
        "trace": json.loads(trace_file.read_text()),
        "steps": json.loads(steps_file.read_text()),
    }


def one_turn(
    side: str,
    number: int,
    cells: Sequence[PeerCell],
    script: sides.PeerSettings,
    tuned: sides.PeerSettings,
    script_cells: int,
    overrides: Sequence[str],
    folder: Path,
) -> sides.SideRound:
    if side == "script_loop":
        start = number * script_cells  # so that over the rounds every task has its turn
        return sides.run_script_loop(number, rotated(cells, start)[:script_cells], script, folder)
    if side == "tuned_peer":
        return sides.run_tuned_peer(number, cells, tuned, folder)
    tasks, seeds = (list(dict.fromkeys(values)) for values in zip(*((c.task, c.seed) for c in cells), strict=True))
    return sides.run_ours(number, tasks, seeds, overrides, folder)


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done, 2 a mistake in the call or a side that could not run, 130 interrupted."""
    check(chosen)
    place = results_folder(chosen.reference)
    if not chosen.tables:
        with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
            overrides = grid_of.common_overrides(chosen.train_rows, chosen.epochs)
            measured = measure(chosen, grid_of.TASKS_TIMED, overrides, Path(folder))
        write_atomically(place / measured["device"] / "measurements.json", as_json(measured))
    summaries = write_tables(place, ROOT / "experiments/efficiency/README.md" if chosen.reference else None)
    if not summaries:
        raise UserError(f"{place} has no measurements yet: `make bench` makes them")
    print(table.block(summaries))
