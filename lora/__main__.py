"""`python -m lora`: a run, a sweep, or a command (`lora.cli`)."""

import sys

from lora.cli import main

if __name__ == "__main__":
    sys.exit(main())
