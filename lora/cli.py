"""Every command of `python -m lora`, and the one place that turns a mistake into a message and exit code 2.

Settings alone train one run or, with `-m`, a sweep over the runs of a profile. Any other command is a module with two
functions: `options(parser)` adds its arguments, and `main(given)` does the work and returns an exit code, or None for
0. What a command needs is imported when it is called.
"""

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from lora.errors import UnfinishedError, UserError

if TYPE_CHECKING:
    from lora.config.run import PlannedRun
    from lora.records.record import RunRecord

COMMANDS = {
    "status": ("lora.sweep.status", "show which runs of a profile are done, running, failed or waiting; --watch: live"),
    "tune": ("lora.sweep.tune", "choose each method's learning rate, on a seed that no table reports"),
    "report": ("lora.report.command", "build tables, verdicts, figures and report.html from a profile's records"),
    "predict": ("lora.adapters.predict", "predict with trained adapters; write a GLUE submission"),
    "export": ("lora.adapters.export", "write an adapter as a folder that peft or transformers loads alone"),
    "analyse intervals": ("lora.report.analyses.dev_intervals", "would other dev examples show the same?"),
    "analyse rows": ("lora.report.analyses.own_rows", "of one's own task: baselines, costs, and where methods err"),
    "analyse subspaces": ("lora.report.analyses.subspaces", "Figures 3 and 4 and Table 7 from saved adapters"),
    "analyse swaps": ("lora.report.analyses.swaps", "is the base recovered exactly when adapters are swapped?"),
    "parameters": ("lora.cost.parameters", "count trainable parameters at full size; --memory: and what a run needs"),
    "efficiency": ("lora.cost.efficiency.command", "measure memory, storage, speed and latency of each method here"),
    "bench": ("lora.cost.bench.command", "compare speed with Trainer + PEFT on this machine"),
    "fetch": ("lora.data.fetch", "download and check the embedded encoder and texts, and encoders that are named"),
}
MOVED = {"memory": "parameters --memory"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns: The exit code: 0, 1 for an unfinished sweep, 2 for a mistake, 130 if interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given in (["--help"], ["-h"], ["help"]):
            print(first_screen())
            return 0
        name = next((" ".join(given[:n]) for n in (2, 1) if " ".join(given[:n]) in COMMANDS), "")  # the longest
        if given and given[0] in MOVED:
            raise UserError(f"{given[0]} is now python -m lora {' '.join([MOVED[given[0]], *given[1:]])}")
        if not name and given and given[0].isidentifier():
            near = difflib.get_close_matches(given[0], COMMANDS, 1)
            offered = [one for one in COMMANDS if one.startswith(f"{given[0]} ")] or near or COMMANDS
            raise UserError(f"{' '.join(given[:2])!r} is not a command; choose from {', '.join(offered)}")
        # importing takes seconds, in which Ctrl-C may come
        command = import_module(COMMANDS[name][0]) if name else sys.modules[__name__]
        about = command.__doc__ if name else "Train one run or, with -m, a sweep."
        parser = argparse.ArgumentParser(prog=f"python -m lora {name}".strip(), description=about)
        command.options(parser)
        parsed = parser.parse_intermixed_args(given[len(name.split()) :])
        if "overrides" in parsed and "profile" not in parsed:
            from lora.config.compose import with_profile

            parsed.overrides = with_profile(parsed.overrides)
        return (command.main(parsed) if name else run_settings(parsed)) or 0
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
    from lora.config.compose import describe_group
    from lora.data.tasks import TASKS

    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items())
    names = ("method", "model", "protocol", "profile", "experiment", "launcher")
    groups = "\n".join(f"  {name:<{width}}{', '.join(describe_group(name))}" for name in names)
    return f"""LoRA (Hu et al. 2021) compared with full fine-tuning and adapters on GLUE.

usage: python -m lora task=reviews method=lora seed=1 ...  train one run
       python -m lora -m profile=mini task=ratings ...     train a profile, or a part of it
       python -m lora -m experiment=null seed=1,2 ...      train a grid of your own
       python -m lora COMMAND --help                       arguments of a command

commands:
{commands}

settings (--cfg job shows all with their values):
  {"task":<{width}}{", ".join(TASKS)}, or a file of your own: task=my_task.yaml
{groups}"""


# Training.


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="settings, KEY=VALUE")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-m", "--multirun", action="store_true", help="train a sweep: KEY=A,B takes several values")
    parser.add_argument("--brief", action="store_true", help="with -m: do not print the next command")
    mode.add_argument("--cfg", choices=["job"], help="print all settings instead")


def run_settings(given: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 runs failed or are missing, 2 a mistake in the command, 130 interrupted."""
    from lora.training.processes import InterruptedRunError, world_size

    if given.cfg:
        from omegaconf import OmegaConf

        from lora.config.compose import compose_settings

        print(OmegaConf.to_yaml(compose_settings(given.overrides)[-1]))
        return 0
    try:
        return sweep(given.overrides, given.brief) if given.multirun else train_one(given.overrides)
    except InterruptedRunError as error:
        raise KeyboardInterrupt from error
    finally:
        if world_size() > 1:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group()  # otherwise torch warns of a leak


def sweep(arguments: Sequence[str], brief: bool) -> int:
    """Train the missing runs of a sweep and print its tables."""
    from lora.config.compose import chosen_option
    from lora.sweep.launch import launch_sweep

    runtime, unfinished = launch_sweep(arguments)
    from lora.report.command import print_sweep  # loads scipy, which the first run should not wait for

    print_sweep(chosen_option("profile", arguments), list(arguments), brief, runtime)
    if unfinished:
        raise UnfinishedError(unfinished)
    return 0


def train_one(arguments: Sequence[str]) -> int:
    """Train one run, unless it is done, and print its outcome."""
    from lora.config.auto import check_device
    from lora.config.compose import compose_family, read_overrides
    from lora.config.plan import ADHOC, OWN_TASK
    from lora.sweep.worker import ensure_record, usable_record
    from lora.training import processes

    overrides = read_overrides(arguments)
    grids = [override for override in overrides if override.startswith("experiment=")]
    if grids and grids[-1] != "experiment=null":
        raise UserError(f"{grids[-1]} is a grid of runs: python -m lora -m {' '.join(overrides)} trains them")
    processes.listen()
    processes.answer = b"\ninterrupted: the run stops at its next step; press Ctrl-C again to stop it at once\n"
    *parents, run = compose_family(overrides, measure="kept")
    before = usable_record(run.config)
    if before is None:
        check_device(run.config)
        for parent in parents:
            if (record := usable_record(parent.config)) is None or record.status != "ok":
                both = shlex.join([sys.executable, "-m", "lora", "-m", "experiment=null", *overrides])
                raise UserError(f"{run.run_id} starts from {parent.run_id}, which is not trained: {both} trains both")
    run = replace(run, experiments=(ADHOC if run.task.own is None else OWN_TASK,))
    record = ensure_record(run, mistakes_fail=False)
    if processes.rank() == 0:
        print(summary(run, record, was_done=record == before))
    return int(record.status == "failed")


def summary(run: "PlannedRun", record: "RunRecord", was_done: bool) -> str:
    """The outcome of a single run, and the paths of its files."""
    from lora.records.predictions import dev_predictions, is_constant
    from lora.records.record import adapter_path, has_adapter, record_path
    from lora.sweep.progress import as_percent, duration

    results, outputs = run.config.runtime.results, run.config.runtime.outputs
    began = f"already done: trained on {record.started_at[:10]}" if was_done else "trained"
    outcome = f"failed, {record.error} (runtime.retry_failed=true trains it again)"
    adapter = "-"
    if record.status == "ok":
        best, last = (as_percent(record.selected[rule]["value"]) for rule in ("best", "last"))
        epoch = record.selected["best"]["epoch"]
        adapter = "- (runtime.save_adapter=true saves it)"
        outcome = f"ok, {record.selected['metric']} best {best} (epoch {epoch}), last {last}"
        with suppress(UserError):  # without the file of predictions, nothing is known
            if is_constant(dev_predictions(record, Path(results))["best"], run.task):
                outcome += "; collapsed: it predicts the same for every row; try a lower train.lr first"
    if has_adapter(record, outputs):
        adapter = str(adapter_path(outputs, record.run_id).parent)
    path = record_path(results, record.run_id)
    lines = (f"{began} in {duration(record.seconds)}", f"record:  {path}", f"adapter: {adapter}")
    return "\n  ".join((f"{record.run_id}: {outcome}", *lines))
