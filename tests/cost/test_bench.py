"""The benchmark: timings, the machine, the sides on tiny models, and the page that follows from the measurements."""

import json
import subprocess
import sys

import psutil
import pytest
from sweeping import wait_for

from lora.cli import main
from lora.cost.bench import command as bench
from lora.cost.bench import page
from lora.cost.machine import COMMITTED, as_json
from lora.cost.timing import median_interval, shown
from lora.files import ROOT
from lora.table import MARK

pytestmark = pytest.mark.alone


def test_fewer_than_six_values_give_a_range_and_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert shown([1000.0, 3000.0, 2000.04], 1) == "2,000.0 (1,000.0 to 3,000.0)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="proportional set sizes are Linux's")
def test_memory_of_a_process_is_that_of_its_descendants_too():
    hold = "import sys; held = bytearray(80 << 20); print('held', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert 80 << 20 < bench.tree_bytes(process.pid) < 200 << 20
    finally:
        process.communicate("")
    assert bench.tree_bytes(process.pid) == 0


def test_a_bench_that_is_stopped_stops_the_peer_that_trains(tmp_path):
    call = [sys.executable, "-m", "lora", "bench", "--rounds", "1", "--runs", "4", "--results", str(tmp_path)]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def training():
        """Not the process that measures the precision, nor one between fork and exec, whose memory is its parent's."""
        running = psutil.process_iter(["ppid", "cmdline", "memory_info"])
        of_bench = [one for one in running if one.info["ppid"] == process.pid and one.info["cmdline"]]
        peers = [one for one in of_bench if "lora.cost.bench.peer" in one.info["cmdline"]]
        return [one for one in peers if one.info["memory_info"].rss > 100 << 20]  # its memory tells that it has begun

    peers = wait_for(training, process)
    process.terminate()
    output, _ = process.communicate()
    assert process.returncode == 130 and not psutil.wait_procs(peers, timeout=10)[1], output


def test_the_whole_benchmark_on_tiny_runs(tiny_overrides, tmp_path, monkeypatch):
    """A peer and this project run in the processes that a real benchmark starts; the peer's settings are given."""
    chosen = {"precision": "fp32", "threads": 1, "attention": "sdpa", "max_steps": None}
    ours = bench.run_ours
    monkeypatch.setattr(bench, "fastest", lambda padding, *_: chosen | {"padding": padding})
    monkeypatch.setattr(bench, "SIDES", ("tuned_peer", "ours"))
    monkeypatch.setattr(bench, "run_ours", lambda tasks, seeds, *more: seeds != [0] and ours(tasks, seeds, *more))
    replaced = ("task=", "runtime.results", "runtime.outputs")
    overrides = [override for override in tiny_overrides if not override.startswith(replaced)]
    overrides += ["data.train_rows=40", "method.rank=2", "launcher.workers=1"]
    measured = bench.measure_sides(1, 4, ("cola", "mrpc"), overrides, tmp_path)
    assert measured == json.loads(as_json(measured))
    assert {turn["side"]: len(turn["cells"]) for turn in measured["rounds"]} == {"tuned_peer": 4, "ours": 4}
    cells = [run for turn in measured["rounds"] for run in turn["cells"]]
    assert len({run["trainable"] for run in cells}) == 1 and all(-1 <= run["metric"] <= 1 for run in cells)
    assert all(turn["peak_bytes"] > 0 for turn in measured["rounds"])


def a_turn(number: int, side: str, seconds: float, values: list[float], peak: int) -> dict:
    cells = [{"task": "reviews", "seed": n, "metric": value} for n, value in enumerate(values)]
    return {"round": number, "side": side, "seconds": seconds, "cells": cells, "peak_bytes": peak << 20}


@pytest.fixture
def planted() -> dict:
    """Measurements whose figures can be worked out by hand."""
    settings = {"tasks": ["reviews"], "train_rows": 1000, "epochs": 2, "batch": 16, "eval_batch": 64}
    settings |= {"max_length": 128, "rank": 8, "precision": "bf16", "workers": 2}
    settings |= {side: {"precision": "fp32", "threads": 2, "attention": "eager"} for side in ("script", "tuned")}
    return {
        "device": "a-machine",
        "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 24, "bf16": []},
        "versions": {"python": "3.11", "torch": "2"},
        "code": {"commit": "abc", "dirty": False},
        "measured_at": "2026-01-01T00:00:00+00:00",
        "settings": settings,
        "busy_cores": [0.01, 0.03],
        "rounds": [
            a_turn(1, "ours", 30.0, [0.80, 0.82, 0.81], 300),
            a_turn(0, "ours", 20.0, [0.81, 0.83, 0.82], 200),
            a_turn(0, "script_loop", 200.0, [0.82, 0.80], 500),
            a_turn(1, "script_loop", 400.0, [0.81, 0.83], 400),
            a_turn(0, "tuned_peer", 40.0, [0.2, 0.3], 100),
            a_turn(1, "tuned_peer", 80.0, [0.2, 0.3], 100),
        ],
    }


def row(table: str, name: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_rates_ratios_memory_and_scores_follow_from_the_measurements(planted, tmp_path):
    table = page.sides_table(planted)
    assert row(table, "This project") == ["450 (360 to 540)", "8.3", "300", "81.5"]
    assert row(table, "Script loop") == ["27 (18 to 36)", "150.0", "500", "81.5"]
    place = tmp_path / "bench" / planted["device"] / "measurements.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(as_json(planted))
    assert page.rebuild(tmp_path / "bench") == [planted]
    text = page.runs_text(planted)
    # round by round: 540 / 36 = 15 and 360 / 18 = 20; 540 / 180 = 3 and 360 / 90 = 4
    assert "17.5x (15.0 to 20.0) the script loop and 3.5x (3.0 to 4.0) the tuned peer" in text
    assert "2 interleaved rounds, in parentheses their range" in text
    assert "(4 of script loop, 4 of tuned peer, 6 of ours)" in text
    assert "was idle (others kept up to 0.03 cores busy)" in text
    planted["busy_cores"][0] = 0.5
    assert "**The machine was not idle** (others kept up to 0.50 cores busy)" in page.block([planted])


def test_committed_pages_are_what_the_committed_measurements_give(tmp_path):
    copies = [tmp_path / f"{number}.md" for number in range(len(bench.PAGES))]
    for committed, copy, name in zip(bench.PAGES, copies, ("bench", "speed"), strict=True):
        copy.write_bytes(committed.read_bytes())
        assert MARK.format(name=name, edge="begin") in copy.read_text()
    measurements = page.rebuild(COMMITTED / "bench", *copies)
    paths = sorted((COMMITTED / "bench").glob("*/measurements.json"))
    assert paths and [measured["device"] for measured in measurements] == [path.parent.name for path in paths]
    assert [copy.read_bytes() for copy in copies] == [committed.read_bytes() for committed in bench.PAGES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: must be >= 1, got 0"),
        (["--runs", "5"], "--runs must be a multiple of 2 and at least 4"),
        (["--reference", "--results", "x"], "not allowed with argument"),
        (["--tables", "--results", "absent"], "absent/bench holds no measurements"),
        (["--results", __file__], "cannot write to"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(["bench", *arguments]))
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and message in shown and "Traceback" not in shown
