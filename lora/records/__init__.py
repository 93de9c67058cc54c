"""The run record, the frame that is read from a folder of them, and where they came from."""
