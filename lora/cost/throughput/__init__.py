"""What this project costs beside what people use today, measured in one run on one machine.

| module | what it holds |
| --- | --- |
| `timing` | interleaved repetitions, medians, intervals, rotation; no torch |
| `machine` | what the machine is and whether it is idle; no torch |
| `cells` | the cells that every side trains, their rows and settings as files |
| `peer` | one cell by transformers' Trainer and PEFT: the script loop and the tuned peer |
| `sides` | the three sides as processes of their own: time, memory and records of each |
| `trace` | where the time of one of this project's cells goes |
| `contenders`, `steps` | one training step of each contender: time, saved bytes, share of matrix products |
| `floor` | the time of a step's matrix products alone |
| `summary`, `table`, `output` | from what was measured to summary.json, its tables, and the README's |
| `growth` | time and memory against model size, batch, length, rank and number of cells |
| `adapters`, `adapters_page` | swaps and their drift, mixed batches, file sizes, beside PEFT |
| `gpu` | all of it that one GPU can show, in minutes |

`python -m lora bench` (`make bench`) measures the cells and the steps; `python -m lora bench growth`,
`python -m lora bench adapters` and `python -m lora bench gpu` the others. Everything lies under
results/bench/<device>/, or with --reference results/reference/bench/<device>/.
"""
