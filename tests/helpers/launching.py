"""A sweep whose launcher trains nothing."""

from collections.abc import Sequence

from lora.sweep import launch
from lora.sweep.launch import launch_sweep


def launched(monkeypatch, overrides, *more: str, outcomes: Sequence[dict | BaseException] = ()) -> list[tuple]:
    """Start a sweep whose launcher trains nothing, and return what it received.

    Args:
        outcomes: What each launch returns; after the last, the sweep is interrupted.
    """
    received, answers = [], [*outcomes, KeyboardInterrupt()]

    def run_jobs(jobs, workers, gpus, interrupted):
        received.append((jobs, workers, gpus))
        answer = answers[len(received) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return {run_id: answer for job in jobs for run_id in job.run_ids} if isinstance(answer, str) else answer

    monkeypatch.setattr(launch.pool, "run_jobs", run_jobs)
    try:
        ended: str | None = launch_sweep([*overrides, "experiment=null", "method=bitfit", *more])[1]
    except KeyboardInterrupt:
        ended = None
    return [*received, ended]
