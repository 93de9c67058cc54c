"""Write summary.json, bench.md and the blocks of two pages from measurements.json. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora.cost.results import as_json
from lora.cost.throughput.summary import AGREES, PEERS, SIDES, summarise
from lora.cost.timing import name_of, shown
from lora.data.tasks import TASKS
from lora.errors import UserError
from lora.files import read_object, write_atomically
from lora.table import in_page, markdown

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


def rebuild(folder: Path, *pages: Path) -> list[dict[str, Any]]:
    """Build summary.json and bench.md of every device from its measurements.

    Args:
        pages: Pages whose blocks are written from all summaries.
    Raises: UserError: If a file cannot be read or written.
    """
    summaries = []
    for path in sorted(folder.glob("*/measurements.json")):
        try:
            summary = summarise(read_object(path))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds no measurements of this benchmark: {error!r}") from error
        write_atomically(path.with_name("summary.json"), as_json(summary))
        write_atomically(path.with_name("bench.md"), document(summary).encode())
        summaries.append(summary)
    for page in pages if summaries else ():
        before = page.read_text()
        after = with_blocks(before, summaries)
        if after != before:
            write_atomically(page, after.encode())
    return summaries


def document(summary: Mapping[str, Any]) -> str:
    """bench.md: all figures of one device."""
    parts = [
        f"# Runs an hour on {summary['device']}",
        runs_table(summary),
        runs_text(summary),
        "## Where the time goes",
        shares_table(summary),
        "Shares of each side's time; of this project's, of its workers' time, start-up with waiting for the last one.",
        "## One training step, one thread",
        steps_table(summary),
        steps_text(summary),
        "## How it was measured",
        settings_text(summary),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def block(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page's block: the runs and the cost of a step, for every device."""
    parts = []
    for summary in summaries:
        parts += [f"On {machine_text(summary)}:", runs_table(summary), f"{runs_text(summary)} {steps_text(summary)}"]
    return "\n\n".join(parts)


def speed(summaries: Sequence[Mapping[str, Any]]) -> str:
    """The README's sentence: runs an hour of this project, of the tuned and of the plain script, for every device."""
    sides = ("ours", "tuned_peer", "script_loop")
    rates = {each["device"]: each["intervals"]["cells_per_hour"] for each in summaries}
    return "; ".join(f"{', '.join(shown(of[side], 0) for side in sides)} on {device}" for device, of in rates.items())


def with_blocks(page: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page with each block between its marks, if it has them: `bench` is several lines, `speed` a sentence."""
    return in_page(in_page(page, "bench", f"\n{block(summaries)}\n"), "speed", speed(summaries))


def settings_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The settings. Those missing from measurements that predate each peer's choice of precision are filled in."""
    settings = summary["settings"]
    earlier = {"script_precision": "fp32", "script_attention": "sdpa", "tuned_precision": settings["precision"]}
    return earlier | settings


def runs_table(summary: Mapping[str, Any]) -> str:
    rows = []
    for side in SIDES:
        row = {
            "": TITLES[side].format(**settings_of(summary)),
            "runs / hour": shown(summary["intervals"]["cells_per_hour"][side], 0),
            "s / run": f"{summary['seconds_per_cell'][side]:.1f}",
            "memory, MiB": "-" if summary["peak_mib"][side] is None else f"{summary['peak_mib'][side]:,.0f}",
        }
        for task, sides in summary["metric"].items():
            found = sides.get(side)
            row[TASKS[task].title] = f"{100 * found['median']:.1f}" if found else "-"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def runs_text(summary: Mapping[str, Any]) -> str:
    script, tuned = (summary["intervals"][f"ratio_{peer}"] for peer in PEERS)
    n, idle, settings = summary["n"], summary["idle"], summary["settings"]
    verdicts = [s["agrees"] for sides in summary["metric"].values() for name, s in sides.items() if name != "ours"]
    quiet = {
        True: "The machine was idle",
        False: "**The machine was not idle**",
        None: "Whether it was idle is unknown",
    }
    busy = "" if idle["busy_share_max"] is None else f" (others took up to {100 * idle['busy_share_max']:.0f}%)"
    counts = ", ".join(f"{count} of {side.replace('_', ' ')}" for side, count in n["cells"].items())
    return (
        f"{_times(script)} the script loop and {_times(tuned)} the tuned peer: medians over {n['rounds']} interleaved "
        f"rounds, in parentheses their {name_of(script)}, of LoRA runs of {settings['train_rows']:,} rows and "
        f"{settings['epochs']} epochs ({counts}). {verdicts.count(True)} of {len(verdicts)} medians of a peer agree "
        f"with ours within the noise of seeds. {quiet[idle['idle']]}{busy}.{_not_glue(summary)}"
    )


def _not_glue(summary: Mapping[str, Any]) -> str:
    """What the scores are of, for the embedded tasks and encoder: the benchmark's default."""
    if not all(TASKS[task].family == "embedded" for task in summary["metric"]):
        return ""
    return " The scores are of the small embedded tasks, not GLUE, with all-MiniLM-L6-v2, a sentence embedder."


def _times(ratio: Mapping[str, Any]) -> str:
    """Format a ratio as `9.8x (9.7 to 10.0)`."""
    median, spread = shown(ratio, 1).split(" ", 1)
    return f"{median}x {spread}"


def shares_table(summary: Mapping[str, Any]) -> str:
    parts = list(dict.fromkeys(part for shares in summary["shares"].values() for part in shares))
    parts = [part for part in parts if part != "other"] + ["other"]
    rows = [
        {"": side.replace("_", " "), **{part: f"{100 * shares.get(part, 0.0):.1f}%" for part in parts}}
        for side, shares in summary["shares"].items()
    ]
    return markdown(pd.DataFrame(rows))


def steps_table(summary: Mapping[str, Any]) -> str:
    shape_of_bytes = summary["saved_shape"]
    rows = []
    for name in next(iter(summary["step_ms"].values())):
        row = {"step of": name}
        for shape, times in summary["step_ms"].items():
            share = summary["matmul_shares"].get(shape, {}).get(name)
            row[f"{shape}, ms"] = f"{times[name]:,.1f}"
            row[f"{shape}, products"] = "-" if share is None else f"{100 * share:.0f}%"
        row[f"saved at {shape_of_bytes}, MiB"] = f"{summary['saved_bytes'][name] / 2**20:,.1f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def steps_text(summary: Mapping[str, Any]) -> str:
    def of_shapes(ratio: str, found: Mapping[str, Any] = summary) -> str:
        return ", ".join(f"{value:.2f}x at {shape}" for shape, value in found[ratio].items())

    precision = summary["settings"]["precision"]
    shares = next(iter(summary["matmul_shares"].values()))
    profiled = next(name.removeprefix("ours ") for name in shares if name.startswith("ours "))
    less = summary["recomputing"]
    recomputing = less and (
        f" With `model.gradient_checkpointing=true` it keeps {less['saved_bytes_vs_peft']:.2f}x PEFT's bytes, in "
        f"{of_shapes('step_vs_peft', less)} PEFT's time ({of_shapes('step_vs_ours', less)} ours)."
    )
    floor = summary["floor_share"] and (
        f" Its matrix products alone, in the fastest layout measured, would take {of_shapes('floor_share')} its time."
    )
    return (
        f"A LoRA step (q, v, r = {summary['settings']['rank']}, {precision}, batch x tokens, one thread) takes "
        f"{of_shapes('step_vs_peft')} the time of PEFT's, {of_shapes('step_vs_full')} that of full fine-tuning here, "
        f"and keeps {summary['saved_bytes_vs_peft']:.2f}x PEFT's bytes for the backward pass; matrix products are "
        f"{100 * summary['matmul_share']:.0f}% of a {profiled} step.{floor or ''}{recomputing or ''}"
    )


def settings_text(summary: Mapping[str, Any]) -> str:
    settings, idle = settings_of(summary), summary["idle"]
    rounds = summary["intervals"]["ratio_script_loop"]
    lines = [
        f"Machine: {machine_text(summary)}; commit {summary['code']['commit']}; {summary['measured_at']}.",
        f"Runs: {', '.join(settings['tasks'])}; {settings['train_rows']} rows, {settings['epochs']} epochs, batch "
        f"{settings['batch']}, evaluation after every epoch in batches of {settings['eval_batch']}; the same encoder, "
        f"rows, learning rates, warmup and seeds on every side.",
        f"Script loop: {choice_text(settings, 'script')}.",
        f"Tuned peer: {choice_text(settings, 'tuned')}.",
        f"Ours: {settings['precision']}, {settings['workers']} workers of 1 thread.",
        f"Allocator, the same on all sides: {', '.join(f'{k}={v}' for k, v in settings['allocator'].items())}.",
        "Time is from a command to its end, start-up included; caches on disk are warm on all sides (tokenised rows of "
        "the peers, compiled kernels of this project). Memory is the most at any moment, shared pages counted once.",
        f"{SPREADS[name_of(rounds)]}.",
        f"A metric agrees if {AGREES}.",
        f"Idle: {idle['samples']} samples before the sides' turns, idle if others take at most "
        f"{100 * idle['limit']:.0f}% of the cores in each.",
        "PEFT in a ratio of steps is the faster of its two attention implementations, in one of bytes the smaller; "
        "matrix products are their own time in torch's profiler over the wall time of the same steps.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in summary['versions'].items())}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def choice_text(settings: Mapping[str, Any], peer: str) -> str:
    """A peer's choice, and the time of a few steps with each of the settings offered."""
    tried = "; ".join(
        f"{name} ({'given up as much slower' if seconds is None else f'{seconds:.1f} s'})"
        for name, seconds in settings[f"{peer}_choices"].items()
    )
    chosen = ", ".join(str(settings[f"{peer}_{what}"]) for what in ("precision", "attention"))
    return f"{chosen} attention, {settings[f'{peer}_threads']} threads, the fastest of {tried}"


def machine_text(summary: Mapping[str, Any]) -> str:
    machine = summary["machine"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:.0f} GiB"
    return f"{machine['cores']} cores ({summary['device']}, {machine['cpu']}{memory})"
