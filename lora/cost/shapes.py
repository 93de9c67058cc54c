"""The shapes of timed batches, as `<rows>x<tokens>`. No torch."""

import re

STEP = ("16x28", "32x64")  # training steps. Ours: mini's batch, and a batch that fills the cores
LATENCY = ("1x32", "1x128", "8x128", "16x128", "32x64")  # served batches. 1x128 is Table 1's; the others are ours
TABLE_1 = ("1x128", "16x256", "32x512")  # the paper's Table 1, from its last line to its first


def is_shape(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", text))


def rows_and_tokens(shape: str) -> tuple[int, int]:
    rows, tokens = shape.split("x")
    return int(rows), int(tokens)


def size(shape: str) -> int:
    """Number of tokens in the batch."""
    rows, tokens = rows_and_tokens(shape)
    return rows * tokens
