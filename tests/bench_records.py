"""Benchmark of many records: `python tests/bench_records.py`. Not a test; all records are synthetic.

It times the rebuild of tables and page from 10,000 records (the paper's Table 2, 14 rows on 8 tasks with 90 seeds),
`status` on the same records, and the launch of a sweep of 500 runs that are all complete. The last two are whole
commands, from the start of Python to its end. Each is called twice: the first call composes the list of expected runs,
which outputs/cache keeps in any clone that has launched the sweep. Both times are printed.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import populate

ROOT = Path(__file__).parents[1]
GRID = ["experiment=glue_table2", f"seed={','.join(map(str, range(1, 91)))}"]
SWEEP = ["task=reviews,ratings", "method=lora,full", f"seed={','.join(map(str, range(1, 126)))}"]


def seconds_of(*arguments: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def rebuild(results: Path) -> None:
    from lora.report.build import build

    started, cpu = time.monotonic(), time.process_time()
    report = build("paper", GRID, results)
    size = sum(map(len, report.files.values())) + len(report.html(dict.fromkeys(report.figures, b"")))
    seconds, busy = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"rebuilt in {seconds:.1f} s ({busy:.1f} s of CPU), peak {peak:.2f} GiB, {size / 2**20:.1f} MiB of files")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        runs = populate(results / "paper", "paper", GRID)
        print(f"{len(runs)} records written", flush=True)
        rebuild(results)
        where = [f"runtime.results={results}/paper", f"runtime.outputs={results}/outputs"]
        first, again = (seconds_of("lora", "status", "paper", *GRID, *where) for _ in range(2))
        print(f"status of {len(runs)} records: {again:.1f} s, the first time {first:.1f} s", flush=True)
        where = [f"runtime.results={results}/mini", f"runtime.outputs={results}/outputs"]
        runs = populate(results / "mini", "mini", [*SWEEP, *where])
        first, again = (seconds_of("lora", "-m", "profile=mini", *SWEEP, *where) for _ in range(2))
        print(f"sweep of {len(runs)} complete runs: {again:.1f} s, the first time {first:.1f} s")


if __name__ == "__main__":
    main()
