"""The encoder: loaded strictly, taken apart, counted."""
