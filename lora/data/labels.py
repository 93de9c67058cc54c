"""Convert entries of a label column to class indices or scores."""

from collections.abc import Callable, Sequence
from typing import Any


def label_reader(words: Sequence[str] | None, score_range: tuple[float, float] | None) -> Callable[[Any], int | float]:
    """A function from an entry to its label. It raises a ValueError that states the valid entries.

    Args:
        words: For classification: the labels as in the file, in the order of their indices. An integer entry matches
            the label with its digits, since JSON and parquet hold integers.
        score_range: For regression: the lowest and the highest score.
    """
    if words:
        known = {word: index for index, word in enumerate(words)}

        def read_label(entry: Any) -> int:
            word = str(entry) if isinstance(entry, int) and not isinstance(entry, bool) else entry
            if not isinstance(word, str) or word not in known:
                raise ValueError(f"the labels are {', '.join(known)}")
            return known[word]

        return read_label
    low, high = score_range

    def read_score(entry: Any) -> float:
        try:
            score = float("nan") if isinstance(entry, bool) else float(entry)
        except (TypeError, ValueError, OverflowError):
            score = float("nan")
        if not low <= score <= high:
            raise ValueError(f"a score is a number from {low:g} to {high:g}")
        return score

    return read_score
