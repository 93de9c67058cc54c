"""The cost of each method: the paper's section 4.2 and Table 1, measured by `python -m lora efficiency`.

| module | contents |
| --- | --- |
| `plan` | the plan of a measurement: encoder, methods, kernels |
| `models` | the encoder with a method on it, in training or as deployed |
| `peak` | the peak memory of training one method, in a separate process |
| `measure` | one measurement, from its plan to a summary |
| `summary` | summary.json: building it from measurements, and reading it strictly |
| `tables`, `figures`, `report` | tables and figures from summaries, without torch |
"""
