"""The one exception for mistakes a user can make and mend."""


class UserError(Exception):
    """What was found, the rule it breaks, and what exists. Commands print it without a traceback and exit with 2."""


def first_line(error: BaseException) -> str:
    """What a library's error says first: the rest is for its own developers."""
    return (str(error).strip().splitlines() or ["no message"])[0]
