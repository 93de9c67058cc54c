"""Write bench.md and the blocks of two pages from measurements.json. No torch."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora.cost.machine import IDLE_CORES
from lora.cost.timing import median_of, ratio_of, shown, spread_name
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import read_object, write_atomically
from lora.table import in_page, markdown

Measured = Mapping[str, Any]  # the content of measurements.json
SIDES = ("script_loop", "tuned_peer", "ours")
PEERS = SIDES[:2]
TITLES = {
    "script_loop": "Script loop: Trainer + PEFT, padded to {max_length}, {script_precision}, a process per run",
    "tuned_peer": "Tuned: Trainer + PEFT, length-grouped, {tuned_precision}, one process",
    "ours": "This project: `python -m lora -m ...`",
}
SPREADS = {
    "95% interval": "In parentheses: the two order statistics, nearest to the median, that enclose the true median "
    "with at least 95%, whatever the distribution",
    "range": "In parentheses: the smallest and the largest value; from 6 rounds on there would be bounds of the true "
    "median",
}
MEDIAN_ERROR = 1.2533  # standard error of a median of normal values, over that of their mean: sqrt(pi / 2)
AGREES = "the medians differ by at most twice the standard error of their difference, from the pooled spread of seeds"


def rebuild(folder: Path, *pages: Path) -> list[Measured]:
    """Write bench.md of every device, and the blocks of these pages. Returns: All measurements, by device.

    Raises: UserError: If a file cannot be read or written.
    """
    measurements: list[Measured] = []
    for path in sorted(folder.glob("*/measurements.json")):
        measured = read_object(path)
        try:
            text = document(measured)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{path} holds no measurements of this benchmark: {error!r}") from error
        write_atomically(path.with_name("bench.md"), text.encode())
        measurements.append(measured)
    for page in pages if measurements else ():
        before = page.read_text()
        after = with_blocks(before, measurements)
        if after != before:
            write_atomically(page, after.encode())
    return measurements


def with_blocks(page: str, measurements: Sequence[Measured]) -> str:
    """The page with each block between its marks, if it has them: `bench` is several lines, `speed` a sentence."""
    return in_page(in_page(page, "bench", f"\n{block(measurements)}\n"), "speed", speed(measurements))


def document(measured: Measured) -> str:
    """bench.md: all figures of one device."""
    parts = [
        f"# Runs an hour on {measured['device']}",
        runs_table(measured),
        runs_text(measured),
        "## Where the time goes",
        shares_table(measured),
        "Shares of each side's time; of this project's, of its workers' time, start-up with waiting for the last one.",
        "## One training step, one thread",
        steps_table(measured["steps"]),
        steps_text(measured),
        "## How it was measured",
        settings_text(measured),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def block(measurements: Sequence[Measured]) -> str:
    """The page's block: the runs and the cost of a step, for every device."""
    parts = []
    for measured in measurements:
        parts += [f"On {machine_text(measured)}:", runs_table(measured)]
        parts.append(f"{runs_text(measured)} {steps_text(measured)}")
    return "\n\n".join(parts)


def speed(measurements: Sequence[Measured]) -> str:
    """The README's sentence: runs an hour of this project, of the tuned and of the plain script, for every device."""
    shown_rates = {measured["device"]: rates(measured) for measured in measurements}
    return "; ".join(
        f"{', '.join(shown(median_of(of[side]), 0) for side in reversed(SIDES))} on {device}"
        for device, of in shown_rates.items()
    )


# Runs.


def turns(measured: Measured, side: str) -> list[Mapping[str, Any]]:
    """The turns of one side, in the order of the rounds."""
    return sorted((turn for turn in measured["rounds"] if turn["side"] == side), key=lambda turn: turn["round"])


def rates(measured: Measured) -> dict[str, list[float]]:
    """Side -> runs per hour, round by round."""
    return {side: [3600 * len(t["cells"]) / t["seconds"] for t in turns(measured, side)] for side in SIDES}


def scores(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """Task -> side -> the headline metric of every run after its last epoch."""
    values: dict[str, dict[str, list[float]]] = {}
    for turn in measured["rounds"]:
        for run in turn["cells"]:
            if run["metric"] is not None:
                values.setdefault(run["task"], {}).setdefault(turn["side"], []).append(run["metric"])
    return dict(sorted(values.items()))


def agrees(theirs: Sequence[float], ours: Sequence[float]) -> bool | None:
    """Whether two sides' medians agree within the spread of seeds (`AGREES`); None if there are too few seeds."""
    degrees = len(theirs) + len(ours) - 2
    if not theirs or not ours or degrees < 1:
        return None
    squares = sum((value - statistics.fmean(side)) ** 2 for side in (theirs, ours) for value in side)
    error = MEDIAN_ERROR * math.sqrt(squares / degrees * (1 / len(theirs) + 1 / len(ours)))
    return abs(statistics.median(theirs) - statistics.median(ours)) <= 2 * error


def runs_table(measured: Measured) -> str:
    rows = []
    for side in SIDES:
        rounds = turns(measured, side)
        peak = round(max(turn["peak_bytes"] for turn in rounds) / 2**20, 1)
        row = {
            "": TITLES[side].format(**settings_of(measured)),
            "runs / hour": shown(median_of(rates(measured)[side]), 0),
            "s / run": f"{statistics.median(turn['seconds'] / len(turn['cells']) for turn in rounds):.1f}",
            "memory, MiB": f"{peak:,.0f}",
        }
        for task, sides in scores(measured).items():
            row[TASKS[task].title] = f"{100 * statistics.median(sides[side]):.1f}" if side in sides else "-"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def runs_text(measured: Measured) -> str:
    settings, per_hour, n = measured["settings"], rates(measured), len(turns(measured, "ours"))
    ratios = (shown(ratio_of(per_hour["ours"], per_hour[peer]), 1) for peer in PEERS)
    script, tuned = (ratio.replace(" ", "x ", 1) for ratio in ratios)  # 9.8x (9.7 to 10.0)
    sides = scores(measured)
    verdicts = [agrees(of[peer], of.get("ours", [])) for of in sides.values() for peer in PEERS if peer in of]
    runs = {side: sum(len(turn["cells"]) for turn in turns(measured, side)) for side in SIDES}
    counts = ", ".join(f"{count} of {side.replace('_', ' ')}" for side, count in runs.items())
    busy = max(sample["busy"] for sample in measured["loads"])
    quiet = busy * measured["machine"]["cores"] <= IDLE_CORES
    text = (
        f"{script} the script loop and {tuned} the tuned peer: medians over {n} interleaved rounds, in parentheses "
        f"their {spread_name(n)}, of LoRA runs of {settings['train_rows']:,} rows and {settings['epochs']} epochs "
        f"({counts}). {verdicts.count(True)} of {len(verdicts)} medians of a peer agree with ours within the noise of "
        f"seeds. {'The machine was idle' if quiet else '**The machine was not idle**'} (others took up to "
        f"{100 * busy:.0f}%)."
    )
    if all(TASKS[task].family == "embedded" for task in sides):
        text += " The scores are of the small embedded tasks, not GLUE, with all-MiniLM-L6-v2, a sentence embedder."
    return text


def shares_table(measured: Measured) -> str:
    """Shares of the time by activity: of the peers' processes, and of our workers."""
    seconds = {peer: added(turn["parts"] for turn in turns(measured, peer)) for peer in PEERS}
    ours = turns(measured, "ours")
    in_runs = sum(run["seconds"] for turn in ours for run in turn["cells"])
    scale = in_runs / sum(measured["trace"].values())
    start = measured["settings"]["workers"] * sum(turn["seconds"] for turn in ours) - in_runs
    seconds["ours"] = {"start-up": start} | {part: value * scale for part, value in measured["trace"].items()}
    shares = pd.DataFrame({side: pd.Series(of) / sum(of.values()) for side, of in seconds.items()}).T.fillna(0.0)
    shares = shares[[part for part in seconds["script_loop"] if part != "other"] + ["other"]]
    cells = shares.map(lambda share: f"{100 * round(share, 4):.1f}%")
    cells.insert(0, "", [side.replace("_", " ") for side in seconds])
    return markdown(cells)


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    return pd.DataFrame(parts).sum().to_dict()


# Steps.


def steps_table(steps: Mapping[str, Any]) -> str:
    """Times and saved bytes by subject. Older measurements have the share of matrix products, by torch's profiler."""
    rows = []
    for name, saved in steps["saved_bytes"].items():
        row = {"step of": name}
        for shape, times in steps["times"].items():
            row[f"{shape}, ms"] = f"{round(1000 * statistics.median(times[name]), 2):,.1f}"
            if products := steps.get("matmul_seconds"):
                of_step = products[shape].get(name)
                row[f"{shape}, products"] = "-" if of_step is None else f"{100 * of_step[0] / of_step[1]:.0f}%"
        row[f"saved at {steps['saved_shape']}, MiB"] = f"{saved / 2**20:,.1f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def steps_text(measured: Measured) -> str:
    steps, precision = measured["steps"], measured["settings"]["precision"]
    ours, full, less = (f"{name} {precision}" for name in ("ours", "full", "ours recomputing"))
    seconds = {shape: {n: statistics.median(v) for n, v in times.items()} for shape, times in steps["times"].items()}

    def smallest_peer(values: Mapping[str, float]) -> str:
        return min((n for n in values if n.startswith("peft") and n.endswith(precision)), key=values.__getitem__)

    def of_times(one: str, other: str | None = None) -> str:
        """One step's time over another's, by default over the faster of PEFT's two attentions."""
        ratios = {
            shape: ratio_of(times[one], times[other or smallest_peer(seconds[shape])])["median"]
            for shape, times in steps["times"].items()
        }
        return by_shape(ratios)

    saved = steps["saved_bytes"]
    least = saved[smallest_peer(saved)]
    sentences = [
        f"A LoRA step (q, v, r = {measured['settings']['rank']}, {precision}, batch x tokens, one thread) takes "
        f"{of_times(ours)} the time of PEFT's, {of_times(ours, full)} that of full fine-tuning here, and keeps "
        f"{saved[ours] / least:.2f}x PEFT's bytes for the backward pass"
    ]
    if "matmul_seconds" in steps:
        profiled = next(n for n in next(iter(steps["matmul_seconds"].values())) if n.startswith("ours "))
        share = min(of[profiled][0] / of[profiled][1] for of in steps["matmul_seconds"].values())
        sentences[0] += f"; matrix products are {100 * share:.0f}% of a {profiled.removeprefix('ours ')} step"
    if "floors" in steps:
        floors = {shape: of[precision] / seconds[shape][ours] for shape, of in steps["floors"].items()}
        sentences.append(
            f"Its matrix products alone, in the fastest layout measured, would take {by_shape(floors)} its time"
        )
    if less in saved:
        sentences.append(
            f"With `model.gradient_checkpointing=true` it keeps {saved[less] / least:.2f}x PEFT's bytes, in "
            f"{of_times(less)} PEFT's time ({of_times(less, ours)} ours)"
        )
    return ". ".join(sentences) + "."


def by_shape(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{ratio:.2f}x at {shape}" for shape, ratio in ratios.items())


# How it was measured.


def settings_of(measured: Measured) -> dict[str, Any]:
    """The settings. Those missing from measurements that predate each peer's choice of precision are filled in."""
    settings = measured["settings"]
    earlier = {"script_precision": "fp32", "script_attention": "sdpa", "tuned_precision": settings["precision"]}
    return earlier | settings


def settings_text(measured: Measured) -> str:
    settings = settings_of(measured)
    products = "; matrix products are their own time in torch's profiler over the wall time of the same steps"
    lines = [
        f"Machine: {machine_text(measured)}; commit {measured['code']['commit']}; {measured['measured_at']}.",
        f"Runs: {', '.join(settings['tasks'])}; {settings['train_rows']} rows, {settings['epochs']} epochs, batch "
        f"{settings['batch']}, evaluation after every epoch in batches of {settings['eval_batch']}; the same encoder, "
        f"rows, learning rates, warmup and seeds on every side.",
        f"Script loop: {choice_text(settings, 'script')}.",
        f"Tuned peer: {choice_text(settings, 'tuned')}.",
        f"Ours: {settings['precision']}, {settings['workers']} workers of 1 thread.",
        f"Allocator, the same on all sides: {', '.join(f'{k}={v}' for k, v in settings['allocator'].items())}.",
        "Time is from a command to its end, start-up included; caches on disk are warm on all sides (tokenised rows of "
        "the peers, compiled kernels of this project). Memory is the most at any moment, shared pages counted once.",
        f"{SPREADS[spread_name(len(turns(measured, 'ours')))]}.",
        f"A metric agrees if {AGREES}.",
        f"Idle: {len(measured['loads'])} samples before the sides' turns, idle if others take at most "
        f"{100 * IDLE_CORES / measured['machine']['cores']:.0f}% of the cores in each.",
        "PEFT in a ratio of steps is the faster of its two attention implementations, in one of bytes the smaller"
        f"{products * ('matmul_seconds' in measured['steps'])}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in measured['versions'].items())}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def choice_text(settings: Mapping[str, Any], peer: str) -> str:
    """A peer's choice, and the time of a few steps with each of the settings offered."""
    tried = "; ".join(f"{name} ({seconds:.1f} s)" for name, seconds in settings[f"{peer}_choices"].items())
    chosen = ", ".join(str(settings[f"{peer}_{what}"]) for what in ("precision", "attention"))
    return f"{chosen} attention, {settings[f'{peer}_threads']} threads, the fastest of {tried}"


def machine_text(measured: Measured) -> str:
    machine = measured["machine"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:.0f} GiB"
    return f"{machine['cores']} cores ({measured['device']}, {machine['cpu']}{memory})"
