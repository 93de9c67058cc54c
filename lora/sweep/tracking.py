"""A copy of every run for Weights & Biases, which sends it from a process of its own, and at the end of a sweep one of
its tables and figures. The project never reads them back.

W&B can neither fail a run nor hold it up for longer than the two bounds below.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from lora.config.run import RunConfig, RuntimeConfig
from lora.errors import first_line
from lora.records.record import RunRecord

PROJECT = "lora-glue"  # unless W&B's own variable WANDB_PROJECT is set
LOGGED_STEPS = 10
INIT_SECONDS = 15.0  # how long a run waits for the server at its start; then its copy stays offline
FINISH_SECONDS = 30.0  # and at its end; what was not sent by then is on disk for `wandb sync`


@contextmanager
def harmless() -> Iterator[None]:
    """Report whatever W&B raises in the block instead of failing the run."""
    try:
        yield
    except Exception as error:
        print(f"no copy for W&B: {type(error).__name__}: {first_line(error)}", file=sys.stderr)


class Tracked:
    """The W&B copy of one run: its configuration, its training every `LOGGED_STEPS`, each epoch once, and its selected
    results. Scores are in the units of the tables, percent."""

    def __init__(self, config: RunConfig):
        self.copy, self.sent = None, 0
        with harmless():
            about = {"id": config.run_id, "name": config.run_id, "config": config.for_record()}
            self.copy = begin(config.runtime, config.runtime.group, **about)

    def __call__(self, run: Any) -> None:
        """Send the epochs of a progress or a record that this copy lacks: of a resumed run, the earlier ones too."""
        with harmless():
            for entry in run.epochs[self.sent :] if self.copy is not None else ():
                shown = {key: entry[key] for key in ("epoch", "train_loss")}
                for split, metrics in entry["metrics"].items():
                    shown |= {f"{split}/{key}": percent(value) for key, value in metrics.items()}
                self.copy.log(shown, step=entry["step"])
            if self.copy is not None and getattr(run, "losses", ()) and run.step % LOGGED_STEPS == 0:
                loss, seconds = (run.losses[-LOGGED_STEPS:], run.seconds[-LOGGED_STEPS:])
                shown = {"train/loss": float(sum(loss)) / len(loss), "train/rate": run.rate}
                self.copy.log(shown | {"train/step_ms": 1000 * sum(seconds) / len(seconds)}, step=run.step)
        self.sent = len(run.epochs)

    def end(self, record: RunRecord | None) -> None:
        """Send the remaining epochs and the outcome; no record if the run was interrupted."""
        if self.copy is None:
            return
        status = "interrupted" if record is None else record.status
        with harmless():
            if record is not None:
                self(record)
                outcome: dict[str, Any] = {f"cost/{key}": value for key, value in (record.cost or {}).items()}
                if selected := record.selected:
                    outcome |= {rule: percent(selected[rule]["value"]) for rule in ("best", "last")}
                    outcome["best_epoch"] = selected["best"]["epoch"]
                outcome |= {"seconds": record.seconds, "params": record.params, "error": record.error}
                self.copy.summary.update({key: value for key, value in outcome.items() if value is not None})
            self.copy.summary["status"] = status
            self.copy.finish(exit_code=int(status != "ok"))


def percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def log_tables(
    runtime: RuntimeConfig, group: str, name: str, tables: Mapping[str, Any], pictures: Mapping[str, bytes]
) -> None:
    """Log tables (frames of texts) and PNG pictures in one W&B run."""
    with harmless():
        import wandb
        from PIL import Image

        copy = begin(runtime, group, name=name)
        logged: dict[str, Any] = {f"tables/{key}": wandb.Table(dataframe=table) for key, table in tables.items()}
        copy.log(logged | {f"figures/{key}": wandb.Image(Image.open(BytesIO(png))) for key, png in pictures.items()})
        copy.finish()


def begin(runtime: RuntimeConfig, group: str | None, **about: Any) -> Any:
    """Begin a W&B run, offline if there is no key or the server does not answer. Its files are in outputs/wandb."""
    import wandb  # seconds, and only where there are copies

    os.environ.setdefault("HOME", os.path.expanduser("~"))  # without one, its process writes its log to the terminal
    Path(runtime.outputs).mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
    given = about | {"group": group, "dir": runtime.outputs, "settings": settings}
    given |= {"project": os.environ.get("WANDB_PROJECT", PROJECT)}
    wandb.setup(wandb.Settings(silent=True))
    if runtime.tracking == "auto" and wandb.login(prompt=False, verify=False):
        try:
            return wandb.init(mode="online", resume="allow", **given)
        except (wandb.Error, OSError) as error:
            print(f"W&B does not answer ({first_line(error)}): its copy stays offline", file=sys.stderr)
    return wandb.init(mode="offline", **given)
