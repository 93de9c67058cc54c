"""The kernels' bits are independent of the arrays' addresses and of a stale or missing cache. NaN stays NaN."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import lora
from lora.training.fused import functions, kernels
from lora.training.fused.functions import Masks

BATCH, TOKENS, HEADS, LAYOUTS = 2, 3, 2, 50
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["fp32", "bf16"])


def values(shape, seed, dtype=np.float32):
    """Draws from a normal distribution. For uint16, the upper halves of their bits, which are those of a bfloat16."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x if dtype == np.float32 else (x.view(np.uint32) >> 16).astype(np.uint16)


def calls(width, dtype):
    """Arguments of every kernel, for activations of this width or for attention over as many keys."""
    tokens, per_token, flat = (BATCH, TOKENS, width), (BATCH, TOKENS), (BATCH, TOKENS * width)
    scores, per_query, size = (BATCH, HEADS, TOKENS, width), (BATCH, HEADS, TOKENS), TOKENS * width
    keys = np.random.default_rng(0).integers(2**32, size=(BATCH, 2), dtype=np.uint32)
    site = (keys, np.uint32(2**30), np.float32(4 / 3))
    hidden = np.where(np.arange(width) < width - 3, 0, -np.inf).astype(np.float32) * np.ones((BATCH, 1), np.float32)
    weight, bias, rstd = values(width, 1), values(width, 2), np.abs(values(per_token, 3))
    x, y, z = (values(tokens, seed, dtype) for seed in (4, 5, 6))
    rates = tuple(map(np.float32, (1e-2, 0.1, 0.9, 0.99, 1e-6, 0.5, 0.4)))
    matrix, moments = values((5, width), 7), (values((5, width), 8), values((5, width), 9) ** 2)
    rows = (matrix, np.array([-1, 1, -1, 0, -1]), values((2, width), 10), np.float32(0.7), *moments)
    of_scores, places = (values(scores, 11, dtype), hidden, *site, np.float32(0.2)), np.empty(size, np.uint32)
    work = [kernels.scratch(n) for n in (width, size, size)]
    for each in (*work, places):
        each[:] = 0
    return {
        "gelu": (x.ravel(), y.ravel()),
        "gelu_backward": (x.ravel(), y.ravel(), z.ravel()),
        "dropout": (x.reshape(flat), *site, y.reshape(flat)),
        "add_dropout": (x.reshape(flat), *site, y.reshape(flat)),
        "norm": (x, y, weight, bias, np.float32(1e-12), *site, z, values(tokens, 12, dtype), rstd, work[0]),
        "affine": (x, weight, bias, *site, y),
        "norm_backward": (
            *(x, weight, y, rstd, *site, z, values(tokens, 12, dtype), True),
            *(values(width, 13), values(width, 14), work[0]),
        ),
        "adamw": (matrix.ravel(), values(5 * width, 15), np.float32(0.7), *(each.ravel() for each in moments), rates),
        "adamw_rows": (*rows, np.array([False, False, True, True, False]), rates),
        "largest": (values(width, 19),),
        "sum_of_squares": (values(BATCH * TOKENS * width, 16),),
        "attend": (*of_scores, values(per_query, 17), work[1], places),
        "attend_backward": (*of_scores, 2 + values(per_query, 17), values(scores, 18, dtype), *work[1:], places),
    }


KERNELS = pytest.mark.parametrize("name", calls(16, np.float32))


def test_every_kernel_is_tried():
    compiled = {name: f for name, f in vars(kernels).items() if isinstance(f, Dispatcher)}
    assert {name for name, f in compiled.items() if "fastmath" in f.targetoptions} == set(calls(16, np.float32))


def apart(given):
    """A copy without other data near it."""
    if not isinstance(given, np.ndarray):
        return given
    memory = np.zeros(given.nbytes + 2 * 65536, np.uint8)[65536:-65536]
    copy = memory.view(given.dtype).reshape(given.shape)
    copy[...] = given
    return copy


def in_an_arena(arguments, draws):
    """The same arguments with all arrays in one piece of memory, in a random order and with random gaps."""
    arrays = [i for i, each in enumerate(arguments) if isinstance(each, np.ndarray)]
    most_gap = draws.choice([8, 64, 512, 4096])
    gaps = 8 * (draws.integers(most_gap + 1, size=len(arrays)) // 8)
    arena = np.zeros(sum(arguments[i].nbytes + 8 + gap for i, gap in zip(arrays, gaps, strict=True)), np.uint8)
    placed, end = list(arguments), 0
    for i, gap in zip(draws.permutation(arrays), gaps, strict=True):
        given = arguments[i]
        start = end + gap
        end = start + -(-given.nbytes // 8) * 8
        placed[i] = arena[start : start + given.nbytes].view(given.dtype).reshape(given.shape)
        placed[i][...] = given
    return placed


def bits(name, arguments):
    """The bytes of everything that a kernel returns or leaves in its arrays."""
    returned = getattr(kernels, name)(*arguments)
    return [np.array(each).tobytes() for each in (*arguments, returned) if isinstance(each, np.ndarray | float)]


@KERNELS
@DTYPES
@pytest.mark.parametrize("width", [32, 384])
def test_bits_do_not_depend_on_where_arrays_lie(name, dtype, width):
    """A compiled loop may take another path if arrays are close. The truth is arrays that are far apart."""
    given = calls(width, dtype)[name]
    far = bits(name, [apart(each) for each in given])
    draws = np.random.default_rng(1)
    different = [layout for layout in range(LAYOUTS) if bits(name, in_an_arena(given, draws)) != far]
    assert not different


# Values that are not finite.

TORCH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@TORCH_DTYPES
@pytest.mark.parametrize("size", [5, 1000])
def test_gelu_is_finite_where_torchs_is(dtype, size):
    """Torch in float32 gives NaN for both infinities, in float64 infinity for the positive one."""
    found = []
    for gelu in (functions.gelu, F.gelu):
        x = torch.zeros(size, dtype=dtype)
        x[:5] = torch.tensor([-torch.inf, torch.inf, torch.nan, -1e3, 1e30])
        x.requires_grad_()
        out = gelu(x)
        out.backward(torch.ones_like(out))
        found.append([out.isfinite(), out[0].isnan(), x.grad.isnan()])
    assert all(map(torch.equal, *found))
    assert found[0][1]


BAD = {"nan": torch.nan, "inf": torch.inf, "minus-inf": -torch.inf}


@TORCH_DTYPES
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("place", ["query", "key", "value", "hidden key"])
def test_attention_is_finite_where_torchs_is(dtype, value, place):
    """Torch adds minus infinity to the scores of hidden keys, so NaN among them stays visible.

    The truth is torch's plain kernel: on a CPU with AVX2 its fused one gives a finite gradient where a score is NaN.
    """
    given = [torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    visible = torch.arange(9) < torch.tensor([[9], [5]])
    tensor = given[["query", "key", "value", "hidden key"].index(place) % 3 + (place == "hidden key")]
    tensor[1, 7 if place == "hidden key" else 3, 2] = BAD[value]

    def torchs(q, k, v):
        heads = (x.unflatten(-1, (3, 8)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*heads, attn_mask=visible[:, None, None].expand(2, 1, 9, 9))
        return out.transpose(1, 2).flatten(2)

    site = Masks(3)
    site.begin(1, np.arange(2))
    dropped = site.site("a", 0.3, 2)
    ways = {
        "torch": torchs,
        "kernels": lambda *x: functions.attention(*x, visible, 3, None, None),
        "plain, dropped": lambda *x: plain.attention(*x, visible, 3, dropped),
        "kernels, dropped": lambda *x: functions.attention(*x, visible, 3, dropped, None),
    }
    finite = {}
    for name, attention in ways.items():
        learned = [x.clone().requires_grad_() for x in given]
        out = attention(*learned)
        out.backward(torch.ones_like(out))
        finite[name] = [x.isfinite() for x in (out, *(x.grad for x in learned))]
    assert not all(each.all() for each in finite["torch"])
    for ours, truth in (("kernels", "torch"), ("kernels, dropped", "plain, dropped")):
        assert all(map(torch.equal, finite[ours], finite[truth]))


# The cache of compiled kernels.


def obey_permissions():
    """Take away from a process of root and its children the right to write where permissions forbid it."""
    drop_from_bounding_set, dac_override = 24, 1  # prctl(2), capabilities(7)
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


PROBE = """
import numpy as np
from lora.training.fused import kernels
out = np.empty((1, 6), np.float32)
kernels.dropout(np.ones((1, 6), np.float32), np.zeros((1, 2), np.uint32), np.uint32(0), np.float32(2), out)
print(kernels.dropout.stats.cache_path, out.sum())
"""


def test_kernels_work_where_nothing_can_be_written(tmp_path):
    shutil.copytree(Path(lora.__file__).parent, tmp_path / "lora", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    environment |= {"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    try:
        for folder in folders:
            folder.chmod(0o555)
        refused = subprocess.run(["touch", str(tmp_path / "x")], preexec_fn=obey_permissions, capture_output=True)
        assert refused.returncode != 0
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            cwd=tmp_path, env=environment, capture_output=True, text=True, preexec_fn=obey_permissions,
        )  # fmt: skip
        assert done.stdout.split() == ["None", "12.0"], done.stderr
    finally:
        for folder in folders:
            folder.chmod(0o755)
