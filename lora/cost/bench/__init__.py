"""Runs an hour of this project, compared with two current scripts: `python -m lora bench`.

`command` runs the three sides in turns; `peer` is the scripts' program, with transformers' Trainer and PEFT; `page`
writes the README's figures from measurements.json.
"""
