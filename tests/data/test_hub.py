import fake_hub
from glue_files import write_parquet, write_tsv

from lora.data.read import read
from lora.data.tasks import TASKS

# The form of the real repository's card: one config per task, with the files of each split.
CARD = """---
configs:
- config_name: rte
  data_files:
  - {split: train, path: rte/train-*}
  - {split: validation, path: rte/validation-*}
  - {split: test, path: rte/test-*}
- config_name: stsb
  data_files:
  - {split: train, path: stsb/train-*}
  - {split: validation, path: stsb/validation-*}
  - {split: test, path: stsb/test-*}
---
"""
CODE = """
import json, sys
from lora.data.read import read
from lora.errors import UserError
from lora.data.tasks import TASKS
for request in sys.argv[1:]:
    task, revision = request.split("@")
    try:
        data = read(TASKS[task], "hub", None, revision)
        print(json.dumps([data.fingerprint, data.rows]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_the_hubs_rows_are_those_of_the_official_files_and_an_unknown_revision_is_named(tmp_path):
    folder = tmp_path / "hub"
    tsv = {name: read(TASKS[name], "tsv", write_tsv(tmp_path / "tsv", TASKS[name])) for name in ("rte", "stsb")}
    for name in tsv:
        write_parquet(folder, TASKS[name])
    (folder / "README.md").write_text(CARD)
    asked = ["rte@main", f"stsb@{fake_hub.COMMIT}", "rte@nowhere"]
    *found, message = fake_hub.called(CODE, asked, "nyu-mll/glue", folder, tmp_path / "home")
    assert found == [[data.fingerprint, data.rows] for data in tsv.values()]
    assert "cannot read train of nyu-mll/glue (rte, revision nowhere)" in message and "GLUE_DIR=" in message
