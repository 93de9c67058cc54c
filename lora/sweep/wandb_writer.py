"""A worker's helper process, which writes the messages of `lora.sweep.tracking` as W&B runs, one per run.

It ends when its input ends, even if the worker was killed, and never prints to the worker's terminal.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import wandb

PROJECT = "lora-glue"  # unless W&B's own variable WANDB_PROJECT is set


def write(mode: str, folder: str, messages: Iterable[dict[str, Any]]) -> None:
    """
    Args:
        mode: `auto` (online if W&B has a key, else offline) or `offline`.
        folder: The folder whose `wandb/` holds the runs' files.
    """
    run = None
    for message in messages:
        if "begin" in message:
            finish(run, "interrupted")
            run = begin(mode, folder, message["begin"], message["group"], message["config"])
        elif "epoch" in message and run is not None:
            entry = message["epoch"]
            values = {
                f"{split}/{name}": value
                for split, metrics in entry["metrics"].items()
                for name, value in metrics.items()
            }
            run.log({"epoch": entry["epoch"], "train_loss": entry["train_loss"], **values}, step=entry["step"])
        elif "end" in message and run is not None:
            selected, cost = message.get("selected") or {}, message.get("cost") or {}
            chosen = {rule: selected[rule]["value"] for rule in ("best", "last") if rule in selected}
            best = {"best_epoch": selected["best"]["epoch"]} if "best" in selected else {}
            run.summary.update(chosen | best | {f"cost/{key}": value for key, value in cost.items()})
            run.summary.update({key: message[key] for key in ("seconds", "params", "error") if message.get(key)})
            finish(run, message["end"])
            run = None
        elif "artifact" in message:
            tables = begin(mode, folder, None, "tables", {"profile": message["artifact"]})
            artifact = wandb.Artifact(f"results-{message['artifact'].replace('/', '-')}", type="results")
            for path in message["files"]:
                artifact.add_file(path, name=str(Path(path).relative_to(message["root"])))
            tables.log_artifact(artifact)
            finish(tables, "ok")
    finish(run, "interrupted")


def parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The messages. Log and skip invalid lines: a killed worker may leave its last line incomplete."""
    for line in lines:
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("not an object")
        except ValueError as error:
            print(f"a line of {len(line)} characters is skipped: {error}", file=sys.stderr, flush=True)
            continue
        yield message


def begin(mode: str, folder: str, run_id: str | None, group: str | None, config: dict[str, Any]) -> wandb.Run:
    """Begin a run, offline if online fails. A missing network is noticed in this process, not in the worker."""
    settings = wandb.Settings(console="off", silent=True, init_timeout=30)
    arguments = {"project": project(), "dir": folder, "id": run_id, "name": run_id}
    arguments |= {"group": group, "config": config, "settings": settings}
    if is_online(mode):
        try:
            return wandb.init(mode="online", resume="allow", **arguments)
        except (wandb.Error, OSError):
            traceback.print_exc()
    return wandb.init(mode="offline", **arguments)


def is_online(mode: str) -> bool:
    return mode == "auto" and bool(wandb.api.api_key)


def project() -> str:
    return os.environ.get("WANDB_PROJECT", PROJECT)


def destination(mode: str) -> dict[str, str | None] | None:
    """Where `begin` sends runs: `url`, `entity` (None: the key's owner) and `project`. None if they stay offline."""
    if not is_online(mode):
        return None
    settings = wandb.setup().settings
    return {"url": settings.base_url, "entity": settings.entity, "project": project()}


def finish(run: wandb.Run | None, status: str) -> None:
    if run is not None:
        run.summary["status"] = status
        run.finish(exit_code=int(status != "ok"))


def main() -> None:
    if sys.argv[1] == "--destination":
        print(json.dumps(destination(sys.argv[2])))
        return
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # meant for the worker; this process ends with its input
    write(sys.argv[1], sys.argv[2], parsed(sys.stdin))


if __name__ == "__main__":
    main()
