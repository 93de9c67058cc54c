"""The one exception for mistakes a user can make and mend."""


class UserError(Exception):
    """What was found, the rule it breaks, and what exists. Commands print it without a traceback and exit with 2."""
