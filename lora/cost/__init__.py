"""Costs: computed before a run, and measured on this machine.

| module | contents |
| --- | --- |
| `parameters`, `memory` | trainable parameters and memory of a run, computed without weights |
| `machine` | the machine's description, the load of other processes, folders of measurements; no torch |
| `timing` | medians of timings with intervals; no torch |
| `subjects` | models in training, and as deployed |
| `harness` | bytes and peak memory of any subject on any device |
| `efficiency` | memory, storage, speed and latency of each method |
| `bench` | runs per hour, compared with Trainer + PEFT |

Results are in results/bench/<device>/ and results/efficiency/<device>/, or with --reference in the same folders of
results/reference/.
"""
