"""What it costs: computed before, and measured."""
