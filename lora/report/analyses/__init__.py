"""Analyses of saved predictions and adapters, computed once and kept as JSON."""
