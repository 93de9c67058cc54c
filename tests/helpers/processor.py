"""The precisions of this machine's CPU. Some CPUs lack bfloat16, and a run on them refuses it."""

import pytest

from lora.training.device import has_bf16

HAS_BF16 = has_bf16(gpu=False)
NARROWEST = "bf16" if HAS_BF16 else "fp32"
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bfloat16")
