"""A record replaces training only if rows and weights are those that it was made from."""

import json
import shutil

import pytest
import tiny

from lora.config.compose import compose_run
from lora.errors import UserError
from lora.records.record import record_path
from lora.report.select import gather
from lora.sweep.request import requested
from lora.sweep.stand_in import check_inputs, distinct
from lora.sweep.worker import ensure_record


@pytest.fixture
def trained(tiny_overrides):
    """The configuration and the record of one tiny run."""
    config = compose_run([*tiny_overrides, "train.epochs=1"])
    return config, ensure_record(config, mistakes_fail=False)


def other_rows(glue_dir, tmp_path):
    other = shutil.copytree(glue_dir, tmp_path / "other_glue")
    lines = (other / "CoLA" / "train.tsv").read_text().splitlines()
    (other / "CoLA" / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
    return other


def test_a_record_stands_in_for_the_same_rows_and_weights_from_elsewhere(trained, tiny_overrides, glue_dir, tmp_path):
    config, record = trained
    copy = shutil.copytree(glue_dir, tmp_path / "copy")
    again = compose_run([*tiny_overrides, "train.epochs=1", f"data.path={copy}"])
    assert again.run_id == config.run_id
    path = record_path(config.runtime.results, config.run_id)
    before = path.stat().st_mtime_ns
    assert ensure_record(again, mistakes_fail=False).epochs == record.epochs
    assert path.stat().st_mtime_ns == before


def test_a_single_run_on_other_rows_or_none_is_refused(trained, tiny_overrides, glue_dir, tmp_path):
    _, record = trained
    path = record_path(tmp_path / "results", record.run_id)
    before = path.read_bytes()
    for folder, message in (
        (other_rows(glue_dir, tmp_path), "the rows of cola are not those that .* runtime.results=FOLDER"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            ensure_record(compose_run([*tiny_overrides, "train.epochs=1", f"data.path={folder}"]), mistakes_fail=False)
    assert path.read_bytes() == before


def test_another_local_encoder_is_another_run_with_a_name_of_its_own(tiny_overrides, tmp_path):
    one, other = tiny.folder(tmp_path / "my model!", "bert"), tiny.folder(tmp_path / "other", "roberta")
    names = [compose_run([*tiny_overrides, f"model.path='{folder}'"]).model.name for folder in (one, other)]
    assert names[0].startswith("my_model-") and names[1].startswith("other-")
    before = requested("small", [*tiny_overrides[1:], f"model.path='{one}'", "seed=1,2"])
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    after = requested("small", [*tiny_overrides[1:], f"model.path='{one}'", "seed=1,2"])
    assert len(before) == 2 and not {run.run_id for run in before} & {run.run_id for run in after}


def test_a_named_encoder_with_other_weights_is_refused(trained, tiny_overrides, tmp_path):
    config, record = trained
    other = tiny.folder(tmp_path / "other", "bert")
    named = [*tiny_overrides, "train.epochs=1", f"model.path={other}", f"model.name={config.model.name}"]
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-6}))
    with pytest.raises(UserError, match=f"the weights of {config.model.name} are not those that {record.run_id}"):
        ensure_record(compose_run(named), mistakes_fail=False)


def test_reports_and_complete_sweeps_look_at_the_rows_that_are_named(trained, tiny_overrides, glue_dir, tmp_path):
    _, record = trained
    asked = [o for o in tiny_overrides if not o.startswith("profile=")] + ["train.epochs=1"]
    asked.append("seed=1,2")  # values without an experiment are the grid
    assert set(gather("small", asked).state.ok) == {record.run_id}
    wrong = [*asked, f"data.path={other_rows(glue_dir, tmp_path)}"]
    with pytest.raises(UserError, match="the rows of cola are not those"):
        gather("small", wrong)
    runs = requested("small", wrong)
    with pytest.raises(UserError, match="the rows of cola are not those"):
        check_inputs(distinct(runs, ()), [record])


def test_parts_of_a_split_are_compared_each_with_its_own(trained, tiny_overrides):
    _, record = trained
    asked = [o for o in tiny_overrides if not o.startswith("profile=")]
    parts = requested("small", [*asked, "data.train_rows=9,12"])
    check_inputs(distinct(parts, ()), [record])  # another part of the rows: nothing to compare
    assert len(distinct(parts, ())) == 2
