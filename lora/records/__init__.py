"""Run records, the frame read from a folder of them, and their provenance."""
