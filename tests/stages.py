"""`make test`: the suite in stages. One that cannot run here says why; with REQUIRE_ALL_STAGES=1 that is a failure."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
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


def run_pytest(stage: Stage, extra: Sequence[str]) -> tuple[int, dict[str, int]]:
    """The exit code of pytest, and its tests by outcome."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *stage.arguments, f"--junitxml={report}", *extra]
        # The tests' tensors are tiny: a second thread gains nothing, and spins when another process takes its core.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        suites = ElementTree.parse(report).getroot() if report.exists() else ()  # absent after a wrong argument
    counts = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    return code, {
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": failed,
        "skipped": counts["skipped"],
    }


def main(stages: Sequence[Stage], extra: Sequence[str], require_all: bool) -> int:
    """Run the stages and print an account of them.

    Args:
        extra: Further arguments for every call of pytest.
    Returns: 0 if every stage passed, any test ran and, where all stages are required, each could.
    """
    lines, totals, bad = [], {"passed": 0, "failed": 0, "skipped": 0}, False
    for stage in stages:
        reason = stage.absent()
        if reason is not None:
            lines.append(f"not run: {stage.name} ({reason})")
            bad = bad or require_all
            continue
        print(f"== {stage.name}", flush=True)
        started = time.monotonic()
        code, counts = run_pytest(stage, extra)
        outcome = "passed" if code == 0 else f"failed, exit code {code}"
        if code == NONE_SELECTED and extra:  # the arguments were about another stage
            code, outcome = 0, "no test selected"
        lines.append(f"{stage.name}: {outcome}, {time.monotonic() - started:.0f} s")
        totals = {key: totals[key] + counts[key] for key in totals}
        bad = bad or code != 0
    bad = bad or not any(totals.values())
    print(*lines, sep="\n")
    print(", ".join(f"{count} {outcome}" for outcome, count in totals.items()), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(STAGES, sys.argv[1:], os.environ.get("REQUIRE_ALL_STAGES") == "1"))
