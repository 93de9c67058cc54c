import gc
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import tiny_glue

from lora.config.compose import compose_run
from lora.config.run import RunConfig
from lora.files import ROOT
from lora.training import processes

gc.set_threshold(50_000)  # as in `lora.__main__`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first: a process that started one last would keep running after the other had ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory) -> Iterator[None]:
    """Where programs that the tests start leave their files, such as torchrun its logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        yield


@pytest.fixture(scope="session")
def git() -> Callable[..., str]:
    """What git prints in this repository. A test of its history is skipped where there is none, as in an archive."""

    def output(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True).stdout

    if output("rev-parse", "--is-shallow-repository") != "false\n":
        pytest.skip("needs the history of this repository")
    return output


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory) -> Path:
    return tiny_glue.write(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Path:
    """The parent of a pretrained folder per architecture: the tiny bases of seed 0."""
    folder = tmp_path_factory.mktemp("bases")
    for architecture in (*tiny.ARCHITECTURES, *tiny.OTHERS):
        tiny.model(architecture).base_model.save_pretrained(folder / architecture)
    return folder


@pytest.fixture
def tiny_overrides(glue_dir, model_dir, tmp_path) -> list[str]:
    return tiny_glue.settings(glue_dir, model_dir, tmp_path)


@pytest.fixture
def tiny_config(tiny_overrides):
    """A function from further overrides to the RunConfig of a tiny run."""

    def build(*overrides: str) -> RunConfig:
        return compose_run([*tiny_overrides, *overrides])

    return build


@pytest.fixture
def listening():
    """Let the process note signals as a worker does, and restore its own handlers afterwards."""
    with processes.listening():
        yield
