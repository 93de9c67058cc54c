"""Compute summary.json from measurements.json. No torch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lora.cost.machine import IDLE_CORES, is_idle
from lora.cost.timing import METHOD, median_of, ratio_of

SCHEMA = 1
SIDES = ("script_loop", "tuned_peer", "ours")
PEERS = SIDES[:2]
MEDIAN_ERROR = 1.2533  # standard error of a median of normal values, over that of their mean: sqrt(pi / 2)
AGREES = "the medians differ by at most twice the standard error of their difference, from the pooled spread of seeds"


def summarise(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        measured: The content of measurements.json.
    """
    rounds, settings = measured["rounds"], measured["settings"]
    rates = {side: [3600 * len(r["cells"]) / r["seconds"] for r in of_side(rounds, side)] for side in SIDES}
    walls = {side: [r["seconds"] / len(r["cells"]) for r in of_side(rounds, side)] for side in SIDES}
    ratios = {f"ratio_{peer}": ratio_of(rates["ours"], rates[peer]) for peer in PEERS}
    steps = step_figures(measured["steps"], settings["precision"])
    per_hour = {side: median_of(values) for side, values in rates.items()}
    per_run = {side: median_of(values) for side, values in walls.items()}
    return {
        "schema": SCHEMA,
        **{key: measured[key] for key in ("device", "machine", "versions", "code", "measured_at", "settings")},
        "idle": idle(measured["loads"], measured["machine"]["cores"]),
        "n": {
            "rounds": len(of_side(rounds, "ours")),
            "cells": {side: sum(len(r["cells"]) for r in of_side(rounds, side)) for side in SIDES},
            "steps": {shape: len(next(iter(times.values()))) for shape, times in measured["steps"]["times"].items()},
        },
        "cells_per_hour": {side: found["median"] for side, found in per_hour.items()},
        "seconds_per_cell": {side: found["median"] for side, found in per_run.items()},
        **{name: found["median"] for name, found in ratios.items()},
        "metric": metrics(rounds),
        "peak_mib": {side: peak_mib(of_side(rounds, side)) for side in SIDES},
        "shares": {
            **{peer: shares(add_parts(of_side(rounds, peer))) for peer in PEERS},
            "ours": our_shares(of_side(rounds, "ours"), measured["trace"], settings["workers"]),
        },
        **steps["figures"],
        "intervals": {
            "method": METHOD,
            "cells_per_hour": per_hour,
            "seconds_per_cell": per_run,
            **ratios,
            **steps["intervals"],
        },
    }


def of_side(rounds: Sequence[Mapping[str, Any]], side: str) -> list[Mapping[str, Any]]:
    return [r for r in sorted(rounds, key=lambda r: r["round"]) if r["side"] == side]


def idle(loads: Sequence[Mapping[str, Any]], cores: int) -> dict[str, Any]:
    """Whether the machine was idle: from samples before the sides' turns, during which nothing of ours ran."""
    known = [load["busy"] for load in loads if load["busy"] is not None]
    return {
        "idle": is_idle([busy * cores for busy in known]),
        "busy_share_max": max(known, default=None),
        "busy_share_median": statistics.median(known) if known else None,
        "stolen_share_max": max((load["stolen"] for load in loads if load["stolen"] is not None), default=None),
        "limit": IDLE_CORES / cores,
        "samples": len(loads),
    }


def metrics(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Task -> side -> the headline metric's median over seeds after the last epoch; whether it agrees with ours."""
    values: dict[str, dict[str, list[float]]] = {}
    for each in rounds:
        for run in each["cells"]:
            if run["metric"] is not None:
                values.setdefault(run["task"], {}).setdefault(each["side"], []).append(run["metric"])
    found = {}
    for task, sides in sorted(values.items()):
        ours = sides.get("ours", [])
        found[task] = {
            side: {
                "median": statistics.median(of_seeds),
                "n": len(of_seeds),
                "std": statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
                "agrees": None if side == "ours" else agrees(of_seeds, ours),
            }
            for side, of_seeds in sorted(sides.items())
        }
    return found


def agrees(theirs: Sequence[float], ours: Sequence[float]) -> bool | None:
    """Whether two sides' medians agree within the spread of seeds (`AGREES`); None if there are too few seeds."""
    degrees = len(theirs) + len(ours) - 2
    if not theirs or not ours or degrees < 1:
        return None
    squares = sum((value - statistics.fmean(side)) ** 2 for side in (theirs, ours) for value in side)
    error = MEDIAN_ERROR * math.sqrt(squares / degrees * (1 / len(theirs) + 1 / len(ours)))
    return abs(statistics.median(theirs) - statistics.median(ours)) <= 2 * error


def peak_mib(rounds: Sequence[Mapping[str, Any]]) -> float | None:
    peaks = [r["peak_bytes"] for r in rounds if r["peak_bytes"] is not None]
    return round(max(peaks) / 2**20, 1) if peaks else None


def add_parts(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {part: sum(r["parts"][part] for r in rounds) for part in rounds[0]["parts"]}


def shares(parts: Mapping[str, float]) -> dict[str, float]:
    total = sum(parts.values())
    return {part: round(value / total, 4) for part, value in parts.items()}


def our_shares(rounds: Sequence[Mapping[str, Any]], trace: Mapping[str, float], workers: int) -> dict[str, float]:
    """Shares of the workers' time. `start-up` is outside of runs: starting, loading libraries, waiting for the last
    run. The rest is divided as in the traced run."""
    available = workers * sum(r["seconds"] for r in rounds)
    in_runs = sum(run["seconds"] for r in rounds for run in r["cells"])
    return shares({"start-up": available - in_runs} | {k: v * in_runs for k, v in shares(trace).items()})


def step_figures(steps: Mapping[str, Any], precision: str) -> dict[str, dict[str, Any]]:
    """Ratios of step times and saved bytes, and the share of matrix products.

    A ratio of times to PEFT's takes the faster of PEFT's two attention implementations at that shape. A ratio of bytes
    takes the one that keeps less.
    """
    precisions = list(dict.fromkeys(name.split()[-1] for times in steps["times"].values() for name in times))
    intervals: dict[str, Any] = {"step_vs_peft": {}, "step_vs_full": {}}
    for each in precisions:
        for shape, times in steps["times"].items():
            medians = {name: statistics.median(values) for name, values in times.items()}
            fastest = least(medians, f" {each}")
            ours = times[f"ours {each}"]
            intervals["step_vs_peft"].setdefault(each, {})[shape] = ratio_of(ours, times[fastest]) | {"peft": fastest}
            intervals["step_vs_full"].setdefault(each, {})[shape] = ratio_of(ours, times[f"full {each}"])
    figures: dict[str, Any] = {}
    for ratio, by_precision in intervals.items():
        plain = {p: {shape: found["median"] for shape, found in shapes.items()} for p, shapes in by_precision.items()}
        figures |= {ratio: plain[precision], f"{ratio}_by_precision": plain}
    saved = {p: against_least(steps["saved_bytes"], f"ours {p}") for p in precisions}
    products = {
        shape: {name: product / wall for name, (product, wall) in found.items()}
        for shape, found in steps["matmul_seconds"].items()
    }
    return {
        "figures": figures
        | {
            "step_ms": {
                shape: {name: round(1000 * statistics.median(values), 2) for name, values in times.items()}
                for shape, times in steps["times"].items()
            },
            "saved_shape": steps["saved_shape"],
            "saved_bytes": steps["saved_bytes"],
            "saved_bytes_vs_peft": saved[precision],
            "saved_bytes_vs_peft_by_precision": saved,
            "recomputing": recomputing(steps, precision),
            "matmul_share": min(shares[f"ours {precisions[0]}"] for shares in products.values()),
            "matmul_shares": products,
            **floor_shares(steps, precision),
        },
        "intervals": intervals,
    }


def floor_shares(steps: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Shape -> the time of matrix products alone as a share of our step's; None if they were not measured."""
    if "floors" not in steps:
        return {"floor_share": None, "floor_share_by_precision": None}
    shares: dict[str, dict[str, float]] = {}
    for shape, floors in steps["floors"].items():
        for each, seconds in floors.items():
            ours = statistics.median(steps["times"][shape][f"ours {each}"])
            shares.setdefault(each, {})[shape] = seconds / ours
    return {"floor_share": shares[precision], "floor_share_by_precision": shares}


def recomputing(steps: Mapping[str, Any], precision: str) -> dict[str, Any] | None:
    """Step times and saved bytes with `model.gradient_checkpointing=true`, as ratios; None if not measured."""
    name = f"ours recomputing {precision}"
    if name not in steps["saved_bytes"]:
        return None
    ratios: dict[str, Any] = {"step_vs_ours": {}, "step_vs_peft": {}}
    for shape, times in steps["times"].items():
        medians = {each: statistics.median(values) for each, values in times.items()}
        ratios["step_vs_ours"][shape] = ratio_of(times[name], times[f"ours {precision}"])["median"]
        ratios["step_vs_peft"][shape] = ratio_of(times[name], times[least(medians, f" {precision}")])["median"]
    return ratios | {"saved_bytes_vs_peft": against_least(steps["saved_bytes"], name)}


def least(values: Mapping[str, float], ending: str) -> str:
    """The PEFT subject with the smallest value, among names with this ending."""
    return min((name for name in values if name.startswith("peft") and name.endswith(ending)), key=values.__getitem__)


def against_least(saved: Mapping[str, int], name: str) -> float:
    """A subject's saved bytes over PEFT's smallest, in the precision that the subject's name ends with."""
    return saved[name] / saved[least(saved, f" {name.split()[-1]}")]
