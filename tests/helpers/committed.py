"""The reports of the committed runs, each built once in a process."""

import functools

from lora.report.build import build

committed = functools.cache(build)  # of `reference/<profile>`
