"""The record: written whole or not at all, read strictly."""

import json
import os

import pytest
from cells import RUN_ID, record

from lora.errors import UserError
from lora.records.record import load_frame, load_records, read_record, record_path, write_record


def test_round_trip(tmp_path):
    written = record()
    path = write_record(tmp_path, written)
    assert path == tmp_path / "runs" / f"{RUN_ID}.json"
    assert read_record(path) == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nan_never_reaches_a_record(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(tmp_path, record(value=float("nan")))
    assert not record_path(tmp_path, RUN_ID).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"run_id": "x"', "is not readable JSON"),
        (b"\xff\xfe", "is not readable JSON"),
        (b"[1, 2]", "must hold a JSON object, found list"),
        (b'{"run_id": "x"}', "missing or unknown keys"),
        (b"", "is not readable JSON"),
    ],
)
def test_broken_and_foreign_files_are_named_and_left_out(tmp_path, content, message):
    write_record(tmp_path, record())
    (tmp_path / "runs" / "broken.json").write_bytes(content)
    with pytest.raises(UserError, match=f"broken.json.*{message}"):
        read_record(tmp_path / "runs" / "broken.json")
    records, problems = load_records(tmp_path)
    assert [r.run_id for r in records] == [RUN_ID]
    assert len(problems) == 1 and "broken.json" in problems[0]


def test_another_name_or_schema_is_refused(tmp_path):
    path = write_record(tmp_path, record())
    os.rename(path, other := path.with_name("minilm.full.reviews.s1-00000000.json"))
    with pytest.raises(UserError, match="named by its run_id"):
        read_record(other)
    path.write_text(json.dumps(json.loads(other.read_text()) | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99; this version reads 1, 2 and 3"):
        read_record(path)


@pytest.mark.parametrize("rule", ["best", "last"])
def test_a_score_other_than_its_epochs_is_refused(tmp_path, rule):
    path = write_record(tmp_path, record())
    content = json.loads(path.read_text())
    content["selected"][rule]["value"] = 0.9
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"changed by hand: {rule} 0.9 where its epoch 1 has 0.8"):
        read_record(path)


def test_frame_holds_ok_runs_only_and_an_undefined_metric_is_absent():
    failed = record("minilm.full.reviews.s1-00000000", status="failed", error="x", params=None, selected=None)
    frame = load_frame([record(), failed])
    assert list(frame["run_id"]) == [RUN_ID] and list(frame["slug"]) == ["lora-qv-r8"] and list(frame["best"]) == [0.8]
    assert load_frame([record(value=None)])["best"].isna().all()
