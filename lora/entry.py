"""`python -m lora KEY=VALUE ...`: train one run or, with `-m`, a sweep over the runs of a profile."""

import argparse
import sys
from collections.abc import Sequence

from lora.config.compose import compose_config, compose_family
from lora.config.kernel_choice import check_device
from lora.config.options import chosen_option, read_overrides
from lora.config.run import RunConfig
from lora.errors import UnfinishedError, UserError, as_command
from lora.records.record import RunRecord, adapter_path, record_path
from lora.sweep.progress import counted, duration, shown
from lora.sweep.worker import ensure_record, has_adapter, usable_record
from lora.training.processes import InterruptedRunError, check_processes, is_main_process, listen, world_size


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="settings, KEY=VALUE")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-m", "--multirun", action="store_true", help="train a sweep: KEY=A,B takes several values")
    mode.add_argument("--cfg", choices=["job"], help="print all settings instead")


def main(given: argparse.Namespace) -> int:
    """Exit codes: 0 done, 1 runs failed or are missing, 2 a mistake in the command, 130 interrupted."""
    try:
        check_processes()
    except UserError as error:  # every process prints it: without valid settings, the main process is unknown
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(compose_config(given.overrides)))
        return 0
    try:
        return sweep(given.overrides) if given.multirun else train_one(read_overrides(given.overrides))
    except InterruptedRunError as error:
        raise KeyboardInterrupt from error
    finally:
        leave_group()


def sweep(arguments: Sequence[str]) -> int:
    """Train the missing runs of a sweep and print its tables.

    Raises: UserError, UnfinishedError: As in `launch_sweep`.
    """
    from lora.sweep.launch import launch_sweep

    unfinished = None
    try:
        launch_sweep(arguments)
    except UnfinishedError as error:
        unfinished = error
    from lora.report.command import print_sweep  # loads scipy, which the first run should not wait for

    print_sweep(chosen_option("profile", arguments), list(arguments))
    if unfinished is not None:
        raise unfinished
    return 0


def train_one(overrides: Sequence[str]) -> int:
    """Train one run, unless it is done, and print its outcome.

    Raises: UserError: If the command does not ask for one valid run, or another worker trains it.
    """
    grids = [override for override in overrides if override.startswith("experiment=")]
    if grids and grids[-1] != "experiment=null":
        raise UserError(f"{grids[-1]} is a grid of runs: python -m lora -m {' '.join(overrides)} trains them")
    listen()
    *parents, run = compose_family(overrides)
    before = usable_record(run)
    if before is None:
        check_device(run)
        for parent in parents:
            refuse_without(parent, run, overrides)
    record = ensure_record(run, mistakes_fail=False)
    if is_main_process():
        print(summary(run, record, was_done=record == before))
    return int(record.status == "failed")


def refuse_without(parent: RunConfig, run: RunConfig, overrides: Sequence[str]) -> None:
    """
    Raises: UserError: If the MNLI run that a single run starts from is not trained.
    """
    record = usable_record(parent)
    if record is None or record.status != "ok":
        command = as_command([sys.executable, "-m", "lora", "-m", "experiment=null", *overrides])
        raise UserError(f"{run.run_id} starts from {parent.run_id}, which is not trained: {command} trains both")


def summary(config: RunConfig, record: RunRecord, was_done: bool) -> str:
    """The outcome of a single run, and the paths of its files."""
    runtime = config.runtime
    when = f"{record.started_at[:16].replace('T', ' ')} UTC"
    if record.status == "failed":
        first = f"{record.run_id}: failed{f' on {when}' if was_done else ''}, {record.error}"
        lines = [f"{first} (runtime.retry_failed=true trains it again)"]
    else:
        best, last = (shown(record.selected[rule]["value"]) for rule in ("best", "last"))
        epoch = record.selected["best"]["epoch"]
        times = record.provenance.get("resumed", 0)
        resumed = f", resumed {counted(times, 'time')}" if times else ""
        began = f"already done: trained on {when}" if was_done else "trained"
        lines = [
            f"{record.run_id}: ok, {record.selected['metric']} best {best} (epoch {epoch}), last {last}",
            f"  {began} in {duration(record.seconds)}{resumed}",
        ]
    lines.append(f"  record:  {record_path(runtime.results, record.run_id)}")
    if record.status == "ok":
        folder = adapter_path(runtime.outputs, record.run_id).parent
        saved = has_adapter(record, runtime.outputs)
        lines.append(f"  adapter: {folder if saved else '- (runtime.save_adapter=true saves it)'}")
    return "\n".join(lines)


def leave_group() -> None:
    """Destroy the process group of a distributed run; otherwise torch warns of a leak."""
    if world_size() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
