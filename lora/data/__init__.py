"""The rows of every task, the same from every source, and the metrics."""
