"""Trained adapters: saving, loading, merging, exchanging, and predicting with them."""
