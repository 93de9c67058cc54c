"""Rows of every task, the same whichever way they come, and their metrics."""
