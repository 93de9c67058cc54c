"""Every command of `python -m lora`, and the one place that turns a mistake into a message and exit code 2.

A command is a module with two functions: `options(parser)` adds its arguments, and `main(given)` does the work and
returns an exit code, or None for 0. It is imported only when its command is called.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from lora.errors import UnfinishedError, UserError

COMMANDS = {
    "status": ("lora.sweep.status", "show which runs of a profile are done, running, failed or waiting; --watch: live"),
    "plan": ("lora.sweep.plan", "estimate what a sweep will cost, in device hours and checkpoints"),
    "tune": ("lora.sweep.tune", "choose each method's learning rate, on a seed that no table reports"),
    "report": ("lora.report.command", "build tables, verdicts, figures and report.html from a profile's records"),
    "published": ("lora.report.published", "rebuild the page of published GLUE numbers"),
    "predict": ("lora.adapters.predict", "predict with trained adapters; write a GLUE submission"),
    "analyse intervals": ("lora.report.analyses.dev_intervals", "would other dev examples show the same?"),
    "analyse subspaces": ("lora.report.analyses.subspaces", "Figures 3 and 4 and Table 7 from saved adapters"),
    "analyse swaps": ("lora.report.analyses.swaps", "is the base recovered exactly when adapters are swapped?"),
    "parameters": ("lora.cost.parameters", "count trainable parameters at full size; compare them with the paper's"),
    "memory": ("lora.cost.memory", "estimate the accelerator memory that a run needs"),
    "efficiency": ("lora.cost.efficiency.command", "measure memory, storage, speed and latency of each method here"),
    "bench": ("lora.cost.bench.command", "compare speed with Trainer + PEFT on this machine"),
    "fetch": ("lora.data.fetch", "download and check the embedded encoder and texts, and encoders that are named"),
    "upload": ("lora.sweep.tracking", "send a sweep's tables and figures to Weights & Biases"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns: The exit code: 0, 1 for an unfinished sweep, 2 for a mistake, 130 if interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in (["--help"], ["-h"], ["help"]):
        print(first_screen())
        return 0
    name = next((" ".join(given[:n]) for n in (2, 1) if " ".join(given[:n]) in COMMANDS), None)  # the longest
    if name is not None:
        return run_command(COMMANDS[name][0], f"python -m lora {name}", given[len(name.split()) :])
    group = [one for one in COMMANDS if given and one.startswith(f"{given[0]} ")]
    word = given[0] if given else ""
    if group or (word.isidentifier() and "=" not in word):
        offered = ", ".join(group or COMMANDS)
        print(f"error: {' '.join(given[:2])!r} is not a command; use one of {offered}", file=sys.stderr)
        return 2
    return run_command("lora.entry", "python -m lora", given)


def run_command(module: str, name: str, arguments: Sequence[str]) -> int:
    """Parse the arguments, run the command, and turn a mistake into a message on stderr. Returns: The exit code."""
    try:
        command = import_module(module)  # which takes seconds, in which Ctrl-C may come
        parser = argparse.ArgumentParser(prog=name, description=command.__doc__)
        command.options(parser)
        return command.main(parser.parse_intermixed_args(arguments)) or 0
    except UserError as error:
        code, message = 2, f"error: {error}"
    except UnfinishedError as error:
        code, message = 1, f"unfinished:\n{error}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted: what is finished is kept; the same command resumes the rest"
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if os.environ.get("RANK", "0") == "0":  # one of several processes that train one run prints it
        print(message, file=sys.stderr)
    return code


def first_screen() -> str:
    """The text of `python -m lora --help`."""
    from lora.config.options import describe_group
    from lora.data.tasks import TASKS

    width = max(map(len, COMMANDS)) + 2
    groups = {
        name: describe_group(name) for name in ("method", "model", "protocol", "profile", "experiment", "launcher")
    }
    return "\n".join(
        [
            "LoRA (Hu et al. 2021) compared with full fine-tuning and adapters on GLUE.",
            "",
            "usage: python -m lora KEY=VALUE ...        train one run",
            "       python -m lora -m profile=NAME ...  train a profile; task=cola seed=1,2 selects from it",
            "       python -m lora -m experiment=null KEY=A,B ...  train a grid of your own",
            "       python -m lora COMMAND --help       arguments of a command",
            "",
            "example: python -m lora task=reviews method=lora seed=1",
            "         python -m lora -m profile=mini && python -m lora report mini",
            "",
            "commands:",
            *(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()),
            "",
            "settings (--cfg job shows all with their values):",
            f"  {'task':<{width}}{', '.join(TASKS)}, or a file of your own: task=my_task.yaml",
            *(f"  {name:<{width}}{', '.join(options)}" for name, options in groups.items()),
        ]
    )
