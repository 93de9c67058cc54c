"""The runs of `python -m lora analyse ...`, with the folders of this machine."""

import dataclasses

from lora.config.compose import compose_config, values_given
from lora.config.run import RunConfig, run_config
from lora.records.record import RunRecord, adapter_path
from lora.report.gather import Gathered
from lora.sweep.request import read_own_tasks


def config_here(record: RunRecord, gathered: Gathered) -> RunConfig:
    """The configuration of a record, with the folders of this machine, which the command names if they are needed."""
    config, given = run_config(record.config), gathered.overrides
    read_own_tasks(given)  # reads the rows of the tasks that the command names
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
