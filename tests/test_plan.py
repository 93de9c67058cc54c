"""The plan of a sweep, compared with closed forms."""

import itertools
import re

import pytest
from commands import lora

from lora.files import ROOT
from lora.sweep.estimate import compute_seconds, estimator
from lora.sweep.plan import Cost, costs, disk_bytes, makespan, text
from lora.sweep.request import select_runs


@pytest.fixture(scope="module")
def runs():
    """LoRA on RoBERTa-base: a CoLA run, an RTE run, and the MNLI run that the RTE run starts from."""
    asked = ["model=roberta_base", "method=lora", "protocol=printed", "task=rte,cola", "seed=1"]
    return select_runs("paper", [*asked, "experiment=null"])


def test_without_records_the_cost_is_operations_over_an_assumed_rate(runs):
    found = costs(runs, estimator([]))
    assert {cost.run.task for cost in found} == {"rte", "cola", "mnli"}
    for cost in found:
        assert cost.seconds == 6 * 125e6 * cost.run.tokens / 100e12 == compute_seconds(cost.run)
        assert not cost.measured
    trained = 4 * 2 * 12 * 2 * 768 * 8  # bytes of q and v, 12 layers, A and B of rank 8
    parent = next(cost for cost in found if cost.run.task == "mnli")
    child = next(cost for cost in found if cost.run.task == "cola")
    assert parent.checkpoint_bytes == child.checkpoint_bytes == 3 * trained
    assert parent.kept_bytes > trained > child.kept_bytes
    shown = text("paper", found)
    assert "0 of 3 runs" in shown and "an assumption, not a measurement" in shown


def best_possible(seconds, devices):
    """The shortest time among all assignments of runs to devices."""
    ways = itertools.product(range(devices), repeat=len(seconds))
    return min(max(sum(s for s, d in zip(seconds, way, strict=True) if d == n) for n in range(devices)) for way in ways)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_time_on_several_devices_is_that_of_longest_first(runs, devices):
    """Within 4/3 - 1/(3m) of the best possible (Graham 1969), and exact on one device."""
    alone = next(run for run in runs if run.parent is None)
    seconds = [7.0, 6.0, 5.0, 5.0, 4.0, 3.0, 3.0]
    found = [Cost(alone, value, True, 0.0, 10.0) for value in seconds]
    took, best = makespan(found, devices), best_possible(seconds, devices)
    assert best <= took <= (4 / 3 - 1 / (3 * devices)) * best
    if devices == 1:
        assert took == sum(seconds)
    assert disk_bytes(found, devices) == 10.0 * devices


def test_children_wait_for_their_parents(runs):
    found = costs(runs, lambda run: 10.0)
    assert makespan(found, 64) == 20.0


def test_the_command():
    done = lora("plan", "mini", "experiment=glue_table2")
    assert done.returncode == 0 and "# Plan of mini: " in done.stdout
    assert all(devices in done.stdout for devices in ("| 1 ", "| 8 ", "| 64 "))


def test_the_page_states_the_plan_of_the_paper():
    """Each row selects from the whole plan, and adds the MNLI runs that its runs start from."""
    page = (ROOT / "experiments" / "README.md").read_text()
    rows = re.findall(r"^\| (`experiment=.*`|\(none\)) \| .* \| (\d+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 7
    plan = {cost.run.run_id: cost for cost in costs(select_runs("paper", []), estimator([]))}
    for given, count, hours in rows:
        asked = {key: values.split(",") for key, values in re.findall(r"(\w+)=([\w,]+)", given)}
        chosen = {
            run_id: cost
            for run_id, cost in plan.items()
            if set(asked.get("experiment", cost.run.experiments)) & set(cost.run.experiments)
            and cost.run.model in asked.get("model", [cost.run.model])
            and cost.run.task in asked.get("task", [cost.run.task])
        }
        chosen |= {cost.run.parent: plan[cost.run.parent] for cost in chosen.values() if cost.run.parent is not None}
        total = sum(cost.seconds for cost in chosen.values()) / 3600
        assert (len(chosen), round(total)) == (int(count), int(hours.replace(",", ""))), given
