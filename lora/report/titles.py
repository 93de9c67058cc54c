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
RANK = re.compile(r"-r(\d+)")
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
    """What tells a row from others of its label: its start, its encoder or its protocol."""
    texts = {"start": f"from {START_TITLES.get(value)}", "model": encoder_title(value), "protocol": f"protocol {value}"}
    return texts[key]


def task_label(task: Task) -> str:
    return f"{task.title} ({METRIC_SHORT[task.metric]})"


def adapted(row: Any) -> tuple[str, int]:
    """The target set of a LoRA row in the paper's notation, with the words that follow in its label, and the rank.

    Args:
        row: Anything with slug, method and label.
    Returns: The label instead of the target set, for modules named in full and for several ranks.
    """
    match = LORA_SLUG.fullmatch(row.slug)
    if match is None:
        return row.label, int(RANK.search(row.slug)[1])  # every slug of LoRA has one
    targets = ", ".join(TARGET_TITLES[target] for target in match[1])
    return targets + row.label.removeprefix(method_label(row.slug, row.method)), int(match[2])


def human_count(value: float) -> str:
    """A number of parameters as the paper prints it: 0.3M, 125.0M; below 0.1M in thousands."""
    return f"{value / 1e6:.1f}M" if value >= 99_500 else f"{value / 1e3:.0f}k"
