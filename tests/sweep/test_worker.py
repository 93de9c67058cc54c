"""A record replaces training only if rows and weights are those that it was made from."""

import dataclasses
import json
import shutil

import pytest
import tiny
from commands import lora
from trained import ensure_record

from lora.config.compose import compose_run
from lora.config.rates import Rate, write_rates
from lora.data import read as reader
from lora.errors import UserError
from lora.records.record import adapter_path, read_record, record_path, write_record
from lora.sweep.request import select_runs
from lora.sweep.worker import add_runs, usable_record, verify_inputs


@pytest.fixture
def trained(tiny_overrides):
    """The configuration and the record of one tiny run."""
    config = compose_run([*tiny_overrides, "train.epochs=1"])
    return config, ensure_record(config, mistakes_fail=False)


@pytest.mark.parametrize("mode", [[], ["-m", "experiment=null"]], ids=["one run", "a sweep"])
def test_a_finished_run_is_trained_again_for_its_adapter_alone(tiny_overrides, tiny_config, mode):
    config = tiny_config("runtime.save_adapter=true")
    path = record_path(config.runtime.results, config.run_id)
    adapter = adapter_path(config.runtime.outputs, config.run_id)
    assert lora(*tiny_overrides, "runtime.save_adapter=true").returncode == 0
    fresh = adapter.read_bytes()
    earlier = dataclasses.replace(read_record(path), adapter=None, seconds=12345.0)
    for predictions, code in ((earlier.predictions, 0), ("of another machine", 1 if mode else 2)):
        shutil.rmtree(adapter.parent)
        before = dataclasses.replace(earlier, predictions=predictions)
        write_record(config.runtime.results, before)
        done = lora(*mode, *tiny_overrides, "runtime.save_adapter=true")
        assert done.returncode == code and "again:   1 finished run, for adapters that" in done.stdout
        assert dataclasses.replace(read_record(path), adapter=None) == before
        assert adapter.read_bytes() == fresh if code == 0 else not adapter.exists()
    assert "its predictions differ from those of its record" in done.stderr


def other_rows(glue_dir, tmp_path, file="train.tsv"):
    other = shutil.copytree(glue_dir, tmp_path / f"other_{file}")
    lines = (other / "CoLA" / file).read_text().splitlines()
    (other / "CoLA" / file).write_text("\n".join(lines[:-1]) + "\n")
    return other


def test_a_record_stands_in_for_the_same_rows_from_elsewhere_and_for_no_others(
    trained, tiny_overrides, glue_dir, tmp_path
):
    """Nor may a new run of its folder read other rows."""
    config, record = trained
    path = record_path(config.runtime.results, config.run_id)
    before = path.stat().st_mtime_ns

    def on_rows_of(folder, *more):
        asked = [*tiny_overrides, "train.epochs=1", f"data.path={folder}", *more]
        return ensure_record(compose_run(asked), mistakes_fail=False)

    assert on_rows_of(shutil.copytree(glue_dir, tmp_path / "copy")).epochs == record.epochs
    others = other_rows(glue_dir, tmp_path)
    for folder, method, message in (
        (others, "lora", f"the rows of cola are not those that {record.run_id} .* runtime.results=FOLDER"),
        (others, "full", f"the rows of cola are not those that {record.run_id}"),
        (tmp_path / "nowhere", "lora", "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            on_rows_of(folder, f"method={method}")
    assert path.stat().st_mtime_ns == before


def test_another_local_encoder_is_another_run_with_a_name_of_its_own(tiny_overrides, tmp_path):
    one, other = tiny.folder(tmp_path / "my model!", "bert"), tiny.folder(tmp_path / "other", "roberta")
    names = [compose_run([*tiny_overrides, f"model.path='{folder}'"]).model.name for folder in (one, other)]
    assert names[0].startswith("my_model-") and names[1].startswith("other-")
    before = select_runs("small", [*tiny_overrides[1:], f"model.path='{one}'", "experiment=null", "seed=1,2"])
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    after = select_runs("small", [*tiny_overrides[1:], f"model.path='{one}'", "experiment=null", "seed=1,2"])
    assert len(before) == 2 and not {run.run_id for run in before} & {run.run_id for run in after}


def test_a_named_encoder_with_other_weights_is_refused(trained, tiny_overrides, tmp_path):
    config, record = trained
    other = tiny.folder(tmp_path / "other", "bert")
    named = [*tiny_overrides, "train.epochs=1", f"model.path={other}", f"model.name={config.model.name}"]
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-6}))
    with pytest.raises(UserError, match=f"the weights of {config.model.name} are not those that {record.run_id}"):
        ensure_record(compose_run(named), mistakes_fail=False)


def test_parts_of_a_split_share_the_dev_rows_alone(trained, tiny_overrides, glue_dir, tmp_path):
    _, record = trained
    asked = [o for o in tiny_overrides if not o.startswith("profile=")]
    parts = select_runs("small", [*asked, "experiment=null", "data.train_rows=9,12"])
    assert len(parts) == 2
    verify_inputs(parts, [record], ())
    elsewhere = f"data.path={other_rows(glue_dir, tmp_path, 'dev.tsv')}"
    (part, _) = select_runs("small", [*asked, elsewhere, "experiment=null", "data.train_rows=9,12"])
    with pytest.raises(UserError, match=f"the dev rows of cola are not those that {record.run_id}"):
        verify_inputs([part], [record], ())


HERE, THERE = "0" * 40, "1" * 40


def test_rows_on_the_hub_are_compared_by_their_revision_and_read_for_training(trained, tiny_overrides, monkeypatch):
    _, record = trained
    settings = [o for o in tiny_overrides if not o.startswith(("profile=", "data.path="))]
    settings += ["train.epochs=1", "data.source=hub", f"data.revision={HERE}"]
    runs = select_runs("small", [*settings, "experiment=null", "seed=1,2"])
    done, other = sorted(runs, key=lambda run: run.run_id != record.run_id)
    assert done.run_id == record.run_id
    known, to_read = record.provenance["data"], []  # the fingerprints of the rows to be read

    def read(*_, **__):
        return reader.TaskData("hub", {}, {}, {}, False, {}, to_read.pop(), known["dev_fingerprint"])

    def made_from(source, revision):
        data = record.config["data"] | {"source": source, "revision": revision}
        return dataclasses.replace(record, config=record.config | {"data": data})

    monkeypatch.setattr(reader, "read", read)
    with pytest.raises(UserError, match="the revision of the rows of cola are not those"):
        verify_inputs([done], [made_from("hub", THERE)], ())
    for same in (made_from("tsv", THERE), made_from("hub", HERE)):
        verify_inputs([done], [same], ())  # reads nothing
        to_read.append(known["fingerprint"])
        verify_inputs([other], [same], {other.run_id})
        to_read.append("other rows")
        with pytest.raises(UserError, match="the rows of cola are not those"):
            verify_inputs([other], [same], {other.run_id})
        assert not to_read


def test_an_adapter_that_is_not_the_records_is_made_again(tiny_config):
    config = tiny_config("method=bitfit", "train.epochs=1", "runtime.save_adapter=true")
    ensure_record(config, mistakes_fail=False)
    path = adapter_path(config.runtime.outputs, config.run_id)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert usable_record(config) is None
    ensure_record(config, mistakes_fail=False)
    assert path.read_bytes() == good
    (path.parent / "adapter.json").unlink()
    assert usable_record(config) is None


def test_a_single_run_reads_its_rows_once(tiny_overrides, monkeypatch):
    reads, read = [], reader.read
    monkeypatch.setattr(reader, "read", lambda *args, **more: reads.append(args[0].name) or read(*args, **more))
    assert ensure_record(compose_run([*tiny_overrides, "train.epochs=1"]), mistakes_fail=False).status == "ok"
    assert reads == ["cola"]


def test_a_single_run_says_which_planned_run_it_replaces(tiny_overrides, tmp_path, capsys):
    asked = [word for word in tiny_overrides if not word.startswith(("train.lr=", "profile="))]
    (before,) = select_runs("small", [*asked, "experiment=null", "rates=null"])
    add_runs(tmp_path / "results", [before])
    place = before.model, "ours", "cola", "lora"
    write_rates(tmp_path / "rates.yaml", [Rate(*place, 0.5, (0,), {0.5: 0.5})])
    (after,) = select_runs("small", [*asked, "experiment=null", f"rates={tmp_path}/rates.yaml"])
    capsys.readouterr()
    add_runs(tmp_path / "results", [after])
    why = "by other rates, epochs or lines of conf/"
    assert f"replaced: 1 planned run, {why} ({before.run_id}" in capsys.readouterr().out
