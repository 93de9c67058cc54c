"""Train one run, from its configuration to its record."""
