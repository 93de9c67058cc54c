"""The user's file of learning rates chosen by `python -m lora tune`. They replace those of conf/hparams.

The file is `results/<profile>/rates.yaml` (the setting `rates`), which git ignores. conf/ is never changed.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lora.checks import Problems, SettingsError, build
from lora.config.run import SIZE, PlannedRun
from lora.errors import UserError, first_line
from lora.files import REFERENCE, RESULTS, at_home, cached_by_file, exclusive, write_atomically

RATES_FILE = "rates.yaml"
AT = ", at "  # before the number of train rows of a tuning
TUNING = "tune"  # group of the tuning runs (runtime.group), which no table of results includes
OTHER_METHOD = (  # settings that make another method, with a rate of its own; the rank and the targets do not
    *("method.type", "method.dora", "method.frozen_a", "method.init_a", "method.scaling", "train.lora_plus"),
)
MAY_DIFFER = (  # settings of the sections data and train in which the tunings of two methods need not be alike
    *("train.lr", SIZE, "train.lora_plus"),  # which name the rate
    *("train.precision", "train.kernels", "train.accumulation", "train.eval_batch"),
)
PREAMBLE = """# Learning rates chosen by `python -m lora tune`. Runs of this profile take them instead of those in
# conf/hparams, unless rates=null or train.lr=VALUE is given. To go back for good, remove an entry or the file.
# `tried`: rate -> mean over `seeds` of the best epoch's score on the dev split.
"""


@dataclass(frozen=True)
class Rate:
    """The learning rate of one method on one task.

    Args:
        model: The encoder, as run ids name it.
        method: As `rate_name` has it.
        seeds: Seeds of the tuning runs.
        tried: Rate -> mean over seeds of the best epoch's headline metric on the dev set, a fraction; None if training
            diverged or collapsed.
        train_rows: The number of train rows that it was tuned on; None: all.
        stated: Settings of data and training in which the tuning runs differed from conf/, by the command's words.
    """

    model: str
    protocol: str
    task: str
    method: str
    lr: float
    seeds: tuple[int, ...]
    tried: dict[float, float | None]
    train_rows: int | None = None
    stated: str | None = None

    def __post_init__(self):
        problems = Problems()
        rule = f"one of those tried, {', '.join(map(str, self.tried))} (train.lr=VALUE states another)"
        problems.check(self.lr in self.tried, "lr", rule, self.lr)
        problems.done()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.model, self.protocol, self.task, self.method

    @property
    def tuned_alike(self) -> str:
        """What the tuning of other methods must share: the numbers of values and seeds, settings, and train rows."""
        seeds = f" on {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        stated = f" ({self.stated})" if self.stated else ""
        return f"{len(self.tried)} values{seeds}{stated}{f'{AT}{self.train_rows} rows' if self.train_rows else ''}"


def stated_text(stated: Mapping[str, Any], asked: Collection[str]) -> str | None:
    """`Rate.stated` of tuning runs, `train.batch=4 train.epochs=8`.

    Args:
        stated: As of `lora.config.run.PlannedRun`.
        asked: The settings that the command names; epochs may follow from the number of train rows instead.
    """
    kept = {key for key in stated if key.startswith(("data.", "train.")) and key in asked} - {*MAY_DIFFER}
    return " ".join(f"{key}={stated[key]}" for key in sorted(kept)) or None


def rate_name(option: str, usual: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """An option of conf/method, with the overrides that make another method of it: `lora method.dora=true`.

    Args:
        usual: The sections of a run without its overrides.
        settings: The sections with them.
    """
    changed = [
        f"{section}.{key}={str(settings[section][key]).lower()}"
        for section, key in (name.split(".") for name in OTHER_METHOD)
        if settings[section].get(key) != usual[section].get(key)
    ]
    return " ".join([option, *changed])


def rates_path(setting: Any) -> Path | None:
    """The file that the setting `rates` names. None for null and in results/reference, where no rates apply."""
    if setting is None:
        return None
    if not isinstance(setting, str | Path):
        raise UserError(f"rates must be null or the path of a file, got {setting!r}")
    path = at_home(setting)
    return None if (RESULTS / REFERENCE).resolve() in path.resolve().parents else path


def nearest_rate(rates: Iterable[Rate], key: tuple[str, str, str, str], rows: int, whole: int) -> Rate | None:
    """The rate of an encoder, protocol, task and method, if there is one. Of several, the one that was tuned on the
    number of train rows, of `whole`, nearest to `rows`: the smallest ratio, the larger number on a tie.
    """
    kept = sorted((one for one in rates if one.key == key), key=lambda one: one.train_rows is None)
    sizes = {one.train_rows or whole: one for one in kept}  # on all rows, the rate for which no number was stated
    nearest = min(sizes, key=lambda size: (max(size, rows) / min(size, rows), -size), default=None)
    return None if nearest is None else sizes[nearest]


def rate_of(run: PlannedRun, rates: Iterable[Rate]) -> Rate | None:
    """`nearest_rate` for a run."""
    key = (run.model, run.protocol, run.task.name, run.config.runtime.rate_name)
    return nearest_rate(rates, key, run.train_rows, run.whole_rows)


def read_rates(setting: Any) -> tuple[Rate, ...]:
    """The rates in the file that the setting `rates` names; () without a file.

    Raises: UserError: If it cannot be read or is not a file of rates. All problems are listed.
    """
    path = rates_path(setting)
    try:
        return _read_rates(path) if path is not None else ()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except SettingsError as error:
        problems = "; ".join(error.problems)
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        problems = first_line(error)
    raise UserError(f"{path} is not a file of rates: {problems}; mend or remove it, or ignore it with rates=null")


@cached_by_file
def _read_rates(path: Path) -> tuple[Rate, ...]:
    rates = tuple(build(Rate, entry) for entry in yaml.safe_load(path.read_text())["rates"])
    for key, count in Counter(map(_place, rates)).items():
        if count > 1:  # as after a merge by hand
            raise ValueError(f"{count} entries for {', '.join(key[:-1])}, where there may be one")
    return rates


def _place(rate: Rate) -> tuple:
    """What a file has one rate for: encoder, protocol, task, method and train rows."""
    return *rate.key, rate.train_rows or 0


def write_rates(path: Path, new: Iterable[Rate]) -> None:
    """Add rates to a file. Each replaces an earlier one of its place."""
    with exclusive(path.with_suffix(".lock")):  # others may tune at the same time
        kept = {_place(one): one for one in (*read_rates(path), *new)}
        entries = [asdict(kept[key]) | {"seeds": list(kept[key].seeds)} for key in sorted(kept)]
        entries = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
        text = yaml.safe_dump({"rates": entries}, sort_keys=False, default_flow_style=None, width=120)
        write_atomically(path, (PREAMBLE + text).encode())
