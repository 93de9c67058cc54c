"""What each method costs: the paper's section 4.2 and Table 1, measured. `python -m lora efficiency` runs it.

| module | what it holds |
| --- | --- |
| `plan` | what is measured, on which encoder, with which kernels |
| `subjects` | the encoder with a method on it, ready to train or to serve |
| `memory` | bytes: of saved activations, of a checkpoint; the peak of a process of its own (`peak`) |
| `timing` | interleaved repetitions |
| `measure` | one call, from its plan to a summary |
| `machine` | what the numbers were measured on, and whether it was idle |
| `statistics` | medians, their intervals, and paired ratios |
| `summary` | summary.json: from measurements to it, and back, strictly |
| `tables`, `figures`, `report` | from summaries to what is shown; no torch here |
"""
