"""Encoders from a hub on localhost: the commit that is read, and pickles, which are read as data or refused."""

import fake_hub
import pytest
import safetensors.torch
import tiny
import torch

CODE = """
import json, sys
from lora.config.sections import ModelConfig
from lora.errors import UserError
from lora.models.load import load_encoder
from lora.models.modules import checksum
from lora.data.tasks import TASKS
config = ModelConfig("hubbed", "hub", "some/encoder", None, sys.argv[2], sys.argv[1], (), "eager", False)
try:
    encoder = load_encoder(config, TASKS["rte"], 1)
    body = encoder.model.base_model.state_dict().items()
    print(json.dumps([encoder.weights, encoder.revision, checksum(body)]))
except UserError as error:
    print(json.dumps(str(error)))
"""


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def repository(tmp_path):
    return tiny.folder(tmp_path / "repository", "bert")


@pytest.fixture
def from_hub(repository, tmp_path):
    """A function that loads the encoder from a hub on localhost, which serves the repository's files."""

    def load(pickle: str, revision: str = "main"):
        (found,) = fake_hub.called(
            CODE, [pickle, revision], "some/encoder", repository, tmp_path / "home", kind="models"
        )
        return found

    return load


def pickled(repository, extra=None):
    tensors = safetensors.torch.load_file(repository / "model.safetensors")
    (repository / "model.safetensors").unlink()
    torch.save(tensors | (extra or {}), repository / "pytorch_model.bin")


@pytest.mark.parametrize("revision", ["main", fake_hub.COMMIT])
def test_safetensors_and_the_commit_they_came_from(from_hub, revision):
    weights, commit, _ = from_hub("never", revision)
    assert (weights, commit) == (f"commit:{fake_hub.COMMIT}", fake_hub.COMMIT)


def test_a_pickle_where_the_config_allows_it_gives_the_same_weights_and_its_hash(from_hub, repository):
    _, _, body = from_hub("never")
    pickled(repository)
    weights, commit, again = from_hub("weights_only")
    assert again == body
    assert weights.startswith("sha256:") and commit == fake_hub.COMMIT


def test_a_pickle_is_refused_where_the_config_does_not(from_hub, repository):
    pickled(repository)
    assert "cannot load weights of hubbed" in from_hub("never")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(from_hub, repository, tmp_path):
    pickled(repository, {"evil": Evil(str(tmp_path / "ran"))})
    assert "cannot load weights of hubbed" in from_hub("weights_only")
    assert not (tmp_path / "ran").exists()


def test_an_unknown_revision_is_named(from_hub):
    message = from_hub("never", "no-such-branch")
    assert "cannot read the model's config from some/encoder" in message
