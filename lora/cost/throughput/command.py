"""`python -m lora bench` (`make bench`): runs per hour and steps, compared with scripts of today, with their tables."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora.config.compose import compose_config, compose_run
from lora.cost import machine
from lora.cost.results import add_place, as_json, at_least_one, folder_of, origin, say
from lora.cost.throughput import runs, sides, tables
from lora.cost.throughput.job import PeerRun
from lora.cost.throughput.summary import SIDES
from lora.cost.timing import orders
from lora.errors import UserError
from lora.files import ROOT, write_atomically

ROUNDS, STEP_REPETITIONS = 6, 11  # ours: a median of 6 or more values has an interval
RUNS, SCRIPT_RUNS = 12, 2  # per round
PAGES = (ROOT / "experiments" / "efficiency" / "README.md", ROOT / "README.md")  # show the committed measurements


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="each side's turns; fewer than 6 give a range (default %(default)s)"
    )
    parser.add_argument(
        "--runs", type=int, default=RUNS, help="runs per round of this project and of the tuned peer (%(default)s)"
    )
    parser.add_argument(
        "--script-runs", type=int, default=SCRIPT_RUNS, help="of these, runs per round of the script loop (%(default)s)"
    )
    parser.add_argument("--train-rows", type=int, default=runs.TRAIN_ROWS, help="of a run (%(default)s)")
    parser.add_argument(
        "--step-repetitions", type=int, default=STEP_REPETITIONS, help="of every kind of step (default %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=runs.EPOCHS, help="of a run (%(default)s)")
    parser.add_argument(
        "--tables",
        action="store_true",
        help="measure nothing: build summaries and tables from the measurements",
    )
    add_place(parser)


def check(chosen: argparse.Namespace) -> None:
    """
    Raises: UserError: If an argument is out of range, or PEFT is needed but not installed.
    """
    at_least_one(chosen, "rounds", "script_runs", "step_repetitions", "epochs")
    if chosen.train_rows < 2:
        raise UserError(f"--train-rows must be >= 2, got {chosen.train_rows}")
    runs.seeds_of_round(0, chosen.runs)  # raises
    if chosen.script_runs > chosen.runs:
        raise UserError(f"--script-runs must be at most --runs ({chosen.runs}), got {chosen.script_runs}")
    if not chosen.tables and find_spec("peft") is None:
        raise UserError("the benchmark needs peft, of the extra `peers`: `make setup` installs it")


def measure(chosen: argparse.Namespace, tasks: Sequence[str], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Take every measurement. Returns: The content of measurements.json.

    Args:
        tasks: Tasks of the runs.
        overrides: Overrides of every run, except its task and seed.
        folder: Folder for the benchmark's examples, caches and logs.
    """
    config = compose_run([*overrides, f"task={tasks[0]}"])
    turns = [
        runs.peer_runs(runs.grid(tasks, seeds), folder / "rows", overrides)
        for seeds in (runs.seeds_of_round(number, chosen.runs, tasks) for number in range(chosen.rounds))
    ]
    say("warming up: the peers' choices of precision, threads and attention, one sweep of ours")
    script, script_seconds = sides.fastest(sides.choices("max_length"), turns[0][0], folder)
    tuned, tuned_seconds = sides.fastest(sides.choices("longest"), turns[0][0], folder)
    sides.run_ours(-1, tasks, [0], overrides, folder)
    loads, rounds = [], []
    for number, order in enumerate(orders(SIDES, chosen.rounds, "sides")):
        for side in order:
            loads.append(machine.sample_load())
            if side == "script_loop":
                start = number * chosen.script_runs  # over the rounds, every task has its turn
                share = [turns[number][(start + place) % chosen.runs] for place in range(chosen.script_runs)]
                rounds.append(sides.run_script_loop(number, share, script, folder))
            elif side == "tuned_peer":
                rounds.append(sides.run_tuned_peer(number, turns[number], tuned, folder))
            else:
                rounds.append(sides.run_ours(number, tasks, seeds_in(turns[number]), overrides, folder))
            say(f"round {number + 1} of {chosen.rounds}, {side}: {rounds[-1].seconds:.0f} s")
    say("where the time of one of our runs goes")
    trace_file, steps_file = folder / "trace.json", folder / "steps.json"
    run = [*overrides, f"task={tasks[0]}"]
    sides.run_process(["-m", "lora.cost.throughput.trace", str(trace_file), *run], folder, folder / "trace.log")
    say("steps")
    loads.append(machine.sample_load())
    asked = [str(steps_file), str(chosen.step_repetitions), *run]
    sides.run_process(["-m", "lora.cost.steps", *asked], folder, folder / "steps.log")
    return origin(machine.cpu_device()) | {
        "settings": {
            "tasks": list(tasks),
            "train_rows": config.data.train_rows,
            "epochs": config.train.epochs,
            "batch": config.train.batch,
            "eval_batch": config.train.eval_batch,
            "max_length": config.data.max_length,
            "rank": config.method.rank,
            "precision": config.train.precision,
            "workers": int(compose_config(overrides).launcher.workers),
            **{f"script_{key}": getattr(script, key) for key in ("precision", "threads", "attention")},
            "script_choices": script_seconds,
            **{f"tuned_{key}": getattr(tuned, key) for key in ("precision", "threads", "attention")},
            "tuned_choices": tuned_seconds,
            "allocator": machine.ALLOCATOR,
        },
        "loads": [dataclasses.asdict(load) for load in loads],
        "rounds": [dataclasses.asdict(each) for each in rounds],
        "trace": json.loads(trace_file.read_text()),
        "steps": json.loads(steps_file.read_text()),
    }


def seeds_in(turn: Sequence[PeerRun]) -> list[int]:
    return list(dict.fromkeys(run.seed for run in turn))


def main(chosen: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or a side that could not run; 130 interrupted."""
    check(chosen)
    place = folder_of("bench", chosen)
    if not chosen.tables:
        with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
            overrides = runs.common_overrides(chosen.train_rows, chosen.epochs)
            measured = measure(chosen, runs.TASKS_TIMED, overrides, Path(folder))
        write_atomically(place / measured["device"] / "measurements.json", as_json(measured))
    summaries = tables.rebuild(place, *(PAGES if chosen.reference else ()))
    if not summaries:
        raise UserError(f"{place} has no measurements yet: `make bench` makes them")
    print(tables.block(summaries))
