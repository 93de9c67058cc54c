"""Encoders from a hub on localhost: the commit that is read, and pickles, which are read as data or refused."""

import shutil

import fake_hub
import pytest
import safetensors.torch
import tiny
import torch
from pickles import Bomb

CODE = """
import json, sys
from lora.config.run import ModelConfig
from lora.errors import UserError
from lora.models.load import load_encoder
from lora.models.modules import checksum
from lora.data.tasks import TASKS
for request in sys.argv[1:]:
    pickle, revision = request.split("@")
    config = ModelConfig("hubbed", "hub", "some/encoder", None, revision, pickle, (), "eager", False)
    try:
        encoder = load_encoder(config, TASKS["rte"], 1)
        body = encoder.model.base_model.state_dict().items()
        print(json.dumps([encoder.weights, encoder.revision, checksum(body)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def repository(tmp_path):
    return tiny.folder(tmp_path / "repository", "bert")


@pytest.fixture
def from_hub(repository, tmp_path):
    """A function from `pickle@revision` ... to what loading the encoder from a hub on localhost gives for each."""

    def load(*requests: str) -> list:
        shutil.rmtree(tmp_path / "home", ignore_errors=True)  # the cache of an earlier call
        return fake_hub.called(CODE, requests, "some/encoder", repository, tmp_path / "home", kind="models")

    return load


def pickled(repository, extra=None):
    tensors = safetensors.torch.load_file(repository / "model.safetensors")
    (repository / "model.safetensors").unlink()
    torch.save(tensors | (extra or {}), repository / "pytorch_model.bin")


def test_the_commit_of_safetensors_and_the_hash_of_a_pickle_are_kept(from_hub, repository):
    requests = ("never@main", f"never@{fake_hub.COMMIT}", "never@no-such-branch")
    (weights, commit, body), same, unknown = from_hub(*requests)
    assert (weights, commit) == (f"commit:{fake_hub.COMMIT}", fake_hub.COMMIT) and same == [weights, commit, body]
    assert "cannot read the model's config from some/encoder" in unknown
    pickled(repository)
    refused, (weights, commit, again) = from_hub("never@main", "weights_only@main")
    assert "cannot load weights of hubbed" in refused, "the configuration allows no pickle"
    assert again == body and weights.startswith("sha256:") and commit == fake_hub.COMMIT


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(from_hub, repository, tmp_path):
    pickled(repository, {"evil": Bomb(tmp_path / "ran")})
    (refused,) = from_hub("weights_only@main")
    assert "cannot load weights of hubbed" in refused
    assert not (tmp_path / "ran").exists()
