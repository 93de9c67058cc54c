"""Commands with a shell's interface, in this process."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from lora import cli
from lora.training import signals


def command(name: str) -> Callable[[Sequence[str]], None]:
    """`python -m lora NAME`: a function of its arguments that raises SystemExit for every exit code but 0."""

    def call(arguments: Sequence[str]) -> None:
        if code := cli.main([*name.split(), *arguments]):
            raise SystemExit(code)

    return call


def lora(*arguments: object) -> subprocess.CompletedProcess:
    """`python -m lora ARGUMENTS`: its exit code, and what this process prints. A sweep's workers print elsewhere."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, signals.listening():
        patch.setattr(sys, "argv", ["lora"])  # where Hydra reads its arguments
        patch.setenv("HYDRA_FULL_ERROR", "1")  # which a launch sets for good
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([str(argument) for argument in arguments])
            except SystemExit as ended:
                code = ended.code
    return subprocess.CompletedProcess(arguments, int(code or 0), out.getvalue(), err.getvalue())
