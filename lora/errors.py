"""The exception for mistakes that a user can fix, and helpers for its messages."""

import shlex
from collections.abc import Iterable

DIVERGED = "training diverged"  # in the error of a run with a loss or predictions that are not finite
LISTED = 8  # items that a message spells out


class DivergedError(Exception):
    """Training diverged. The run is recorded as failed."""


class UserError(Exception):
    """States what was found, the rule it breaks, and what exists. Commands print it without a traceback and exit 2."""


class UnfinishedError(Exception):
    """A sweep ended with runs that failed or are missing."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message; the rest is for its developers."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def as_command(words: Iterable[str]) -> str:
    """A command as typed in a shell. Hydra's own quotes around a path stay readable inside double quotes."""
    plain = (f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words)
    return " ".join(plain)


def excerpt(text: str) -> str:
    """A text in quotes, cut to 60 characters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def listed(items: Iterable[object]) -> str:
    """Items joined by commas, cut to `LISTED` and a count of the rest. Empty if there are none."""
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more
