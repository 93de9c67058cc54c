"""The paper's words for methods, encoders, tasks and sizes."""

import re
from typing import Any

from lora.data.tasks import Task
from lora.methods.titles import METHOD_TITLES, TARGET_TITLES

METRIC_SHORT = {"accuracy": "acc.", "f1": "F1", "macro_f1": "macro F1", "matthews": "Matthews", "pearson": "Pearson"}
METRIC_SHORT |= {"spearman": "Spearman"}
START_TITLES = {"pretrained": "pretrained", "mnli": "MNLI"}
ENCODER_TITLES = {
    "minilm": "all-MiniLM-L6-v2",
    "mpnet_base": "all-mpnet-base-v2",
    "roberta_base": "RoBERTa-base",
    "roberta_large": "RoBERTa-large",
    "deberta_v2_xxl": "DeBERTa-XXL",
}
LORA_SLUG = re.compile(r"lora-([qkvoif]+)-r(\d+)")


def method_label(slug: str, method: str) -> str:
    detail = slug.partition("-")[2]
    return METHOD_TITLES[method] + (f" ({detail.replace('-', ', ')})" if detail else "")


def slug_label(slug: str) -> str:
    """The label of a slug's row: `LoRA (qv, r8)`."""
    return method_label(slug, slug.partition("-")[0])


def encoder_title(model: str) -> str:
    return ENCODER_TITLES.get(model, model)


def told(key: str, value: str) -> str:
    if key == "start":
        return f"from {' and '.join(START_TITLES[name] for name in value.split('+'))}"
    return encoder_title(value) if key == "model" else f"protocol {value}"


def task_label(task: Task) -> str:
    return f"{task.title} ({METRIC_SHORT[task.metric]})"


def lora_of(slug: str) -> tuple[str, int]:
    """The target set in the paper's notation, and the rank, of a LoRA slug without other options.

    Raises: ValueError: If the slug is of another form.
    """
    match = LORA_SLUG.fullmatch(slug)
    if match is None:
        raise ValueError(f"{slug!r} does not name target sets of q, k, v, o, i, f at one rank")
    return ", ".join(TARGET_TITLES[target] for target in match[1]), int(match[2])


def adapted(row: Any) -> tuple[str, int]:
    """`lora_of` of a LoRA row; the words that distinguish it from others of its slug follow the target set.

    Args:
        row: Anything with slug, method and label.
    Returns: The label instead of the target set, for modules named in full and for several ranks.
    """
    if not LORA_SLUG.fullmatch(row.slug):
        return row.label, int(row.slug.rpartition("-r")[2].removesuffix("x"))
    targets, rank = lora_of(row.slug)
    return targets + row.label.removeprefix(method_label(row.slug, row.method)), rank


def human_count(value: float) -> str:
    """A number of parameters as the paper prints it: 0.3M, 125.0M; below 0.1M in thousands."""
    return f"{value / 1e6:.1f}M" if value >= 99_500 else f"{value / 1e3:.0f}k"
