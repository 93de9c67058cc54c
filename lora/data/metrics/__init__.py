"""GLUE's metrics and macro F1, computed by `evaluate` from the module in this folder: no network, no shared cache."""

import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lora.errors import DIVERGED, UserError

if TYPE_CHECKING:
    import evaluate

METRICS = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman")
MODULE = Path(__file__).with_name("glue_metric.py")


def compute(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """Metrics of one split, as fractions; None for a metric that is undefined on these rows.

    Args:
        names: Names from `METRICS`, at least one.
        predictions: One class index or score per row.
        references: The true classes or scores, in the same order.
    Raises: UserError: If a prediction is not finite. ValueError: If a name is unknown, the lengths differ or are zero,
        or a reference is not finite.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"names must be among {', '.join(METRICS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    predicted, true = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(
            f"predictions and references must be equally long and not empty, got {predicted.shape} and {true.shape}"
        )
    if not np.isfinite(true).all():
        raise ValueError(f"references must be finite, got {true[~np.isfinite(true)][0]}")
    broken = np.flatnonzero(~np.isfinite(predicted))
    if broken.size:
        raise UserError(
            f"{broken.size} of {len(predicted)} predictions are not finite, the first in row {broken[0]}: "
            f"{DIVERGED}; try a lower train.lr first"
        )
    return _load("+".join(names)).compute(predictions=predicted, references=true)


@functools.cache
def _load(config: str) -> "evaluate.Metric":
    """Load the module under one of its configs, once per process."""
    import evaluate  # imported late, because it imports all of transformers

    with _private_modules() as folder:
        return evaluate.load(str(MODULE), config, keep_in_memory=True, cache_dir=folder)


@contextlib.contextmanager
def _private_modules() -> Iterator[str]:
    """Give `evaluate` an empty folder for its copy of a module while it loads.

    Its cache is shared by all processes of a user. It serves any copy that it holds under the file's hash, even one
    that was edited, or truncated by a kill. The loaded module stays usable after its folder and import entries are
    removed. Other `evaluate` modules of the process are left as they were.
    """
    from evaluate import config

    name, cache = config.MODULE_NAME_FOR_DYNAMIC_MODULES, config.HF_MODULES_CACHE
    others = _forget_modules(name)
    with tempfile.TemporaryDirectory(prefix="lora-metrics-") as folder:
        config.HF_MODULES_CACHE = folder
        sys.path.insert(0, folder)  # ahead of the shared folder, which an earlier load may have added
        try:
            yield folder
        finally:
            config.HF_MODULES_CACHE = cache
            sys.path.remove(folder)
            _forget_modules(name)
            sys.modules.update(others)


def _forget_modules(package: str) -> dict[str, object]:
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}
