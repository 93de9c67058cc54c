"""`make test`: the suite in stages. A stage that cannot run reports why; REQUIRE_ALL_STAGES=1 makes that a failure.

The first stage runs alone, with live output. The others wait for clusters and a browser more than they compute, so
they run at once. The output of each is shown when it has ended.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
NONE_SELECTED = 5  # pytest's exit code


@dataclass(frozen=True)
class Stage:
    """One call of pytest. `absent` returns the reason why the stage cannot run on this machine, or None."""

    name: str
    arguments: tuple[str, ...]
    absent: Callable[[], str | None] = lambda: None


def without(*programs: str) -> Callable[[], str | None]:
    return lambda: None if any(map(shutil.which, programs)) else f"no {programs[0]}"


def without_ray() -> str | None:
    return None if find_spec("ray") else "no ray"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OWN = ("tests/test_slurm.py", "tests/test_ray.py")  # they start a cluster each
# Two processes. A file's tests stay together because they share fixtures; files keep conftest's order.
IN_TWO = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
# Two clusters, whose tests mostly wait.
TWO_CLUSTERS = ("-n", "2", "--dist", "worksteal")
STAGES = (  # a stage that names no file uses pytest's testpaths, so ARGS can narrow it
    Stage("unit", (*IN_TWO, "-m", "not browser", *(f"--ignore={path}" for path in OWN))),
    Stage("report", ("-m", "browser"), without(*BROWSERS)),
    Stage("slurm", (*TWO_CLUSTERS, OWN[0]), without("sbatch")),
    Stage("ray", (OWN[1],), without_ray),
)


@dataclass(frozen=True)
class Ended:
    """A stage that has run.

    Args:
        code: Exit code of pytest.
        counts: Number of tests by outcome.
        output: Output of pytest that has not been shown yet.
    """

    stage: Stage
    code: int
    counts: dict[str, int]
    seconds: float
    output: str


def run_stage(stage: Stage, extra: Sequence[str], shown: bool) -> Ended:
    """Call pytest.

    Args:
        shown: Send its output to this process's own. Otherwise it is kept.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *stage.arguments, f"--junitxml={report}", *extra]
        # The tests' tensors are tiny: a second thread gains nothing and spins when another process takes its core.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        kept = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **kept)
        suites = ElementTree.parse(report).getroot() if report.exists() else ()  # absent after a wrong argument
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    outcomes = {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
    }
    return Ended(stage, done.returncode, outcomes, time.monotonic() - started, done.stdout or "")


def run_all(stages: Sequence[Stage], extra: Sequence[str]) -> Iterator[Ended]:
    """Run the first stage, then the others at once, and yield each when it has ended."""
    if stages:
        print(f"== {stages[0].name}", flush=True)
        yield run_stage(stages[0], extra, shown=True)
    with ThreadPoolExecutor(max(1, len(stages))) as pool:
        for running in as_completed([pool.submit(run_stage, stage, extra, False) for stage in stages[1:]]):
            ended = running.result()
            print(f"== {ended.stage.name}\n{ended.output}", flush=True)
            yield ended


def main(stages: Sequence[Stage], extra: Sequence[str], require_all: bool) -> int:
    """Run the stages and print a summary.

    Args:
        extra: Further arguments for every call of pytest.
    Returns: 0 if every stage passed, at least one test ran and, if all stages are required, each could run.
    """
    reasons = {stage: stage.absent() for stage in stages}
    lines = [f"not run: {stage.name} ({reason})" for stage, reason in reasons.items() if reason is not None]
    totals, bad = {"passed": 0, "failed": 0, "skipped": 0}, require_all and bool(lines)
    for ended in run_all([stage for stage, reason in reasons.items() if reason is None], extra):
        outcome = "passed" if ended.code == 0 else f"failed, exit code {ended.code}"
        nothing = ended.code == NONE_SELECTED and extra  # the arguments select tests of another stage
        lines.append(f"{ended.stage.name}: {'no test selected' if nothing else outcome}, {ended.seconds:.0f} s")
        totals = {key: totals[key] + ended.counts[key] for key in totals}
        bad = bad or (ended.code != 0 and not nothing)
    bad = bad or not any(totals.values())
    print(*lines, sep="\n")
    print(", ".join(f"{count} {outcome}" for outcome, count in totals.items()), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(STAGES, sys.argv[1:], os.environ.get("REQUIRE_ALL_STAGES") == "1"))
