"""`python -m lora KEY=VALUE ...`: train one run or, with `-m`, a sweep over the runs of a profile."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora.config.compose import compose_config, register_resolvers, to_run_configs
from lora.config.kernel_choice import check_device
from lora.config.options import CONF, explain, read_overrides
from lora.config.run import RunConfig
from lora.errors import UnfinishedError, UserError, as_command
from lora.files import python_command
from lora.records.record import RunRecord, adapter_path, record_path
from lora.sweep.locks import HeldError
from lora.sweep.progress import counted, duration, shown
from lora.sweep.worker import ensure_record, has_adapter, usable_record
from lora.training.processes import check_processes, is_main_process, processes
from lora.training.signals import InterruptedRunError, listen


@dataclass(frozen=True)
class Ended:
    """A single run that has a record.

    Args:
        was_done: Whether the record existed before.
    """

    config: RunConfig
    record: RunRecord
    was_done: bool


def summary(end: Ended) -> str:
    """The outcome of a single run, and the paths of its files."""
    record, runtime = end.record, end.config.runtime
    when = f"{record.started_at[:16].replace('T', ' ')} UTC"
    if record.status == "failed":
        first = f"{record.run_id}: failed{f' on {when}' if end.was_done else ''}, {record.error}"
        lines = [f"{first} (runtime.retry_failed=true trains it again)"]
    else:
        best, last = (shown(record.selected[rule]["value"]) for rule in ("best", "last"))
        epoch = record.selected["best"]["epoch"]
        lines = [f"{record.run_id}: ok, {record.selected['metric']} best {best} (epoch {epoch}), last {last}"]
        times = record.provenance.get("resumed", 0)
        resumed = f", resumed {counted(times, 'time')}" if times else ""
        if end.was_done:
            lines.append(f"  already done: trained on {when} in {duration(record.seconds)}{resumed}")
        else:
            lines.append(f"  trained in {duration(record.seconds)}{resumed}")
    lines.append(f"  record:  {record_path(runtime.results, record.run_id)}")
    if record.status == "ok":
        folder = adapter_path(runtime.outputs, record.run_id).parent
        saved = has_adapter(record, runtime.outputs)
        lines.append(f"  adapter: {folder if saved else '- (runtime.save_adapter=true saves it)'}")
    return "\n".join(lines)


def say(line: str, stream: Any) -> None:
    """Print a line from the run's main process only."""
    if is_main_process():
        print(line, file=stream)


def refuse_experiment(overrides: Sequence[str]) -> None:
    """
    Raises: UserError: If a single run is given an experiment, which is a grid of runs.
    """
    named = [override for override in overrides if override.startswith("experiment=")]
    if named and named[-1] != "experiment=null":
        raise UserError(f"{named[-1]} is a grid of runs: python -m lora -m {' '.join(overrides)} trains them")


def refuse_without(parent: RunConfig, run: RunConfig, overrides: Sequence[str]) -> None:
    """
    Raises: UserError: If the MNLI run that a single run starts from is not trained.
    """
    record = usable_record(parent)
    if record is None or record.status != "ok":
        command = as_command([python_command(), "-m", "lora", "-m", "experiment=null", *overrides])
        raise UserError(f"{run.run_id} starts from {parent.run_id}, which is not trained: {command} trains both")


def leave_group() -> None:
    """Destroy the process group of a distributed run; otherwise torch warns of a leak."""
    if processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def single_run(config: DictConfig, overrides: Sequence[str]) -> Ended | Exception:
    """Train one run, unless it is done.

    Returns: The outcome, or the error that ended the run: Hydra would format a raised error in its own way.
    """
    try:
        refuse_experiment(overrides)
        *parents, run = to_run_configs(config, overrides)
        before = usable_record(run)
        if before is None:
            check_device(run)
            for parent in parents:
                refuse_without(parent, run, overrides)
        record = ensure_record(run, mistakes_fail=False)
        return Ended(run, record, was_done=record == before)
    except (UserError, HeldError, InterruptedRunError) as error:
        return error


def main(arguments: Sequence[str]) -> None:
    """Exit codes: 0 done, 1 runs failed or are missing, 2 a mistake in the command, 130 interrupted."""
    given = get_args_parser().parse_known_intermixed_args(list(arguments))[0]
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach the handlers below instead of Hydra's printer
    ended: list[Ended | Exception] = []

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def application(config: DictConfig) -> None:
        listen()
        ended.append(single_run(config, HydraConfig.get().overrides.task))

    try:
        check_processes()
    except UserError as error:  # every process prints it: without valid settings, the main process is unknown
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        overrides = read_overrides(given.overrides)
        options = list(arguments)
        for override in given.overrides:
            options.remove(override)
        sys.argv[1:] = [*options, *overrides]  # where Hydra reads them; it refuses options between two overrides
        if options:  # -m, --cfg and the like
            if given.cfg and not given.multirun:
                compose_config(overrides)  # Hydra would show a configuration without hparams
            application()
        else:  # composed here, since Hydra's main composes a single run twice, first to learn its mode
            listen()
            ended.append(single_run(compose_config(overrides), overrides))
        for end in ended:
            if isinstance(end, Exception):
                raise end
            say(summary(end), sys.stdout)
        sys.exit(any(end.record.status == "failed" for end in ended))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        say(f"error: {error if isinstance(error, UserError) else explain(error)}", sys.stderr)
        sys.exit(2)
    except ValueError as error:
        if not str(error).startswith("Only one of --run, --multirun"):  # Hydra's message for -m with --cfg
            raise
        say(f"error: {error}", sys.stderr)
        sys.exit(2)
    except HeldError as error:
        say(f"error: {error}; wait for it, or stop it first", sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, InterruptedRunError):
        say("interrupted: what is finished is kept; the same command resumes the rest", sys.stderr)
        sys.exit(130)
    except UnfinishedError as error:
        say(f"unfinished:\n{error}", sys.stderr)
        sys.exit(1)
    finally:
        leave_group()
