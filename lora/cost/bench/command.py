"""`python -m lora bench` (`make bench`): LoRA runs an hour, compared with current scripts.

`script_loop`  Trainer + PEFT, padded to the maximum length, one process per run
`tuned_peer`   Trainer + PEFT, batches of similar length padded to their longest, one process for all runs
`ours`         `python -m lora -m ...`, with its default workers

Each peer has the precision, number of threads and attention that are fastest for it on this machine.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from lora.config.compose import compose_run
from lora.config.encoder_files import locate
from lora.config.run import RunConfig
from lora.cost import machine
from lora.cost.bench.page import SIDES, block, rebuild
from lora.data.read import read
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import ROOT, check_writable, write_atomically
from lora.records.provenance import BF16_FLAGS, code_version, cores, cpu_flags
from lora.records.record import load_records
from lora.rng import shuffled
from lora.training.processes import ALLOCATOR, raised

Run = dict[str, Any]
BENCH_ROUNDS, BENCH_RUNS = 6, 12  # ours: a median of 6 or more values has an interval
SCRIPT_RUNS = 2  # of a round's runs, those that the slow script loop trains
TASKS_TIMED = ("reviews", "ratings")  # one sentence each; far above chance after two epochs of 1,000 examples
# Settings of every run, except its task and seed. The profile's precision is the faster one on this machine.
OVERRIDES = (
    *("profile=mini", "method=lora", "data.train_rows=1000", "train.epochs=2"),
    "rates=null",  # user-defined rates differ from those of the committed measurements
    "runtime.tracking=off",  # no side sends copies to W&B
)
MEMORY_SECONDS = 0.5
CALIBRATION_STEPS = 10
PAGES = (ROOT / "experiments" / "efficiency" / "README.md", ROOT / "README.md")  # show the committed measurements


def options(parser: argparse.ArgumentParser) -> None:
    text = "turns of each side; fewer than 6 give a range (default %(default)s)"
    parser.add_argument("--rounds", type=machine.whole, default=BENCH_ROUNDS, help=text)
    text = "runs per round of this project and of the tuned peer (default %(default)s)"
    parser.add_argument("--runs", type=machine.whole, default=BENCH_RUNS, help=text)
    machine.add_place(parser)


def main(given: argparse.Namespace) -> None:
    """Exit codes: 0 done; 2 a mistake in the call, or a side that could not run; 130 interrupted."""
    tasks = len(TASKS_TIMED)
    if given.runs < 2 * tasks or given.runs % tasks:
        raise UserError(f"--runs must be a multiple of {tasks} and at least {2 * tasks}")
    results = given.results / "bench"
    if not given.tables:
        if find_spec("peft") is None:
            raise UserError("a comparison with PEFT needs peft, of the extra `peers`: `make setup` installs it")
        check_writable(results)
        with raised(), tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
            measured = measure_sides(given.rounds, given.runs, TASKS_TIMED, OVERRIDES, Path(folder))
        write_atomically(results / measured["device"] / "measurements.json", machine.as_json(measured))
    measurements = rebuild(results, *(PAGES if given.results == machine.COMMITTED else ()))
    if not measurements:
        raise UserError(f"{results} holds no measurements: `make bench` makes them")
    print(block(measurements))


def measure_sides(
    rounds: int, runs: int, tasks: Sequence[str], overrides: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Take every measurement. Returns: The content of measurements.json."""
    configs = {task: compose_run([*overrides, f"task={task}"]) for task in tasks}
    examples = {task: export_rows(config, folder / "rows") for task, config in configs.items()}
    config, per_task = configs[tasks[0]], runs // len(tasks)
    print("warming up: the peers' choices, one sweep of ours", file=sys.stderr)
    first = peer_run(config, 0, examples[tasks[0]])
    script, tuned = (fastest(padding, first, folder) for padding in ("max_length", "longest"))
    run_ours(tasks, [0], overrides, folder)
    busy, turns = [], []
    for number in range(rounds):
        seeds = range(number * per_task + 1, (number + 1) * per_task + 1)  # no two rounds share one
        peers = [peer_run(configs[task], seed, examples[task]) for seed in seeds for task in tasks]
        few = [peers[(number * SCRIPT_RUNS + place) % runs] for place in range(SCRIPT_RUNS)]  # every task in turn
        actions = {
            "script_loop": lambda few=few: run_peer([[run] for run in few], script, folder),
            "tuned_peer": lambda peers=peers: run_peer([peers], tuned, folder),
            "ours": lambda seeds=seeds: run_ours(tasks, seeds, overrides, folder),
        }
        for place in shuffled(len(SIDES), "sides", number):
            side = SIDES[place]
            busy.append(machine.busy_cores())
            turns.append({"round": number, "side": side, **actions[side]()})
            print(f"round {number + 1} of {rounds}, {side}: {turns[-1]['seconds']:.0f} s", file=sys.stderr)
    return {
        "device": machine.slug(machine.cpu_name()),
        "machine": machine.describe_machine(),
        "versions": machine.versions(),
        "code": code_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"tasks": list(tasks), "train_rows": config.data.train_rows, "epochs": config.train.epochs}
        | {"max_length": config.data.max_length, "script": script, "tuned": tuned, "allocator": ALLOCATOR},
        "busy_cores": busy,
        "rounds": turns,
    }


# The runs.


def export_rows(config: RunConfig, folder: Path) -> Path:
    """Write the splits that a run reads as JSON lines, for a script. Returns: Their folder."""
    task, target = TASKS[config.task], folder / config.task
    splits = read(task, **config.rows).splits
    target.mkdir(parents=True)
    for split, name in zip(task.training_splits, ("train", "validation"), strict=True):
        columns = pd.DataFrame({key: splits[split][key] for key in (*task.columns, "label")})
        columns.to_json(target / f"{name}.json", orient="records", lines=True)
    return target


def peer_run(config: RunConfig, seed: int, rows: Path) -> Run:
    """The settings of a LoRA run on an encoder with BERT's module names, for `lora.cost.bench.peer`."""
    task = TASKS[config.task]
    train = config.train
    method = config.method
    of_train = ("epochs", "batch", "eval_batch", "lr", "warmup_frac", "weight_decay", "clip_norm")
    settings: Run = {key: getattr(train, key) for key in of_train}
    settings |= {key: getattr(method, key) for key in ("rank", "alpha", "dropout", "targets")}
    settings |= {"columns": task.columns, "outputs": len(task.labels) or 1, "metrics": task.metrics}
    settings |= {"model": locate(config.model)[0], "rows": str(rows), "max_length": config.data.max_length}
    return settings | {"task": config.task, "seed": seed}


# The sides. A turn is a mapping: `seconds`, from the command to its end, summed over the side's processes;
# `peak_bytes`, with shared pages counted once; and `cells`, the finished runs.


def run_process(arguments: Sequence[str], folder: Path, log: Path) -> tuple[float, int]:
    """Run Python in the repository's root, offline, with our allocator, torch's default threads and output in `log`.

    Returns: Its seconds, and the peak memory of it and its descendants in bytes.
    Raises: UserError: If it fails, with the last lines of its output.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    command = [sys.executable, *arguments]
    environment = inherited | ALLOCATOR | offline
    started, peak = time.monotonic(), 0
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.returncode is None:
                peak = max(peak, tree_bytes(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(MEMORY_SECONDS)
        finally:
            process.terminate()  # on an interruption; a finished process is not affected
            process.wait()
    seconds = time.monotonic() - started
    if process.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-15:])
        raise UserError(f"python {' '.join(arguments)} ended with exit code {process.returncode}:\n{last}")
    return seconds, peak


def tree_bytes(pid: int) -> int:
    """Bytes of a process and its descendants. On Linux a page that they share counts once in all (its PSS)."""
    total = 0
    with suppress(psutil.Error):  # processes that end meanwhile count as zero
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
    return total


def run_peer(jobs: Sequence[Sequence[Run]], settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train the runs of each job in a process of a peer. Returns: A turn."""
    turn: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0, "cells": []}
    for runs in jobs:
        job = folder / "job.json"
        job.write_text(json.dumps({"runs": runs, "settings": settings}))
        seconds, peak = run_process(["-m", "lora.cost.bench.peer", str(job)], folder, folder / "job.log")
        turn["seconds"] += seconds
        turn["peak_bytes"] = max(peak, turn["peak_bytes"])
        turn["cells"] += json.loads(job.with_suffix(".answer.json").read_text())
    return turn


def run_ours(tasks: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run the command as a user does, with temporary folders for its results. Returns: A turn."""
    place = Path(tempfile.mkdtemp(prefix="ours-", dir=folder))
    lists = [f"task={','.join(tasks)}", f"seed={','.join(map(str, seeds))}"]
    places = [f"runtime.results={place}/results", f"runtime.outputs={place}/outputs"]
    command = ["-m", "lora", "-m", "experiment=null", *overrides, *lists, *places]
    seconds, peak = run_process(command, folder, folder / "ours.log")
    cells = []
    for record in load_records(place / "results")[0]:
        trainable = record.params["trainable_method"] + record.params["trainable_head"]
        cell = {"metric": record.selected["last"]["value"], "trainable": trainable}
        cells.append({"task": record.config["task"], "seed": record.config["seed"]} | cell)
    shutil.rmtree(place)
    return {"seconds": seconds, "peak_bytes": peak, "cells": cells}


def fastest(padding: str, run: Run, folder: Path) -> dict[str, Any]:
    """The precision, number of threads and attention with which a peer's steps are fastest on this CPU.

    Each choice trains the same run twice for a few steps. The first run is a warm-up; the second is timed.
    """
    precisions = ("fp32", "bf16") if cpu_flags() & BF16_FLAGS else ("fp32",)
    threads = sorted({2**power for power in range(cores().bit_length())} | {cores()})
    seconds: dict[tuple[str, int, str], float] = {}
    keys = ("precision", "threads", "attention")
    for choice in itertools.product(precisions, threads, ("eager", "sdpa")):
        short = dict(zip(keys, choice, strict=True)) | {"padding": padding, "max_steps": CALIBRATION_STEPS}
        seconds[choice] = run_peer([[run, run]], short, folder)["cells"][1]["step_seconds"]
    best = min(seconds, key=lambda choice: seconds[choice])
    return dict(zip(keys, best, strict=True)) | {"padding": padding, "max_steps": None}
