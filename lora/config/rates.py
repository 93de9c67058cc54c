"""The user's file of learning rates chosen by `python -m lora tune`. They replace those of conf/hparams.

The file is `results/<profile>/rates.yaml` (the setting `rates`), which git ignores. conf/ is never changed.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lora.checks import Problems, SettingsError, build
from lora.config.options import CONF, describe_group, parsed_override
from lora.config.precision_choice import one_at_a_time
from lora.config.run import PROTOCOLS, RunConfig
from lora.errors import UserError, first_line
from lora.files import REFERENCE, RESULTS, file_state, hash_file, write_atomically

FILE = "rates.yaml"
TUNING = "tune"  # group of the tuning runs (runtime.group), which no table of results includes
WAY_OUT = "mend or remove it, or ignore it with rates=null"
HEAD = """# Learning rates chosen by `python -m lora tune`. Runs of this profile take them instead of those in
# conf/hparams, unless rates=null or train.lr=VALUE is given. To go back for good, remove an entry or the file.
"""


@dataclass(frozen=True)
class Rate:
    """The learning rate of one method on one task.

    Args:
        model: The encoder, as run ids name it.
        method: An option of conf/method.
        lr: The chosen rate, one of `tried`.
        values: Size of the grid before any extension, the same for every method of a task.
        seeds: Seeds of the tuning runs.
        date: Date of the choice, YYYY-MM-DD, UTC.
        settings: Other settings given to the tuning runs.
        tried: Rate -> mean over seeds of the best epoch's headline metric on the dev set, a fraction; None if training
            diverged.
    """

    model: str
    protocol: str
    method: str
    task: str
    lr: float
    values: int
    seeds: tuple[int, ...]
    date: str
    settings: tuple[str, ...]
    tried: dict[float, float | None]

    def __post_init__(self):
        problems, methods = Problems(), describe_group("method")
        problems.check(0 < self.lr < math.inf, "lr", "> 0 and finite", self.lr)
        problems.check(self.protocol in PROTOCOLS, "protocol", f"one of {', '.join(PROTOCOLS)}", self.protocol)
        problems.check(self.method in methods, "method", f"one of {', '.join(methods)}", self.method)
        problems.done()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.model, self.protocol, self.task, self.method


def rates_setting(overrides: Sequence[str], results: str) -> Any:
    """The setting `rates` in overrides, with the default of conf/config.yaml."""
    given = [override for override in overrides if override.startswith("rates=")]
    return parsed_override(given[-1]).value() if given else f"{results}/{FILE}"


def rates_path(setting: Any) -> Path | None:
    """The file that the setting `rates` names. None for null, a mapping, and results/reference, where no rates apply.

    Raises: UserError: If it is neither null, a path, nor a mapping of tasks to rates.
    """
    if setting is None or isinstance(setting, Mapping):
        return None
    if not isinstance(setting, str):
        raise UserError(f"rates must be null, the path of a file, or {{task: rate}}, got {setting!r}")
    path = Path(setting).expanduser()
    return None if (RESULTS / REFERENCE).resolve() in path.resolve().parents else path


def with_rate(sections: dict[str, Any], rates: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The sections with the tuned learning rate, unless there is none or the overrides state a rate.

    Args:
        rates: The setting `rates`.
    """
    if states_rate(overrides) or not isinstance(sections["train"], Mapping):
        return sections
    method = chosen_option("method", overrides)
    tuned = tuned_rates(rates, sections["model"]["name"], sections["protocol"], method).get(sections["task"])
    return sections if tuned is None else sections | {"train": {**sections["train"], "lr": tuned}}


def states_rate(overrides: Sequence[str]) -> bool:
    """Whether overrides set a learning rate, directly or in a row of conf/hparams."""
    keys = (override.split("=", 1)[0] for override in overrides)
    return any(key == "train.lr" or (key.startswith("hparams.") and key.endswith(".lr")) for key in keys)


def chosen_option(group: str, overrides: Sequence[str]) -> str:
    """The option that overrides choose in a group of conf/, else the default in conf/config.yaml."""
    given = [override.split("=", 1)[1] for override in overrides if override.startswith(f"{group}=")]
    return given[-1] if given else _default_options()[group]


@functools.cache
def _default_options() -> dict[str, str]:
    defaults = yaml.safe_load((CONF / "config.yaml").read_bytes())["defaults"]
    return {key: value for entry in defaults if isinstance(entry, dict) for key, value in entry.items()}


def tuned_rates(setting: Any, model: str, protocol: str, method: str) -> dict[str, float]:
    """Task -> the tuned rate of a method on an encoder.

    Args:
        setting: The setting `rates`: null, the path of a file that need not exist, or this mapping itself, with which
            a sweep keeps its runs as planned.
        method: The option of conf/method.
    Raises: UserError: If the file or mapping is invalid.
    """
    if isinstance(setting, Mapping):
        bad = {task: rate for task, rate in setting.items() if not _is_rate(rate)}
        if bad:
            raise UserError(f"rates must be numbers > 0, got {', '.join(f'{k}: {v!r}' for k, v in bad.items())}")
        return {str(task): float(rate) for task, rate in setting.items()}
    found = read_rates(rates_path(setting))
    return {one.task: one.lr for one in found if (one.model, one.protocol, one.method) == (model, protocol, method)}


def pinned_rates(setting: Any, overrides: Sequence[str], config: RunConfig) -> str:
    """The override that fixes the rates of a planned run and of its MNLI run, even if the file changes.

    Args:
        setting: The setting `rates` with which these overrides were composed.
    """
    tuned = {}
    if not states_rate(overrides):
        tuned = tuned_rates(setting, config.model.name, config.protocol, chosen_option("method", overrides))
    tasks = (config.task, *(("mnli",) if config.start == "mnli" else ()))
    kept = ",".join(f"{task}:{tuned[task]!r}" for task in tasks if task in tuned)
    return f"rates={{{kept}}}" if kept else "rates=null"


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def rates_state(setting: Any) -> str | None:
    """A key of the tuned rates: the hash of their file, or None without rates.

    Raises: UserError: If the file is invalid, so that this is reported once and not for each run.
    """
    path = rates_path(setting)
    return hash_file(path) if read_rates(path) else None


def read_rates(path: Path | None) -> tuple[Rate, ...]:
    """The rates in a file; () without a file.

    Raises: UserError: If it cannot be read, is not a file of rates, names an unknown method, or has a rate that is not
        > 0. All problems are listed.
    """
    try:
        return _read(path, file_state(path)) if path is not None else ()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {WAY_OUT}") from error


def tuned_seeds(setting: Any) -> set[int]:
    """The seeds on which the rates of a file were chosen, which no table of results has.

    Args:
        setting: The setting `rates`.
    Raises: UserError: If the file is invalid.
    """
    return {seed for rate in read_rates(rates_path(setting)) for seed in rate.seeds}


@functools.lru_cache(maxsize=16)
def _read(path: Path, state: tuple[int, ...]) -> tuple[Rate, ...]:
    del state  # part of the cache's key, so that a changed file is read again
    try:
        content = yaml.safe_load(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a file of rates: {first_line(error)}; {WAY_OUT}") from error
    if not isinstance(content, dict) or set(content) != {"rates"} or not isinstance(content["rates"], list):
        raise UserError(f"{path} is not a file of rates: expected a list under the one key `rates`; {WAY_OUT}")
    found, problems = {}, []
    for number, entry in enumerate(content["rates"], 1):
        try:
            rate = build(Rate, entry if isinstance(entry, dict) else {"entry": entry})
            if rate.key in found:
                raise SettingsError([f"{rate.method} on {rate.task} has an entry before"])
            found[rate.key] = rate
        except SettingsError as error:
            problems += [f"entry {number}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(f"{path} is not a valid file of rates: {'; '.join(problems)}; {WAY_OUT}")
    return tuple(found.values())


def write_rates(path: Path, new: Iterable[Rate]) -> None:
    """Add rates to a file. Each replaces an earlier one of the same encoder, protocol, task and method.

    Raises: UserError: If the existing file is invalid, or cannot be written.
    """
    with one_at_a_time(path.parent):
        kept = {one.key: one for one in (*read_rates(path), *new)}
        entries = [_plain(kept[key]) for key in sorted(kept)]
        text = yaml.safe_dump({"rates": entries}, sort_keys=False, default_flow_style=None, width=120)
        write_atomically(path, (HEAD + text).encode())


def _plain(rate: Rate) -> dict[str, Any]:
    return asdict(rate) | {"seeds": list(rate.seeds), "settings": list(rate.settings)}


def said(setting: Any, runs: Iterable[tuple[str, str, str, Sequence[str]]]) -> str | None:
    """The origin of runs' tuned learning rates, in words for the user; None if none is tuned.

    Args:
        runs: The encoder, protocol, task and overrides of each.
    """
    path = rates_path(setting)
    found = {one.key: one for one in read_rates(path)}
    keys = ((*first, chosen_option("method", overrides)) for *first, overrides in runs if not states_rate(overrides))
    rates = [found[key] for key in dict.fromkeys(keys) if key in found]
    if not rates:
        return None
    seeds = sorted({seed for rate in rates for seed in rate.seeds})
    dates = sorted({rate.date for rate in rates})
    by_task: dict[str, list[str]] = {}
    for rate in rates:
        by_task.setdefault(rate.task, []).append(f"{rate.method} {rate.lr:g}")
    listed = "; ".join(f"{task}: {', '.join(several)}" for task, several in by_task.items())
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{path}, tuned on seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, {days} ({listed})"
