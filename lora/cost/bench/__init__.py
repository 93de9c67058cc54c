"""Runs an hour of this project, compared with two current scripts: `python -m lora bench`."""
