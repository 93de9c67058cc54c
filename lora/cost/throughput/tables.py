"""summary.json as Markdown: bench.md beside it, and the README's block. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora.cost.throughput.summary import AGREES, SIDES
from lora.data.tasks import TASKS
from lora.table import markdown

BEGIN, END = "<!-- bench begin -->", "<!-- bench end -->"
TITLES = {
    "script_loop": "Script loop: Trainer + PEFT, padded to {max_length}, fp32, a process per cell",
    "tuned_peer": "Tuned: Trainer + PEFT, length-grouped, {precision}, one process",
    "ours": "This project: `python -m lora -m ...`",
}


def document(summary: Mapping[str, Any]) -> str:
    """bench.md: all figures of one device."""
    parts = [
        f"# Cells per hour on {summary['device']}",
        cells_table(summary),
        cells_text(summary),
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
    """The README's block: the cells of every device, and what a step takes."""
    parts = []
    for summary in summaries:
        parts += [f"On {machine_text(summary)}:", cells_table(summary), f"{cells_text(summary)} {steps_text(summary)}"]
    return "\n\n".join(parts)


def in_readme(readme: str, text: str) -> str:
    """The README with the block between its marks; unchanged where it has none."""
    if BEGIN not in readme or END not in readme:
        return readme
    return f"{readme.partition(BEGIN)[0]}{BEGIN}\n{text}\n{END}{readme.partition(END)[2]}"


def cells_table(summary: Mapping[str, Any]) -> str:
    rows = []
    for side in SIDES:
        rate = summary["intervals"]["cells_per_hour"][side]
        row = {
            "": TITLES[side].format(**summary["settings"]),
            "cells / hour": f"{rate['median']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f})",
            "s / cell": f"{summary['seconds_per_cell'][side]:.1f}",
            "memory, MiB": "-" if summary["peak_mib"][side] is None else f"{summary['peak_mib'][side]:,.0f}",
        }
        for task, sides in summary["metric"].items():
            found = sides.get(side)
            row[TASKS[task].title] = f"{100 * found['median']:.1f}" if found else "-"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def cells_text(summary: Mapping[str, Any]) -> str:
    ratios = {peer: summary["intervals"][f"ratio_{peer}"] for peer in SIDES[:2]}
    script, tuned = (f"{r['median']:.1f}x ({r['low']:.1f} to {r['high']:.1f})" for r in ratios.values())
    n, idle, settings = summary["n"], summary["idle"], summary["settings"]
    verdicts = [s["agrees"] for sides in summary["metric"].values() for name, s in sides.items() if name != "ours"]
    agreed = f"{verdicts.count(True)} of {len(verdicts)} medians of a peer agree with ours"
    quiet = {
        True: "The machine was idle",
        False: "**The machine was not idle**",
        None: "Whether it was idle is unknown",
    }
    busy = "" if idle["busy_share_max"] is None else f" (others took up to {100 * idle['busy_share_max']:.0f}%)"
    return (
        f"{script} the script loop and {tuned} the tuned peer: medians over {n['rounds']} interleaved rounds, in "
        f"parentheses their intervals, of LoRA cells of {settings['train_rows']:,} rows and {settings['epochs']} "
        f"epochs ({', '.join(f'{count} of {side}' for side, count in n['cells'].items())}). {agreed} within the noise "
        f"of seeds. {quiet[idle['idle']]}{busy}."
    )


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
        row = {"contender": name}
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
    return (
        f"A LoRA step (q, v, r = {summary['settings']['rank']}, {precision}, batch x tokens, one thread) takes "
        f"{of_shapes('step_vs_peft')} the time of PEFT's, {of_shapes('step_vs_full')} that of full fine-tuning here, "
        f"and keeps {summary['saved_bytes_vs_peft']:.2f}x PEFT's bytes for the backward pass; matrix products are "
        f"{100 * summary['matmul_share']:.0f}% of a {profiled} step.{recomputing or ''}"
    )


def settings_text(summary: Mapping[str, Any]) -> str:
    settings, idle = summary["settings"], summary["idle"]
    script, tuned = (choices_text(settings[f"{side}_choices"]) for side in ("script", "tuned"))
    lines = [
        f"Machine: {machine_text(summary)}; commit {summary['code']['commit']}; {summary['measured_at']}.",
        f"Cells: {', '.join(settings['tasks'])}; {settings['train_rows']} rows, {settings['epochs']} epochs, batch "
        f"{settings['batch']}, evaluation after every epoch in batches of {settings['eval_batch']}; the same encoder, "
        f"rows, learning rates, warmup and seeds on every side.",
        f"Precision: {settings['precision']} for the tuned peer and ours, the one that is faster on this kind of CPU.",
        f"Threads: script loop {settings['script_threads']}, the fastest of {script}; tuned peer "
        f"{settings['tuned_threads']} with {settings['tuned_attention']} attention, the fastest of {tuned}; ours "
        f"{settings['workers']} workers of 1.",
        f"Allocator, the same on all sides: {', '.join(f'{k}={v}' for k, v in settings['allocator'].items())}.",
        "Time is from a command to its end, start-up included; caches on disk are warm on all sides (tokenised rows of "
        "the peers, compiled kernels of this project). Memory is the most at any moment, shared pages counted once.",
        f"Intervals: {summary['intervals']['method']}.",
        f"A metric agrees if {AGREES}.",
        f"Idle: {idle['samples']} samples before the sides' turns, idle if others take at most "
        f"{100 * idle['limit']:.0f}% of the cores in each.",
        "PEFT in a ratio of steps is the faster of its two attention implementations, in one of bytes the smaller; "
        "matrix products are their own time in torch's profiler over the wall time of the same steps.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in summary['versions'].items())}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def choices_text(choices: Mapping[str, float | None]) -> str:
    """What a few steps took with each choice."""
    return "; ".join(
        f"{name} ({'given up as much slower' if seconds is None else f'{seconds:.1f} s'})"
        for name, seconds in choices.items()
    )


def machine_text(summary: Mapping[str, Any]) -> str:
    machine = summary["machine"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:.0f} GiB"
    return f"{machine['cores']} cores ({summary['device']}, {machine['cpu']}{memory})"
