"""The cost of each method: the paper's section 4.2 and Table 1, measured by `python -m lora efficiency`."""
