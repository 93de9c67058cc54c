"""The exception for mistakes that a user can fix, and helpers for its messages."""

from collections.abc import Iterable

DIVERGED = "training diverged"  # in the error of a run with a loss or predictions that are not finite


class DivergedError(Exception):
    """Training diverged. The run is recorded as failed."""


class UserError(Exception):
    """States what was found, the rule it breaks, and what exists. Commands print it without a traceback and exit 2."""


class UnfinishedError(Exception):
    """A sweep ended with runs that failed or are missing."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message; the rest is for its developers."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def listed(items: Iterable[object]) -> str:
    """Items joined by commas, cut to 8 and a count of the rest. Empty if there are none."""
    items = list(items)
    return ", ".join(map(str, items[:8])) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
