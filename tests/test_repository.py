"""The files that state who may use the repository, with which packages, and how it is checked elsewhere."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lora.data.embedded import ARCHIVES, ENCODERS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_TO_TORCH = re.compile(r"cuda-|nvidia-|triton|pytorch-triton")


def constraints() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    exact = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert len(lines) > 100 and all(exact), "every line is one exact version, without a local label"
    found = {canonicalize_name(match[1]): Version(match[2]) for match in exact}
    assert len(found) == len(lines)
    return found


def required(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> None:
    """Add an installed distribution with these extras, and all that it needs, to `seen`: name -> extras visited."""
    name = canonicalize_name(name)
    if extras | {""} <= seen.get(name, set()):
        return
    seen.setdefault(name, set()).update(extras | {""})
    try:
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
    except importlib.metadata.PackageNotFoundError:  # an environment from before it was required
        return
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            required(requirement.name, frozenset(requirement.extras), seen)


def test_constraints_name_every_package_that_the_development_install_needs_and_no_other():
    seen: dict[str, set[str]] = {}
    required("lora-glue", frozenset({"dev"}), seen)
    assert len(seen) > 100
    needed = {name for name in seen if not LEFT_TO_TORCH.match(name)} - {"lora-glue"}
    assert needed <= set(constraints()), "constraints.txt lacks some"
    installed = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    assert not (set(constraints()) & installed) - needed, "constraints.txt has some that nothing needs"


def test_constraints_lie_in_the_ranges_of_pyproject():
    pinned, extras = constraints(), PROJECT["optional-dependencies"]
    listed = [*PROJECT["dependencies"], *extras["dev"], *extras["peers"], *extras["ray"], *extras["slurm"]]
    requirements = [r for r in map(Requirement, listed) if r.name != "lora-glue"]
    assert len(requirements) > 30
    for requirement in requirements:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


def test_the_mutation_tester_is_no_part_of_the_development_install():
    extras = dict(PROJECT["optional-dependencies"])
    assert [Requirement(r).name for r in extras.pop("mutation")] == ["mutmut"]
    assert not [r for rs in extras.values() for r in rs if "mutmut" in r or "mutation" in r]
    assert "mutmut" not in constraints()


def test_third_party_names_every_archive_by_its_hash_and_every_file():
    text = (ROOT / "THIRD_PARTY.md").read_text()
    hashes = {sha256 for archive in (*ARCHIVES, *ENCODERS.values()) for sha256 in archive.packages.values()}
    assert hashes <= set(re.findall(r"\b[0-9a-f]{64}\b", text)) and len(hashes) == 8
    lines = text.splitlines()
    for archive in ARCHIVES:
        (line,) = [line for line in lines if archive.identity in line]
        name, version = archive.title.split("==")
        assert f"https://pypi.org/project/{name}/{version}/" in line
        (row,) = [line for line in lines if re.search(rf"\| {re.escape(name)} \|", line)]
        assert all(f"`{Path(file).name}`" in row for file in archive.members.values())


def test_licence_and_citation_agree_with_the_package():
    assert PROJECT["license"] == "MIT" and PROJECT["license-files"] == ["LICENSE"]
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 the lora-glue authors\n")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert (citation["license"], citation["version"]) == ("MIT", PROJECT["version"])
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2106.09685"
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Hu", "Shen", "Wallis", "Allen-Zhu", "Li", "Wang", "Wang", "Chen"]


def test_the_workflow_calls_the_script_that_ci_runs_as_root():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert ".ci/run" in commands and os.access(ROOT / ".ci/run", os.X_OK)
    assert job["container"]["image"].startswith("debian:")  # a container's user is root


@pytest.mark.parametrize("hook", ["ruff-check", "ruff-format"])
def test_the_hooks_refuse_what_lint_would(hook: str, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    (entry,) = [one for one in repository["hooks"] if one["id"] == hook]
    assert entry["language"] == "system"
    python, *arguments = entry["entry"].split()
    assert python == ".venv/bin/python"
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text('NAME = "value"\n')
    bad.write_text("import os\nNAME = 'value'\n")
    for path, code in ((good, 0), (bad, 1)):
        command = [sys.executable, *arguments, "--no-cache", f"--config={ROOT / 'pyproject.toml'}", str(path)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_git_ignores_a_users_results_and_sees_the_reference():
    profiles = [path.stem for path in (ROOT / "conf" / "profile").glob("*.yaml")]
    assert {"mini", "small", "paper", "own"} <= set(profiles)
    folders = [*profiles, "bench", "efficiency"]
    own = [f"results/{name}/runs/a.json" for name in folders]
    reference = [f"results/reference/{name}/runs/a.json" for name in folders]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *own, *reference]  # whether it is tracked or not
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == own, found.stderr


def test_links_in_place_of_ignored_folders_are_ignored(tmp_path):
    """A folder that is linked to a shared environment or another disk must not be committed by `git add --all`."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    (tmp_path / "results" / "mini").mkdir(parents=True)
    (tmp_path / "results" / "mini" / "record.json").touch()
    for name in (".venv", "data", "outputs", "wandb"):
        (tmp_path / name).symlink_to(tmp_path.parent)
    shown = subprocess.run(["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert shown.stdout == "?? .gitignore\n"
