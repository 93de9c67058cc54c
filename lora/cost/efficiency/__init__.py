"""What each method costs: the paper's section 4.2 and Table 1, measured. `python -m lora efficiency` runs it.

| module | what it holds |
| --- | --- |
| `plan` | what is measured, on which encoder, with which kernels |
| `models` | the encoder with a method on it, in training or as it is deployed |
| `peak` | the peak memory of a process of its own |
| `measure` | one call, from its plan to a summary |
| `summary` | summary.json: from measurements to it, and back, strictly |
| `tables`, `figures`, `report` | from summaries to what is shown; no torch here |
"""
