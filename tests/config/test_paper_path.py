"""From `profile=paper` to a trained run, with tiny encoders of the paper's architectures in place of the hub's."""

import pytest
import tiny
from processor import NARROWEST
from trained import ensure_record

from lora.config.compose import compose_family

SMALLER = ["train.epochs=1", "data.max_length=32", "data.source=tsv", "runtime.device=cpu", "runtime.tracking=off"]


@pytest.mark.parametrize(
    ("architecture", "model", "protocol", "method"),
    [
        ("roberta", "roberta_base", "printed", "lora"),
        ("roberta", "roberta_base", "ours", "bitfit"),
        ("roberta", "roberta_large", "dagger", "houlsby_m8"),
        ("deberta-v2", "deberta_v2_xxl", "released", "full"),
    ],
)
def test_a_run_of_the_paper_profile_trains(tmp_path, glue_dir, architecture, model, protocol, method):
    folder = tiny.folder(tmp_path / "encoder", architecture)
    overrides = ["profile=paper", f"model={model}", f"protocol={protocol}", f"method={method}", "task=rte", *SMALLER]
    overrides += ["model.source=local", f"model.path={folder}", f"data.path={glue_dir}"]
    overrides += [f"runtime.results={tmp_path}/results", f"runtime.outputs={tmp_path}/outputs"]
    precision = "bf16" if model == "deberta_v2_xxl" else "fp32"
    assert compose_family(overrides)[-1].config.train.precision == precision
    if precision == "bf16":
        overrides.append(f"train.precision={NARROWEST}")
    *parents, config = (run.config for run in compose_family(overrides))
    assert (config.start == "mnli") == (method == "lora") == bool(parents)
    for first in parents:
        parent = ensure_record(first, mistakes_fail=False)
        assert parent.status == "ok" and parent.config["task"] == "mnli"
    record = ensure_record(config, mistakes_fail=False)
    assert record.status == "ok"
    assert record.run_id.startswith(f"{model}.")
    assert record.config["start_run"] == config.start_run
