"""Costs: computed before a run (`parameters`, `memory`), and measured on this machine (`efficiency`, `bench`)."""
