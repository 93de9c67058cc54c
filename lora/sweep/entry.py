"""`python -m lora KEY=VALUE ...`: one run, or with `-m` a sweep over the runs of a profile."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lora.config.compose import CONF, check_overrides, compose_run, explain, register_resolvers
from lora.errors import UserError
from lora.records.record import RunRecord
from lora.sweep.launch import UnfinishedError
from lora.sweep.locks import HeldError
from lora.sweep.progress import shown
from lora.sweep.worker import run_cell, run_job, usable_record
from lora.training.processes import check_processes, is_main_process, processes
from lora.training.signals import InterruptedRunError, listen


def outcome(record: RunRecord) -> str:
    if record.status == "failed":
        return f"{record.error} (runtime.retry_failed=true trains it again)"
    best, last = (shown(record.selected[rule]["value"]) for rule in ("best", "last"))
    return f"{record.selected['metric']} best {best}, last {last}"


def say(line: str, stream: TextIO) -> None:
    """Once for all processes of a cell."""
    if is_main_process():
        print(line, file=stream)


def refuse_experiment(overrides: Sequence[str]) -> None:
    """
    Raises: UserError: If a single run is given an experiment, which is a grid of them.
    """
    named = [override for override in overrides if override.startswith("experiment=")]
    if named and named[-1] != "experiment=null":
        raise UserError(f"{named[-1]} is a grid of runs: python -m lora -m {' '.join(overrides)} trains them")


def leave_group() -> None:
    """Tell the other processes of a cell that this one ends; without it, torch warns of a leak."""
    if processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def main(arguments: Sequence[str]) -> None:
    """Exit codes: 0 done, 1 cells failed or are missing, 2 a mistake in what was asked for, 130 interrupted."""
    sys.argv[1:] = arguments  # Hydra reads them there
    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach the handlers below instead of Hydra's printer
    ended: list[RunRecord | Exception] = []  # of a single cell; Hydra would print its error in its own way

    @hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
    def cell(config: DictConfig) -> dict[str, str] | None:
        del config  # composed once more from its overrides, with the run that it starts from
        register_resolvers()  # a worker of another machine has not gone through `main`
        job = HydraConfig.get()
        os.chdir(job.runtime.cwd)  # folders are relative to where the sweep was launched
        listen()
        if job.mode != RunMode.RUN:
            return run_job(list(job.overrides.task))
        try:
            refuse_experiment(job.overrides.task)
            run = compose_run(job.overrides.task)
            before = usable_record(run)
            ended.append(run_cell(run, mistakes_fail=False))
            if ended[-1] == before:
                say(f"already done on {before.started_at[:10]}, in {run.runtime.results}: nothing to train", sys.stdout)
        except (UserError, HeldError, InterruptedRunError) as error:
            ended.append(error)
        return None

    try:
        check_processes()
    except UserError as error:  # whichever process this is: none is known to be the one that speaks
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        check_overrides(get_args_parser().parse_known_args(list(arguments))[0].overrides)
        cell()
        for end in ended:
            if isinstance(end, Exception):
                raise end
            say(f"{end.run_id}: {end.status}, {outcome(end)}", sys.stdout)
        sys.exit(any(end.status == "failed" for end in ended))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        say(f"error: {error if isinstance(error, UserError) else explain(error)}", sys.stderr)
        sys.exit(2)
    except ValueError as error:
        if not str(error).startswith("Only one of --run, --multirun"):  # what Hydra says of -m with --cfg
            raise
        say(f"error: {error}", sys.stderr)
        sys.exit(2)
    except HeldError as error:
        say(f"error: {error}; wait for it, or stop it first", sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, InterruptedRunError):
        say("interrupted: what is finished is kept, and the same command goes on from there", sys.stderr)
        sys.exit(130)
    except UnfinishedError as error:
        say(f"unfinished:\n{error}", sys.stderr)
        sys.exit(1)
    finally:
        leave_group()
