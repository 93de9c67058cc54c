"""A copy of every run for Weights & Biases, made by a helper process of the worker. The project never reads it back.

The worker writes lines into a pipe and drops them if the pipe is full, so neither W&B nor the network can slow or stop
a run. A line is sent whole or not at all. `python -m lora upload PROFILE` sends the tables and figures of a sweep.
"""

import argparse
import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora.config.compose import compose_config
from lora.config.run import RunConfig
from lora.records.record import RunRecord

ASK_SECONDS = 60.0  # time to load W&B from a cold disk
LAST_SECONDS = 30.0  # how long an ending worker waits for its helper: a batch system kills both when the worker ends

senders: dict[tuple[str, str], "Sender"] = {}  # this process's helpers, by mode and folder


class Sender:
    """The helper process of this worker (`lora.sweep.wandb_writer`), and the pipe to it."""

    def __init__(self, mode: str, outputs: str):
        Path(outputs).mkdir(parents=True, exist_ok=True)
        with open(Path(outputs) / "wandb.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lora.sweep.wandb_writer", mode, outputs],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach only the worker; the helper ends with its pipe
            )
        os.set_blocking(self.process.stdin.fileno(), False)
        self.begun = b""  # the rest of a partially written line
        atexit.register(self.close)

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the pipe is full or broken: the copy lacks a line
            self._write()
            if not self.begun:
                line = f"{json.dumps(message)}\n".encode()
                self.begun = line[os.write(self.process.stdin.fileno(), line) :]

    def _write(self) -> None:
        """Write as much of the last line's rest as fits: a line longer than PIPE_BUF may be written partially.

        Source: pipe(7), O_NONBLOCK.
        """
        if self.begun:
            self.begun = self.begun[os.write(self.process.stdin.fileno(), self.begun) :]

    def close(self) -> None:
        if self.process.stdin.closed:
            return
        until = time.monotonic() + LAST_SECONDS
        with contextlib.suppress(OSError):
            while self.begun and select.select([], [self.process.stdin], [], max(0.0, until - time.monotonic()))[1]:
                self._write()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.stdin.close()
            self.process.wait(max(0.0, until - time.monotonic()))


class Tracked:
    """One run's messages: its configuration, each epoch once, and its selected results."""

    def __init__(self, sender: Sender | None, config: RunConfig):
        self.sender, self.sent = sender, 0
        self._send({"begin": config.run_id, "group": config.runtime.group, "config": config.for_record()})

    def epochs(self, epochs: Sequence[dict[str, Any]]) -> None:
        """Send new epochs. A resumed run sends the earlier ones again, so that each of its copies is complete."""
        for entry in epochs[self.sent :]:
            self._send({"epoch": entry})
        self.sent = len(epochs)

    def end(self, record: RunRecord | None) -> None:
        """Send the remaining epochs and the outcome.

        Args:
            record: None if the run was interrupted.
        """
        if record is None:
            self._send({"end": "interrupted"})
            return
        self.epochs(record.epochs)
        parts = {"params": record.params, "selected": record.selected, "cost": record.cost}
        self._send({"end": record.status, "error": record.error, "seconds": record.seconds, **parts})

    def _send(self, message: dict[str, Any]) -> None:
        if self.sender is not None:
            self.sender.send(message)


def track(config: RunConfig) -> Tracked:
    """Begin the copy of a run, unless runtime.tracking is off or no process can be started."""
    key = (config.runtime.tracking, config.runtime.outputs)
    sender = None
    if config.runtime.tracking != "off":
        with contextlib.suppress(OSError):
            sender = senders.get(key)
            if sender is None or sender.process.poll() is not None:
                sender = senders[key] = Sender(*key)
    return Tracked(sender, config)


def destination(tracking: str, outputs: str) -> str | None:
    """The destination of the runs' copies, in words. None if there are no copies.

    The answer comes from the program that sends them, in a subprocess, so this process does not load W&B.

    Args:
        tracking, outputs: As in `RuntimeConfig`.
    """
    if tracking == "off":
        return None
    folder = f"the folder {Path(outputs) / 'wandb'}, sent nowhere"
    if tracking == "offline":
        return folder
    command = [sys.executable, "-m", "lora.sweep.wandb_writer", "--destination", tracking]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_SECONDS)
        online = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return f"W&B's server if it has a key, else {folder} (W&B did not say)"
    if online is None:
        return f"{folder} (W&B has no key)"
    project = (
        f"{online['entity']}/{online['project']}" if online["entity"] else f"{online['project']} of the key's owner"
    )
    return f"{online['url']}, project {project}"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile")
    parser.add_argument("overrides", nargs="*", help="the overrides that the sweep was launched with")


def main(arguments: argparse.Namespace) -> None:
    """Say where a sweep's tables and figures go, then send them as one artifact.

    Exit codes: 0, or 2 for a mistake in the command.
    """
    own = [override for override in arguments.overrides if override.startswith("runtime.")]
    runtime = compose_config([f"profile={arguments.profile}", *own]).runtime
    place = destination(runtime.tracking, runtime.outputs)
    if place is None:
        return
    files = [str(path) for name in ("tables", "figures") for path in sorted(Path(runtime.results, name).glob("*"))]
    what = f"tables and figures of {arguments.profile} ({len(files)} in all)"
    print(f"copies: {what} for W&B, to {place} (none with runtime.tracking=off)", flush=True)
    sender = Sender(runtime.tracking, runtime.outputs)
    sender.send({"artifact": arguments.profile, "root": runtime.results, "files": files})
    sender.close()
