"""Stop a run after a step, as a batch system does."""

import os
import signal

import pytest
from trained import run

from lora.records.record import checkpoint_path
from lora.training import processes
from lora.training.processes import InterruptedRunError

NEVER = "runtime.checkpoint_minutes=null"  # except on a request to stop


def stopping_at(step, signum=signal.SIGTERM):
    """A progress callback that sends this process a signal after a step, as a batch system does."""

    def report(progress):
        if progress.step == step:
            os.kill(os.getpid(), signum)

    return report


def checkpoint_of(config):
    return checkpoint_path(config.runtime.outputs, config.run_id)


def stop(config, step):
    with pytest.raises(InterruptedRunError, match="interrupted by SIGTERM"):
        run(config, stopping_at(step))
    processes.noted.clear()  # a new process starts without them
    assert checkpoint_of(config).exists()
