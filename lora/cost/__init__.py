"""Costs: computed before a run, and measured on this machine.

| module | contents |
| --- | --- |
| `parameters`, `memory` | trainable parameters and memory of a run, computed without weights |
| `machine` | the machine's description, and the load of other processes; no torch |
| `timing` | interleaved timings, medians and their intervals; no torch |
| `results` | folders of measurements; no torch |
| `shapes`, `subjects` | batches to time; models in training by our step or PEFT's, and as deployed |
| `floor` | the time of a step's matrix products alone |
| `harness` | times, bytes, floor and peak memory of any subject on any device |
| `efficiency` | memory, storage, speed and latency of each method |
| `bench` | runs per hour, compared with Trainer + PEFT |

Results are in results/bench/<device>/ and results/efficiency/<device>/, or with --reference in the same folders of
results/reference/.
"""
