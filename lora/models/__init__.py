"""Pretrained encoders: loading, their modules, and their sizes."""
