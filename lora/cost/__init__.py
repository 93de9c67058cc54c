"""What it costs: computed before a run, and measured on this machine.

| module | what it holds |
| --- | --- |
| `parameters`, `memory` | what trains and what fits, computed without weights |
| `machine` | what the machine is, and whether it is idle; no torch |
| `timing` | actions that take turns, medians and their intervals; no torch |
| `results` | where measurements lie and what they say about their origin; no torch |
| `shapes`, `subjects` | what is timed: batches, and models in training by our own step or PEFT's |
| `saved` | bytes that the backward pass and a checkpoint need |
| `floor`, `steps` | one training step of each subject, and the time of its matrix products alone |
| `growth` | time and memory against model size, batch, length, rank and number of runs |
| `gpu` | steps on one GPU, in minutes |
| `adapters`, `adapters_page` | swaps and their drift, mixed batches, file sizes, compared with PEFT |
| `throughput` | runs an hour, compared with Trainer + PEFT |
| `efficiency` | memory, storage, speed and latency of each method |

Everything lies under results/bench/<device>/ and results/efficiency/<device>/, or with --reference under
results/reference/.
"""
