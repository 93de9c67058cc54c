"""Costs: computed before a run, and measured on this machine.

| module | contents |
| --- | --- |
| `parameters`, `memory` | trainable parameters and memory of a run, computed without weights |
| `machine` | the machine's description, and the load of other processes; no torch |
| `timing` | interleaved timings, medians and their intervals; no torch |
| `results` | folders of measurements, and the origin that each states; no torch |
| `shapes`, `subjects` | batches to time, and models in training by our step or PEFT's |
| `saved` | bytes that the backward pass and a checkpoint need |
| `floor`, `steps` | one training step of each subject, and the time of its matrix products alone |
| `throughput` | runs per hour, compared with Trainer + PEFT |
| `efficiency` | memory, storage, speed and latency of each method |

Results are in results/bench/<device>/ and results/efficiency/<device>/, or with --reference in the same folders of
results/reference/.
"""
