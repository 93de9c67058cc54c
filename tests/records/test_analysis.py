"""Files of analyses, to which launches of several tasks add at the same time."""

from concurrent.futures import ThreadPoolExecutor

from lora.files import read_object
from lora.records.analysis import OWN_ROWS, add_entries
from lora.records.record import write_record
from tests.helpers.cells import RUN_ID, record


def test_entries_of_other_tasks_stay_while_their_own_records_do(tmp_path):
    path = tmp_path / "analysis" / OWN_ROWS
    tasks = [f"task-{number}" for number in range(16)]
    run_ids = {task: RUN_ID.replace("reviews", task) for task in tasks}
    entries = {task: {"task": task, "on": "", "runs": {"LoRA": [run_ids[task]]}} for task in tasks}
    for run_id in run_ids.values():
        write_record(tmp_path, record(run_id, predictions="a" * 64))

    def add(task):
        add_entries(path, [entries[task]], lambda entry: entry["task"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, tasks))
    assert {entry["task"] for entry in read_object(path)["entries"]} == {*tasks}
    write_record(tmp_path, record(run_ids["task-3"], predictions="b" * 64))
    add("task-0")
    kept = read_object(path)
    assert {entry["task"] for entry in kept["entries"]} == {*tasks} - {"task-3"}
    assert len(kept["made_from"]) == 15
