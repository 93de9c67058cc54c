"""`python -m lora`: a run, a sweep, or a command (`lora.cli`)."""

import gc
import sys

from lora.cli import main

if __name__ == "__main__":
    gc.set_threshold(50_000)  # imports make 800,000 objects: collecting among them takes a tenth of the start
    sys.exit(main())
