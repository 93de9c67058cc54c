"""The runs that a report expects, by experiment."""

from collections.abc import Sequence

from lora.report.catalogue import ADHOC, EXPERIMENTS, OWN
from lora.sweep.expand import PlannedRun
from lora.sweep.grids import profiles_of
from lora.sweep.request import default_of, requested, selected


def experiments_shown(
    profile: str, overrides: Sequence[str], present: set[str], whole: bool = False
) -> dict[str, list[PlannedRun]]:
    """Experiment -> its runs: the requested ones, and those of other experiments that have records.

    An experiment that was not requested, or of which a profile's default takes a part, is shown whole if it expects an
    existing record that the request does not.

    Args:
        whole: See `requested`.
    """
    asked = requested(profile, overrides, whole)
    shown = {name: [c for c in asked if name in c.experiments] for name in EXPERIMENTS}
    known = {run.run_id for run in asked}
    if not any(override.startswith("experiment=") for override in overrides) and not shown[ADHOC]:
        parts = default_of(profile, overrides).get("experiment", ())
        for name in described(profile):
            if not shown[name] or name in parts:
                runs = selected(profile, name, overrides)
                if (present - known) & {run.run_id for run in runs}:
                    shown[name] = runs
    return {name: runs for name, runs in shown.items() if runs}


def without_parents(experiment: str, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs in the experiment's table: for `mnli_start`, all but the MNLI runs that others start from."""
    parents = {run.parent for run in runs} if experiment == "mnli_start" else set()
    return [run for run in runs if run.run_id not in parents]


def described(profile: str) -> list[str]:
    """The experiments that have a grid for this profile."""
    return [name for name in EXPERIMENTS if name not in (ADHOC, OWN) and profile in profiles_of(name)]
