"""Runs per hour of this project, compared with scripts of today: `python -m lora bench`.

| module | contents |
| --- | --- |
| `runs` | the runs that every side trains; their examples and settings as files |
| `job`, `peer` | runs by transformers' Trainer and PEFT, in a separate process |
| `sides` | the three sides as processes: time, memory and results of each |
| `trace` | the time of one of this project's runs, by activity |
| `summary`, `tables` | summary.json from measurements.json, and its tables |
"""
