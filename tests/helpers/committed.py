"""The reports of the committed runs, each built once in a process."""

import functools

from lora.report.build import build_report

committed = functools.cache(build_report)  # of `reference/<profile>`
