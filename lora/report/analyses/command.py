"""The runs of `python -m lora analyse ...`, with the folders of this machine."""

import dataclasses

from lora.config.compose import compose_config, values_given
from lora.config.run import RunConfig, run_config
from lora.records.record import RunRecord, adapter_path
from lora.report.gather import Gathered
from lora.sweep.request import read_own_tasks


def config_here(record: RunRecord, gathered: Gathered) -> RunConfig:
    """The configuration of a record, with the folders of this machine, which the command names if they are needed."""
    settings = dict(record.config)
    read_own_tasks(gathered.overrides)  # reads the rows of the tasks that the command names
    for section, key in (("model", "path"), ("data", "path"), ("data", "source")):
        if given := values_given(f"{section}.{key}", gathered.overrides):
            settings[section] = settings[section] | {key: given[-1]}
    return run_config(settings)


def saved_runs(gathered: Gathered) -> list[tuple[RunRecord, RunConfig]]:
    """The records whose adapter is in this machine's outputs, each with its configuration and that folder."""
    runtime = [override for override in gathered.overrides if override.startswith("runtime.")]
    outputs = compose_config([f"profile={gathered.profile}", *runtime]).runtime.outputs
    saved = []
    for run_id, record in sorted(gathered.state.ok.items()):
        if record.adapter is not None and adapter_path(outputs, run_id).exists():
            config = config_here(record, gathered)
            runtime_here = dataclasses.replace(config.runtime, outputs=outputs)
            saved.append((record, dataclasses.replace(config, runtime=runtime_here)))
    return saved
