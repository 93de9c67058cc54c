"""How long a rebuild of 10,000 records takes, and how much memory: `python tests/bench_rebuild.py`. Not a test.

The records are synthetic: the paper's Table 2, 14 rows on 8 tasks with 90 seeds. The list of expected cells is composed
once before the clock starts, as it is in any clone that has launched the sweep (it is kept in outputs/cache).
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from synthetic import populate

GRID = ["experiment=glue_table2", f"seed={','.join(map(str, range(1, 91)))}"]


def main() -> None:
    from lora.report import build

    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        cells = populate(results / "paper", "paper", GRID)
        print(f"{len(cells)} records written", flush=True)
        started, cpu = time.monotonic(), time.process_time()
        report = build("paper", GRID, results)
        size = sum(map(len, report.files.values())) + len(report.html(dict.fromkeys(report.figures, b"")))
        seconds, busy = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"rebuilt in {seconds:.1f} s ({busy:.1f} s of CPU), peak {peak:.2f} GiB, {size / 2**20:.1f} MiB of files")


if __name__ == "__main__":
    main()
