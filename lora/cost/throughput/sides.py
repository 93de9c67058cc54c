"""The three sides as separate processes: time, memory and results of each.

`script_loop`  Trainer + PEFT, padded to the maximum length, one process per run
`tuned_peer`   Trainer + PEFT, batches of similar length padded to their longest, one process for all runs
`ours`         `python -m lora -m ...`, with its default workers

Each peer has the precision, number of threads and attention that are fastest for it on this machine.
"""

import dataclasses
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora.cost.machine import ALLOCATOR, tree_bytes
from lora.cost.throughput.job import Answer, Job, PeerRun, PeerSettings, RunCost, read, write
from lora.errors import UserError
from lora.files import ROOT
from lora.records.machine import BF16_FLAGS, cores, cpu_flags
from lora.records.record import RunRecord, load_records

SAMPLE_SECONDS = 0.5
CALIBRATION_STEPS = 10
GIVEN_UP = 3.0  # times the shortest run; on a busy machine, threads that wait for each other can take ten times as long


@dataclass(frozen=True)
class Process:
    """The wall time of a process, and the peak memory of it and its descendants; None if unknown."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class SideRound:
    """One side's runs of one round.

    Args:
        seconds: Wall time from the command to its end, summed over the side's commands.
        peak_bytes: Peak memory, with a page that processes share counted once; None if unknown.
        cells: The runs; this is their key in committed measurements.
        parts: Seconds of a peer's processes by activity; None for this project, whose runs are traced separately.
    """

    round: int
    side: str
    seconds: float
    peak_bytes: int | None
    cells: tuple[RunCost, ...]
    parts: dict[str, float] | None


def environment(folder: Path) -> dict[str, str]:
    """The environment of every side: offline, datasets cached in `folder`, our allocator, torch's default threads."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    return inherited | ALLOCATOR | offline


def run_process(arguments: Sequence[str], folder: Path, log: Path, limit_seconds: float = math.inf) -> Process:
    """Run Python with these arguments in the repository's root, with its output in `log`.

    Raises: UserError: If it fails, with the last lines of its output. TimeoutError: If it is terminated at the limit.
    """
    with open(log, "w") as output:
        started, peak = time.monotonic(), None
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment(folder), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.returncode is None:
                now = tree_bytes(process.pid)
                peak = now if peak is None else max(peak, now or 0)
                try:
                    process.wait(SAMPLE_SECONDS)
                except subprocess.TimeoutExpired:
                    if time.monotonic() - started > limit_seconds:
                        raise TimeoutError(
                            f"python {' '.join(arguments)} took longer than {limit_seconds:.0f} s"
                        ) from None
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.monotonic() - started
    if process.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-15:])
        raise UserError(f"python {' '.join(arguments)} ended with exit code {process.returncode}:\n{last}")
    return Process(seconds, peak)


def run_job(
    runs: Sequence[PeerRun], settings: PeerSettings, folder: Path, name: str, limit_seconds: float = math.inf
) -> tuple[Process, Answer]:
    """Train runs in one process of a peer."""
    path = folder / f"{name}.json"
    write(path, Job(tuple(runs), settings, str(folder), time.monotonic()))
    arguments = ["-m", "lora.cost.throughput.peer", str(path)]
    process = run_process(arguments, folder, folder / f"{name}.log", limit_seconds)
    return process, read(path.with_suffix(".answer.json"), Answer)


def parts_of(process: Process, answer: Answer) -> dict[str, float]:
    """Seconds of a peer's process by activity; `other` is the remainder."""
    parts = {"start-up": answer.startup_seconds}
    for run in answer.runs:
        parts = {part: parts.get(part, 0.0) + run.parts.get(part, 0.0) for part in {**parts, **run.parts}}
    return parts | {"other": process.seconds - sum(parts.values())}


def fastest(
    offered: Mapping[str, PeerSettings], run: PeerRun, folder: Path
) -> tuple[PeerSettings, dict[str, float | None]]:
    """The settings with the fastest steps, and the seconds of each; None for one that was stopped as much slower.

    Each trains the same run twice for a few steps. The first run is a warm-up; the second is timed.
    """
    found: dict[str, float | None] = {}
    shortest = math.inf
    for number, (name, settings) in enumerate(offered.items()):
        short = dataclasses.replace(settings, max_steps=CALIBRATION_STEPS)
        try:
            process, answer = run_job([run, run], short, folder, f"choice-{number}", GIVEN_UP * shortest)
        except TimeoutError:
            found[name] = None
        else:
            found[name] = answer.runs[1].parts["step"]
            shortest = min(shortest, process.seconds)
    best = min((name for name in found if found[name] is not None), key=found.__getitem__)
    return offered[best], found


def choices(padding: Literal["max_length", "longest"]) -> dict[str, PeerSettings]:
    """The settings that a peer chooses among: this CPU's precisions, numbers of threads, and attentions."""
    threads = sorted({2**power for power in range(cores().bit_length()) if 2**power <= cores()} | {cores()})
    return {
        f"{count} threads, {attention}, {precision}": PeerSettings(padding, precision, count, attention)
        for precision in ("fp32", *(["bf16"] if cpu_flags() & BF16_FLAGS else []))
        for count in threads
        for attention in ("eager", "sdpa")
    }


def run_script_loop(number: int, runs: Sequence[PeerRun], settings: PeerSettings, folder: Path) -> SideRound:
    done = [run_job([run], settings, folder, f"script-{number}-{run.name}") for run in runs]
    # A run's wall time is its process's: the loop pays the start-up of every run.
    costs = tuple(dataclasses.replace(answer.runs[0], seconds=process.seconds) for process, answer in done)
    by_run = [parts_of(*each) for each in done]
    parts = {part: sum(parts[part] for parts in by_run) for part in by_run[0]}
    peaks = [process.peak_bytes for process, _ in done if process.peak_bytes is not None]
    seconds = sum(process.seconds for process, _ in done)
    return SideRound(number, "script_loop", seconds, max(peaks, default=None), costs, parts)


def run_tuned_peer(number: int, runs: Sequence[PeerRun], settings: PeerSettings, folder: Path) -> SideRound:
    process, answer = run_job(runs, settings, folder, f"tuned-{number}")
    parts = parts_of(process, answer)
    return SideRound(number, "tuned_peer", process.seconds, process.peak_bytes, answer.runs, parts)


def run_ours(
    number: int, tasks: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], folder: Path
) -> SideRound:
    """Run the command as a user does, with temporary folders for its results."""
    place = Path(tempfile.mkdtemp(prefix=f"ours-{number}-", dir=folder))
    arguments = [
        *("-m", "lora", "-m", *overrides),
        f"task={','.join(tasks)}",
        f"seed={','.join(map(str, seeds))}",
        f"runtime.results={place}/results",
        f"runtime.outputs={place}/outputs",
    ]
    process = run_process(arguments, folder, folder / f"{place.name}.log")
    records, _ = load_records(place / "results")
    shutil.rmtree(place)
    return SideRound(number, "ours", process.seconds, process.peak_bytes, tuple(map(cost_of, records)), None)


def cost_of(record: RunRecord) -> RunCost:
    """A record as the cost of a run. `parts` has only the loop over batches, which every record times."""
    return RunCost(
        name=f"{record.config['task']}.s{record.config['seed']}",
        task=record.config["task"],
        seed=record.config["seed"],
        metric=record.selected["last"]["value"],
        trainable=record.params["trainable_method"] + record.params["trainable_head"],
        seconds=record.seconds,
        parts={"loop": record.cost["train_seconds"]},
    )
