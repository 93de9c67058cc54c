"""The time at which a claim was stated, in repositories made by the tests, against git's own answer."""

import subprocess
from pathlib import Path

import pytest
from test_claims import GOOD, finding

from lora.report.claims.history import with_history
from lora.report.claims.shown import commit_text, to_json, verdict_table
from lora.report.claims.statements import read_claims
from lora.report.claims.verdicts import Verdict, verdict

FILE = "experiments/glue_table2/claims.yaml"
SECOND = GOOD.replace("id: one", "id: two")


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(root: Path, content: str, message: str = "x") -> str:
    (root / FILE).write_text(content)
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "project"
    (root / FILE).parent.mkdir(parents=True)
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    (root / FILE).with_name("paper.csv").write_text("source,model,method,task,value,std\np,M,LoRA,Avg,87.2,\n")
    return root


def dated(root: Path, runs: dict[str, str | None], name: str = "one") -> Verdict:
    (claim,) = [each for each in read_claims(root / "experiments") if each.id == name]
    judged = verdict(claim, "minilm", [finding(1.0, 0.5, 1.5, runs=tuple(runs))])
    (found,) = with_history([judged], runs, root)
    return found


def test_a_claim_is_of_the_commit_in_which_it_last_changed(repository):
    """A new bound states it anew. Changes to other claims, to the words of its margin and to white space do not."""
    first = commit(repository, GOOD)
    changed = commit(repository, GOOD.replace("above: 0", "above: -1"))
    commit(repository, GOOD.replace("above: 0", "above: -1").replace("margin: any", "margin: by any amount"))
    other = commit(repository, GOOD.replace("above: 0", "above: -1") + "\n" + SECOND)
    for name, stated in (("one", changed), ("two", other)):
        for made_with in (first, changed, other):
            found = dated(repository, {"run": made_with}, name)
            contains = subprocess.run(["git", "-C", repository, "merge-base", "--is-ancestor", stated, made_with])
            assert found.stated == stated[:8]
            assert found.stated_later is (contains.returncode != 0)
    some = dated(repository, {"old": first, "new": other})
    assert some.stated_later and commit_text(some) == f"{changed[:8]}, stated later"
    assert verdict_table([some])["Claim's commit"].tolist() == [f"{changed[:8]}, stated later"]
    assert b'"stated_later": true' in to_json([some])


def test_a_claim_that_was_changed_and_changed_back_is_stated_anew(repository):
    first = commit(repository, GOOD)
    between = commit(repository, GOOD.replace("above: 0", "above: 9"))
    back = commit(repository, GOOD)
    assert dated(repository, {"run": back}).stated == back[:8]
    assert dated(repository, {"run": first}).stated_later is False  # it contained this very claim
    assert dated(repository, {"run": between}).stated_later is True


def test_a_claim_from_a_branch_is_of_that_branchs_commit(repository):
    commit(repository, GOOD)
    git(repository, "checkout", "-q", "-b", "side")
    side = commit(repository, GOOD.replace("above: 0", "above: -1"))
    git(repository, "checkout", "-q", "main")
    (repository / "other.txt").write_text("x")
    main = commit(repository, GOOD)
    git(repository, "merge", "-q", "--no-ff", "-m", "merge", "side")
    merged = git(repository, "rev-parse", "HEAD")
    assert dated(repository, {"run": merged}).stated == side[:8]
    assert dated(repository, {"run": merged}).stated_later is False
    assert dated(repository, {"run": main}).stated_later is True


def test_a_claim_that_is_not_committed_is_later_than_any_run(repository):
    first = commit(repository, GOOD)
    (repository / FILE).write_text(GOOD.replace("above: 0", "above: -1"))
    found = dated(repository, {"run": first})
    assert (found.stated, found.stated_later, commit_text(found)) == ("", True, "-, stated later")


@pytest.mark.parametrize("made_with", [None, "0" * 40])
def test_of_an_unknown_commit_nothing_is_said(repository, made_with):
    first = commit(repository, GOOD)
    found = dated(repository, {"run": made_with, "known": first})
    assert (found.stated, found.stated_later) == (first[:8], None)


def test_a_shallow_clone_and_a_tarball_cannot_tell(repository, tmp_path):
    first = commit(repository, GOOD)
    commit(repository, GOOD + "\n" + SECOND)
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", str(tmp_path / "shallow"))
    git(repository, "archive", "--prefix=plain/", "-o", str(tmp_path / "plain.tar"), "HEAD")
    subprocess.run(["tar", "-xf", tmp_path / "plain.tar", "-C", tmp_path], check=True)
    for name in ("shallow", "plain"):
        found = dated(tmp_path / name, {"run": first})
        assert (found.stated, found.stated_later, commit_text(found)) == ("", None, "-")


def test_without_git_nothing_is_known(repository, monkeypatch):
    first = commit(repository, GOOD)
    monkeypatch.setenv("PATH", "")
    assert dated(repository, {"run": first}).stated == ""
