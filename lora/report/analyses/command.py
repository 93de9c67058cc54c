"""Arguments and target of `python -m lora analyse ...`. Without --reference, no analysis writes a committed file."""

import argparse
import dataclasses

from lora.config.compose import compose_config
from lora.config.options import values_given
from lora.config.own_task import own_tasks
from lora.config.run import RunConfig, run_config
from lora.errors import UserError
from lora.files import REFERENCE
from lora.records.record import RunRecord, adapter_path
from lora.report.gather import Gathered
from lora.report.gather import options as profile_options


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


def config_here(record: RunRecord, gathered: Gathered) -> RunConfig:
    """The configuration of a record, with the folders of this machine, which the command names if they are needed."""
    config, given = run_config(record.config), gathered.overrides
    own_tasks(given)  # reads the rows of the tasks that the command names
    model, data = values_given("model.path", given), values_given("data.path", given)
    source = values_given("data.source", given) if data else []
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=model[-1] if model else config.model.path),
        data=dataclasses.replace(
            config.data,
            path=data[-1] if data else config.data.path,
            source=source[-1] if source else config.data.source,
        ),
    )


def saved_runs(gathered: Gathered) -> list[tuple[RunRecord, RunConfig]]:
    """The records whose adapter is in this machine's outputs, each with its configuration and that folder."""
    runtime = [override for override in gathered.overrides if override.startswith("runtime.")]
    outputs = compose_config([f"profile={gathered.profile}", *runtime]).runtime.outputs
    saved = []
    for run_id, record in sorted(gathered.state.ok.items()):
        if record.adapter is not None and adapter_path(outputs, run_id).exists():
            config = config_here(record, gathered)
            saved.append(
                (record, dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, outputs=outputs)))
            )
    return saved
