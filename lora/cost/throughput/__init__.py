"""Runs an hour of this project and of today's scripts, measured side by side. `python -m lora bench`.

| module | what it holds |
| --- | --- |
| `runs` | the runs that every side trains, their rows and settings as files |
| `job`, `peer` | runs by transformers' Trainer and PEFT, in a process of their own |
| `sides` | the three sides as processes: time, memory and results of each |
| `trace` | where the time of one of this project's runs goes |
| `summary`, `tables` | from measurements.json to summary.json, and its tables |
"""
