"""The user's file of learning rates chosen by `python -m lora tune`. They replace those of conf/hparams.

The file is `results/<profile>/rates.yaml` (the setting `rates`), which git ignores. conf/ is never changed.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lora.checks import Problems, SettingsError, build
from lora.config.compose import describe_group, values_given
from lora.errors import UserError, first_line
from lora.files import REFERENCE, RESULTS, file_state, write_atomically

FILE = "rates.yaml"
TUNING = "tune"  # group of the tuning runs (runtime.group), which no table of results includes
HEAD = """# Learning rates chosen by `python -m lora tune`. Runs of this profile take them instead of those in
# conf/hparams, unless rates=null or train.lr=VALUE is given. To go back for good, remove an entry or the file.
# `tried`: rate -> mean over `seeds` of the best epoch's score on the dev split.
"""


@dataclass(frozen=True)
class Rate:
    """The learning rate of one method on one task.

    Args:
        model: The encoder, as run ids name it.
        method: An option of conf/method.
        seeds: Seeds of the tuning runs.
        tried: Rate -> mean over seeds of the best epoch's headline metric on the dev set, a fraction; None if training
            diverged or collapsed.
    """

    model: str
    protocol: str
    task: str
    method: str
    lr: float
    seeds: tuple[int, ...]
    tried: dict[float, float | None]

    def __post_init__(self):
        problems, methods = Problems(), describe_group("method")
        problems.check(0 < self.lr < math.inf, "lr", "> 0 and finite", self.lr)
        problems.check(self.method in methods, "method", f"one of {', '.join(methods)}", self.method)
        problems.done()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.model, self.protocol, self.task, self.method


def rates_setting(overrides: Sequence[str], results: str) -> Any:
    """The setting `rates` in overrides, with the default of conf/config.yaml."""
    return (values_given("rates", overrides) or [f"{results}/{FILE}"])[-1]


def rates_path(setting: Any) -> Path | None:
    """The file that the setting `rates` names. None for null and in results/reference, where no rates apply.

    Raises: UserError: If it is neither null nor a path.
    """
    if setting is None:
        return None
    if not isinstance(setting, str):
        raise UserError(f"rates must be null or the path of a file, got {setting!r}")
    path = Path(setting).expanduser()
    return None if (RESULTS / REFERENCE).resolve() in path.resolve().parents else path


def tuned_rates(setting: Any, model: str, protocol: str, method: str) -> dict[str, float]:
    """Task -> the tuned rate of a method (an option of conf/method) on an encoder, by the file of the setting `rates`.

    Raises: UserError: If the file is invalid. It need not exist.
    """
    rates = read_rates(rates_path(setting))
    return {one.task: one.lr for one in rates if (one.model, one.protocol, one.method) == (model, protocol, method)}


def read_rates(path: Path | None) -> tuple[Rate, ...]:
    """The rates in a file; () without a file.

    Raises: UserError: If it cannot be read or is not a file of rates. All problems are listed.
    """
    try:
        return _read(path, file_state(path)) if path is not None else ()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except SettingsError as error:
        problems = "; ".join(error.problems)
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        problems = first_line(error)
    raise UserError(f"{path} is not a file of rates: {problems}; mend or remove it, or ignore it with rates=null")


@functools.lru_cache(maxsize=16)
def _read(path: Path, state: tuple[int, ...]) -> tuple[Rate, ...]:
    del state  # part of the cache's key, so that a changed file is read again
    rates = [build(Rate, entry) for entry in yaml.safe_load(path.read_text())["rates"]]
    return tuple({rate.key: rate for rate in rates}.values())


def write_rates(path: Path, new: Iterable[Rate]) -> None:
    """Add rates to a file. Each replaces an earlier one of the same encoder, protocol, task and method.

    Raises: UserError: If the existing file is invalid, or cannot be written.
    """
    kept = {one.key: one for one in (*read_rates(path), *new)}
    entries = [asdict(kept[key]) | {"seeds": list(kept[key].seeds)} for key in sorted(kept)]
    text = yaml.safe_dump({"rates": entries}, sort_keys=False, default_flow_style=None, width=120)
    write_atomically(path, (HEAD + text).encode())
