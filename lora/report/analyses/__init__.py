"""Analyses of saved predictions and adapters, computed once and stored as JSON."""
