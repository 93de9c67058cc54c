"""Commands with a shell's interface, in this process."""

import contextlib
import io
import subprocess

from lora import cli
from lora.training import processes


def lora(*arguments: object) -> subprocess.CompletedProcess:
    """`python -m lora ARGUMENTS`: its exit code, and what this process prints. A sweep's workers print elsewhere."""
    out, err = io.StringIO(), io.StringIO()
    with processes.listening(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
