"""Select runs of a plan by the words of a command, without Hydra.

Places, such as data.path, select nothing: they tell a reader where files lie. Every other setting selects the runs that
have one of its values.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora.config.run import SIZE, PlannedRun
from lora.data.own_task import definition_name, task_file
from lora.errors import UserError

PLACES = ("data.path", "data.source", "data.revision", "model.path", "runtime.", "launcher", "rates", "profile")
PIECE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\[{(]|[\]})]|,|[^'"\[\](){},]+""")
CONSTANTS = {"null": None, "true": True, "false": False}


def split_values(text: str) -> list[str]:
    """The values of `a,b`. Commas inside brackets and quotes do not split."""
    depth = 0
    parts = [""]
    for piece in PIECE.findall(text):
        depth += (piece in "[{(") - (piece in "]})")
        if piece == "," and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def parse_value(text: str) -> Any:
    """The value that Hydra reads in a word: a text, a list, a mapping, null, a truth value or a number."""
    if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    if text[:1] == "[" and text[-1:] == "]":
        return [*map(parse_value, split_values(text[1:-1]))] if text[1:-1].strip() else []
    if text[:1] == "{" and text[-1:] == "}":
        pairs = (part.partition(":") for part in split_values(text[1:-1]) if part)
        return {str(parse_value(key.strip())): parse_value(value.strip()) for key, _, value in pairs}
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    for number in (int, float):
        if re.fullmatch(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d+)?|[+-]?inf|nan", text, re.IGNORECASE):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def parse_words(words: Iterable[str]) -> dict[str, list[Any]]:
    """Setting -> its values. Raises: UserError: If a word is not setting=value."""
    values: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise UserError(f"{word!r} is not setting=value")
        values[key] = [*map(parse_value, split_values(text))]
    return values


def place(words: Sequence[str], key: str) -> str | None:
    """The last value that words give to a place; None without any."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    value = parse_value(given[-1]) if given else None
    return None if value is None else str(value)


def selecting(words: Sequence[str]) -> list[str]:
    """The settings that words select by: all but places, experiment=null and `auto`, which mean any."""
    given = parse_words(words)
    free = [key for key, values in given.items() if values == ["auto"] or (key, values) == ("experiment", [None])]
    return [key for key in given if not key.startswith(PLACES) and key not in free]


def filter_runs(runs: Iterable[PlannedRun], words: Sequence[str]) -> list[PlannedRun]:
    """The runs that have one of the given values of every setting. Runs of no experiment are in any.

    Raises: UserError: If no run has a setting.
    """
    kept = [*runs]
    given = parse_words(words)
    for key in selecting(words):
        values = given[key]
        if key == "task":
            values = [definition_name(path) if (path := task_file(str(value))) else value for value in values]
        own = [setting_values(run, key, values) for run in kept]
        if kept and not any(own):
            near = difflib.get_close_matches(key, keys_of(kept), 1)
            hint = f"; did you mean {near[0]}?" if near else f"; they have {', '.join(keys_of(kept))}"
            raise UserError(f"no planned run has a setting {key}{hint}")
        kept = [run for run, of_run in zip(kept, own, strict=True) if any(value in values for value in of_run)]
    return kept


def setting_values(run: PlannedRun, key: str, given: Sequence[Any] = ()) -> list[Any]:
    """What a run has of a setting, and the option of conf/ that was chosen for it; [] if it has no such setting.

    Args:
        given: Taken for the experiments of a run that has none.
    """
    if key == "experiment":
        return [*run.experiments] or [*given]
    value: Any = run.config
    for name in key.split("."):
        value = value.get(name, ...) if isinstance(value, Mapping) else getattr(value, name, ...)
        if value is ...:
            return []
    if key == "task":
        return [*run.task.words]
    if key == "method":
        return [run.options.get(key, value.name)]  # dora and pissa are options of their own
    if key == SIZE:
        return [value, run.train_rows]  # null on all rows, whose number is asked for too
    if key == "model":
        return [value.name, run.options.get(key), value.source]  # model=local: its source
    return [[*value] if isinstance(value, tuple) else value]


def keys_of(runs: Iterable[PlannedRun]) -> list[str]:
    """Every setting by which some runs can be selected."""
    keys = ["experiment", "task", "seed", "start", "protocol", "model", "method"]
    for config in {type(run.config.method): run.config for run in runs}.values():
        for name in ("model", "method", "data", "train"):
            keys += [f"{name}.{field.name}" for field in dataclasses.fields(getattr(config, name))]
    return [key for key in dict.fromkeys(keys) if not key.startswith(PLACES)]
