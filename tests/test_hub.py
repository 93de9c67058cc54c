import json
import os
import subprocess
import sys

import fake_hub
import pytest
from glue_files import write_parquet, write_tsv

from lora.data.read import read
from lora.data.tasks import TASKS
from lora.files import ROOT

# The form of the real repository's card: one config per task, with the files of each split.
CARD = """---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
  - split: test
    path: rte/test-*
- config_name: stsb
  data_files:
  - split: train
    path: stsb/train-*
  - split: validation
    path: stsb/validation-*
  - split: test
    path: stsb/test-*
---
"""
# Code of a separate process: the endpoint is read once, when huggingface_hub is imported.
CODE = """
import json, sys
from lora.data.read import read
from lora.errors import UserError
from lora.data.tasks import TASKS
try:
    data = read(TASKS[sys.argv[1]], "hub", None, sys.argv[2])
    print(json.dumps([data.fingerprint, data.revision, data.rows]))
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory):
    """A function that reads a task from a hub on localhost."""
    folder, home = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("home")
    for name in ("rte", "stsb"):
        write_parquet(folder, TASKS[name])
    (folder / "README.md").write_text(CARD)
    with fake_hub.serve("nyu-mll/glue", folder) as endpoint:
        proxies = {name for name in os.environ if name.lower().endswith("_proxy")}
        kept = {name: value for name, value in os.environ.items() if name not in proxies | {"HF_HUB_OFFLINE"}}
        environment = kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}

        def run(task: str, revision: str):
            command = [sys.executable, "-c", CODE, task, revision]
            result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
            return json.loads(result.stdout)

        yield run


@pytest.mark.parametrize(("name", "revision"), [("rte", "main"), ("stsb", fake_hub.COMMIT)])
def test_the_hubs_rows_are_those_of_the_official_files(name, revision, from_hub, tmp_path):
    tsv = read(TASKS[name], "tsv", write_tsv(tmp_path, TASKS[name]))
    assert from_hub(name, revision) == [tsv.fingerprint, fake_hub.COMMIT, tsv.rows]


def test_an_unknown_revision_is_named(from_hub):
    message = from_hub("rte", "nowhere")
    assert "cannot read train of nyu-mll/glue (rte, revision nowhere)" in message and "GLUE_DIR=" in message
