"""`make test`: the suite in stages. One that cannot run here says why; with REQUIRE_ALL_STAGES=1 that is a failure.

The first runs alone and is seen as it goes; the others, which wait for clusters and a browser more than they compute,
run at once, and each is shown when it has ended.
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
    """One call of pytest. `absent` returns the reason why the stage cannot run here, or None."""

    name: str
    arguments: tuple[str, ...]
    absent: Callable[[], str | None] = lambda: None


def without(*programs: str) -> Callable[[], str | None]:
    return lambda: None if any(map(shutil.which, programs)) else f"no {programs[0]}"


def without_ray() -> str | None:
    return None if find_spec("ray") and find_spec("hydra_plugins.hydra_ray_launcher") else "no ray"


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OWN = ("tests/test_slurm.py", "tests/test_ray.py")  # they start a cluster each
# Two processes; a file's tests stay together, since they share fixtures, and the files in conftest's order.
IN_TWO = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
# Two clusters, whose tests mostly wait.
TWO_CLUSTERS = ("-n", "2", "--dist", "worksteal")
STAGES = (  # pytest's own testpaths where no file is named, so that ARGS can narrow it
    Stage("unit", (*IN_TWO, "-m", "not browser", *(f"--ignore={path}" for path in OWN))),
    Stage("report", ("-m", "browser"), without(*BROWSERS)),
    Stage("slurm", (*TWO_CLUSTERS, OWN[0]), without("sbatch")),
    Stage("ray", (OWN[1],), without_ray),
)


@dataclass(frozen=True)
class Ended:
    """A stage that has run.

    Args:
        code: Of pytest.
        counts: Its tests by outcome.
        output: What it printed, if that was not shown yet.
    """

    stage: Stage
    code: int
    counts: dict[str, int]
    seconds: float
    output: str


def run_stage(stage: Stage, extra: Sequence[str], shown: bool) -> Ended:
    """Call pytest.

    Args:
        shown: Its output goes to this process's own, else it is kept.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *stage.arguments, f"--junitxml={report}", *extra]
        # The tests' tensors are tiny: a second thread gains nothing, and spins when another process takes its core.
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
    """The stages as they end, the first of them first."""
    if stages:
        print(f"== {stages[0].name}", flush=True)
        yield run_stage(stages[0], extra, shown=True)
    with ThreadPoolExecutor(max(1, len(stages))) as pool:
        for running in as_completed([pool.submit(run_stage, stage, extra, False) for stage in stages[1:]]):
            ended = running.result()
            print(f"== {ended.stage.name}\n{ended.output}", flush=True)
            yield ended


def main(stages: Sequence[Stage], extra: Sequence[str], require_all: bool) -> int:
    """Run the stages and print an account of them.

    Args:
        extra: Further arguments for every call of pytest.
    Returns: 0 if every stage passed, any test ran and, where all stages are required, each could.
    """
    reasons = {stage: stage.absent() for stage in stages}
    lines = [f"not run: {stage.name} ({reason})" for stage, reason in reasons.items() if reason is not None]
    totals, bad = {"passed": 0, "failed": 0, "skipped": 0}, require_all and bool(lines)
    for ended in run_all([stage for stage, reason in reasons.items() if reason is None], extra):
        outcome = "passed" if ended.code == 0 else f"failed, exit code {ended.code}"
        nothing = ended.code == NONE_SELECTED and extra  # the arguments were about another stage
        lines.append(f"{ended.stage.name}: {'no test selected' if nothing else outcome}, {ended.seconds:.0f} s")
        totals = {key: totals[key] + ended.counts[key] for key in totals}
        bad = bad or (ended.code != 0 and not nothing)
    bad = bad or not any(totals.values())
    print(*lines, sep="\n")
    print(", ".join(f"{count} {outcome}" for outcome, count in totals.items()), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(STAGES, sys.argv[1:], os.environ.get("REQUIRE_ALL_STAGES") == "1"))
