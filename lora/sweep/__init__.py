"""Expand a command into runs, find the missing ones, and train them."""
