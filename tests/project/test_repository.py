"""The files that state who may use the repository, with which packages, and how it is checked elsewhere."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lora.data.embedded import ARCHIVES, ENCODERS
from lora.files import ROOT

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


def test_third_party_names_every_archive_by_its_hash_and_every_file():
    text = (ROOT / "THIRD_PARTY.md").read_text()
    hashes = {sha256 for archive in (*ARCHIVES, *ENCODERS.values()) for sha256 in archive.packages.values()}
    assert hashes <= set(re.findall(r"\b[0-9a-f]{64}\b", text)) and len(hashes) == 8
    lines = text.splitlines()
    for archive in ARCHIVES:
        requirement, sha256 = next(iter(archive.packages.items()))
        (line,) = [line for line in lines if sha256 in line]
        name, version = requirement.split("==")
        assert f"https://pypi.org/project/{name}/{version}/" in line
        (row,) = [line for line in lines if re.search(rf"\| {re.escape(name)} \|", line)]
        assert all(f"`{Path(file).name}`" in row for file in archive.members.values())


def test_git_ignores_a_users_results_and_sees_the_reference():
    profiles = [path.stem for path in (ROOT / "conf" / "profile").glob("*.yaml")]
    assert {"mini", "small", "paper", "own"} <= set(profiles)
    folders = [*profiles, "bench", "efficiency"]
    own = [f"results/{name}/runs/a.json" for name in folders]
    reference = [f"results/reference/{name}/runs/a.json" for name in folders]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *own, *reference]  # whether it is tracked or not
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == own, found.stderr
