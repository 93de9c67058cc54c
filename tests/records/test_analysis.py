"""Files of analyses, to which launches of several tasks add at the same time."""

from concurrent.futures import ThreadPoolExecutor

from lora.files import read_object
from lora.records.analysis import OWN_ROWS, add_entries, read_analyses
from lora.records.record import load_records, record_path, write_record
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
    record_path(tmp_path, run_ids["task-4"]).unlink()  # forgotten: nothing is said of it
    records = {one.run_id: one for one in load_records(tmp_path)[0]}
    analyses = read_analyses(path.parent, records, "python -m lora {}".format)
    assert analyses.own_rows.keys() == {*tasks} - {"task-4"} and not analyses.problems
    write_record(tmp_path, record(run_ids["task-3"], predictions="b" * 64))
    records = {one.run_id: one for one in load_records(tmp_path)[0]}
    analyses = read_analyses(path.parent, records, "python -m lora {}".format)
    assert analyses.own_rows.keys() == {*tasks} - {"task-3", "task-4"}
    assert analyses.problems[0].startswith(f"analysis/{OWN_ROWS} was made from another training of {run_ids['task-3']}")
    add("task-0")
    kept = read_object(path)
    assert {entry["task"] for entry in kept["entries"]} == {*tasks} - {"task-3", "task-4"}
    assert len(kept["made_from"]) == 14
