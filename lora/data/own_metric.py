"""A user's own metric: a module of Hugging Face's `evaluate`. It is code, which only runs execute, by `compute_own`."""

import functools
import hashlib
import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora.data.metrics import LOWER
from lora.data.tasks import Task
from lora.errors import UserError, first_line, listed
from lora.files import at_home, write_changed


@dataclass(frozen=True)
class OwnMetric:
    """A value of a module in a folder, relative to the task's file, or on the hub, at the commit `revision`."""

    evaluate: str
    key: str
    trust: bool = False
    average: str | None = None
    greater_is_better: bool = True
    revision: str | None = None
    files: str | None = None  # hash of the folder's Python files, which reading the task's file fills in

    @property
    def name(self) -> str:
        return f"{Path(self.evaluate).name}.{self.key}{'' if self.greater_is_better else LOWER}"

    def sources(self, folder: Path) -> tuple[str, dict[str, bytes]]:
        """A hash of the module's Python files, and these by name. `folder`: that of the task's file."""
        place = folder / at_home(self.evaluate)
        script = f"{Path(self.evaluate).name}.py"
        if self.revision is not None:
            from huggingface_hub import snapshot_download

            name = self.evaluate if "/" in self.evaluate else f"evaluate-metric/{self.evaluate}"
            place = Path(snapshot_download(name, repo_type="space", revision=self.revision, allow_patterns="*.py"))
        files = {path.name: path.read_bytes() for path in sorted(place.glob("*.py")) if path.is_file()}
        if script not in files:
            raise UserError(f"metric.evaluate needs {place / script}, or revision for a name on the hub")
        return hashlib.sha256(repr(files).encode()).hexdigest(), files


def compute_own(task: Task, outputs: str, predictions: np.ndarray, references: np.ndarray) -> float | None:
    """The value of a task's own metric; None if it is undefined. Raises: UserError: If the module gives no number."""
    metric = task.own.metric
    options = {} if metric.average is None else {"average": metric.average}
    try:
        module = load_module(metric, task.folder, Path(outputs) / "cache")
        values = dict(module.compute(predictions=predictions.tolist(), references=references.tolist(), **options))
        if np.ndim(value := values.get(metric.key, ())):
            rule = f"metric.key and metric.average must select one number of {listed(values)}"
            raise UserError(f"{rule}, got {np.size(value)} of {metric.key}")
        number = float("nan" if value is None else value)
    except Exception as error:  # whatever a module raises
        message = f"metric {task.metric}: {type(error).__name__}: {first_line(error)}"
        raise error if isinstance(error, UserError) else UserError(message) from error
    if math.isfinite(number):
        return number
    print(f"metric {task.metric} is undefined: {number}", file=sys.stderr, flush=True)
    return None


@functools.cache  # once in a worker
def load_module(metric: OwnMetric, folder: Path, cache: Path) -> Any:
    """The module, imported from a copy. (`evaluate.load` may take files from the network, or of another revision.)"""
    from evaluate.loading import import_main_class

    digest, files = metric.sources(folder)
    if metric.revision is None and metric.files != digest:
        raise UserError(f"the files of metric {metric.evaluate} have changed: name the task's file, as another task")
    for name, content in files.items():
        write_changed(cache / f"metric_{digest}" / name, content)
    sys.path.append(str(cache))
    importlib.invalidate_caches()
    made = import_main_class(f"metric_{digest}.{Path(metric.evaluate).name}")
    module = made(keep_in_memory=True, cache_dir=str(cache), seed=0)
    module.download_and_prepare()
    return module
