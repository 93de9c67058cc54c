"""Train from the settings of a run alone, for tasks of `TASKS`."""

from lora.config.run import PlannedRun, RunConfig
from lora.data.tasks import TASKS
from lora.records.record import RunRecord
from lora.sweep import worker
from lora.training import loop


def planned(config: RunConfig) -> PlannedRun:
    return PlannedRun(config, TASKS[config.task], ("adhoc",))


def run(config: RunConfig, *report):
    return loop.run(config, TASKS[config.task], *report)


def ensure_record(config: RunConfig, mistakes_fail: bool) -> RunRecord:
    return worker.ensure_record(planned(config), mistakes_fail)
