"""Commands with a shell's interface, in this process."""

from collections.abc import Callable, Sequence

from lora import cli


def command(name: str) -> Callable[[Sequence[str]], None]:
    """`python -m lora NAME`: a function of its arguments that raises SystemExit for every exit code but 0."""

    def call(arguments: Sequence[str]) -> None:
        if code := cli.main([*name.split(), *arguments]):
            raise SystemExit(code)

    return call
