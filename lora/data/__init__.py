"""The tasks, their rows (the same from every source), their batches and their metrics."""
