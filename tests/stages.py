"""`make test`: the suite in stages. A stage that cannot run reports why; REQUIRE_ALL_STAGES=1 makes that a failure.

The first stage has live output. The others run beside it, two at once: they wait for clusters and a browser more than
they compute. The output of each is shown when it has ended.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Two processes. A file's tests stay together because they share fixtures; files keep conftest's order.
IN_TWO = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
# Two clusters, whose tests mostly wait.
TWO_CLUSTERS = ("-n", "2", "--dist", "worksteal")
AT_ONCE = 3  # stages: more than the cores, since all but the first mostly wait
MARKS = ("alone", "browser", 'cluster("slurm")', 'cluster("ray")')


def marked(*marks: str) -> list[str]:
    """The files whose tests have one of these marks, read as text: to collect them all takes 10 seconds a stage."""
    marked_by = re.compile(rf"^pytestmark = \[?pytest\.mark\.({'|'.join(map(re.escape, marks))})", re.MULTILINE)
    paths = sorted((ROOT / "tests").glob("*/test_*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if marked_by.search(path.read_text())]


STAGES = (  # the first names no file, so ARGS can narrow it
    Stage("unit", (*IN_TWO, *(f"--ignore={path}" for path in marked(*MARKS)))),
    Stage("slurm", (*TWO_CLUSTERS, *marked('cluster("slurm")')), without("sbatch")),
    Stage("ray", (*marked('cluster("ray")'),), lambda: None if find_spec("ray") else "no ray"),
    Stage("long", (*marked("alone"),)),
    Stage("report", (*marked("browser"),), without(*BROWSERS)),
)


def run_stage(stage: Stage, extra: Sequence[str], shown: bool) -> tuple[int, str]:
    """Call pytest. Returns: Its exit code, and a line about the stage.

    Args:
        shown: Show its output as it comes, not at its end.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", *stage.arguments, *extra]
    # The tests' tensors are tiny: a second thread gains nothing and spins when another process takes its core.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # common in images: every process would compile lora/ anew
    kept = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **kept)
    if not shown:
        print(f"== {stage.name}\n{done.stdout}", flush=True)
    outcome = {0: "passed", NONE_SELECTED: "no test selected"}.get(done.returncode, f"failed ({done.returncode})")
    return done.returncode, f"{stage.name}: {outcome}, {time.monotonic() - started:.0f} s"


def main(stages: Sequence[Stage], extra: Sequence[str], require_all: bool) -> int:
    """Run the stages and print a summary.

    Args:
        extra: Further arguments for every call of pytest, which may select no test of a stage.
    Returns: 0 if every stage passed, a test ran and, if all stages are required, each could run.
    """
    reasons = {stage: stage.absent() for stage in stages}
    present = [stage for stage, reason in reasons.items() if reason is None]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = list(pool.map(lambda stage: run_stage(stage, extra, shown=stage is present[0]), present))
    missing = [f"not run: {stage.name} ({reason})" for stage, reason in reasons.items() if reason is not None]
    print(*missing, *(line for _, line in ended), sep="\n", flush=True)
    allowed = {0, NONE_SELECTED} if extra else {0}
    codes = [code for code, _ in ended]
    return int(0 not in codes or not allowed.issuperset(codes) or (require_all and bool(missing)))


if __name__ == "__main__":
    sys.exit(main(STAGES, sys.argv[1:], os.environ.get("REQUIRE_ALL_STAGES") == "1"))
