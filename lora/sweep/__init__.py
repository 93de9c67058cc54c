"""Which runs are expected, what is missing, and running it."""
