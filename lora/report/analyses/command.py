"""Arguments and target of `python -m lora analyse ...`. Without --reference, no analysis writes a committed file."""

import argparse

from lora.errors import UserError
from lora.files import REFERENCE
from lora.report.select import Gathered
from lora.report.select import options as profile_options


def options(parser: argparse.ArgumentParser) -> None:
    profile_options(parser)
    parser.add_argument(
        "--reference", action="store_true", help=f"write the committed analysis of {REFERENCE}/<profile> (maintainers)"
    )


def check_target(gathered: Gathered, reference: bool) -> None:
    """Check that the analysis goes where the command says, before anything is computed.

    Raises: UserError: If it would write a committed file without --reference, or --reference is given for other runs.
    """
    if gathered.is_reference and not reference:
        raise UserError(
            f"the analysis of {gathered.name} is a committed file, which only --reference writes; "
            f"python -m lora report {gathered.name} shows what it holds"
        )
    if reference and not gathered.is_reference:
        raise UserError(f"--reference is for {REFERENCE}/<profile>, the committed runs; these are in {gathered.folder}")
