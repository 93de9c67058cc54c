"""Compiled loops over activations, each in one pass over memory. `tests/plain.py` has the same in torch.

Arrays are float32, or bfloat16 as uint16 bits. Arithmetic is always in float32. Sums have a fixed order, so a kernel's
bits do not depend on other runs on the machine.
"""

from typing import no_type_check  # numba must compile the bare function, even if tests add type checks

import numba
import numpy as np
from llvmlite import binding, ir
from numba import float32, int32, njit, types, uint16, uint32
from numba.extending import intrinsic, overload

# Constants that are compiled into the kernels stay in this file: numba recompiles when it changes, and only then.
MAX_TOKENS = 1024  # attention places are (head * 1024 + query) * 1024 + key, independent of padding
GOLDEN = 0x9E3779B9  # 2^32 divided by the golden ratio, which spreads consecutive places
MIX_1, MIX_2 = 0x7FEB352D, 0x846CA68B  # of the 32-bit mixer "lowbias32" (C. Wellons, hash-prospector)

# LLVM's tuning for some CPUs prefers vectors of half the width, which makes these kernels up to twice as slow.
FEATURES = binding.get_host_cpu_features()
if FEATURES.get("avx512f"):
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = "generic", FEATURES.flatten()


@no_type_check
def cacheable() -> bool:
    """Whether numba can write compiled kernels to a folder: NUMBA_CACHE_DIR, this one, or one below HOME."""
    try:
        njit(cache=True)(cacheable)
    except RuntimeError:  # no writable folder: every process compiles its own
        return False
    return True


# Allow reordering sums into vector lanes and fusing products. Infinities and NaN keep their meaning.
KERNEL = {"cache": cacheable(), "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
INLINE = {"inline": "always"}

# LLVM compiles a loop with stores twice: vectorised, and scalar for arrays that are close together in memory. If the
# loop also computes a sum, the order of the sum depends on addresses. Margins around the kernels' scratch, longer than
# an iteration of any vector loop (64 values with AVX-512), ensure that the vectorised loop always runs.
MARGIN = 256


@intrinsic
@no_type_check
def _bits(context, x):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), build


@intrinsic
@no_type_check
def _float(context, x):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), build


def scratch(count: int) -> np.ndarray:
    """Working memory of a kernel for `count` float32 values, with a margin on both sides."""
    return np.empty(MARGIN + count + MARGIN, np.float32)


@intrinsic
@no_type_check
def half(context, x):
    """1/2 + 0 x: NaN if x is not finite. As a single fma, it is exempt from LLVM's reordering of sums."""

    def build(context, builder, signature, arguments):
        zero, one_half = ir.Constant(ir.FloatType(), 0.0), ir.Constant(ir.FloatType(), 0.5)
        return builder.fma(arguments[0], zero, one_half)

    return types.float32(types.float32), build


def load(value):
    """An array's element as float32."""


def cast(value, element):
    """A float32 in the type of `element`; bfloat16 is rounded to nearest, ties to even."""


@overload(load, **INLINE)
@no_type_check
def _load(value):
    if value == types.uint16:
        return lambda value: _float(uint32(uint32(value) << uint32(16)))
    return lambda value: value


@overload(cast, **INLINE)
@no_type_check
def _cast(value, element):
    if element == types.uint16:

        def cast_bf16(value, element):
            bits = _bits(value)
            return uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))

        return cast_bf16
    return lambda value, element: value


@njit(**INLINE)
@no_type_check
def hashed(place, first, second):
    """32 random bits of a place under two keys; see `keep` in tests/plain.py."""
    x = uint32(uint32(place) * uint32(GOLDEN) + first)
    x = uint32(uint32(x ^ (x >> uint32(16))) * uint32(MIX_1))
    x = uint32(x ^ second)
    x = uint32(uint32(x ^ (x >> uint32(15))) * uint32(MIX_2))
    return uint32(x ^ (x >> uint32(16)))


@njit(**INLINE)
@no_type_check
def exp(x):
    """Cephes' expf, accurate to 2 ulp. 0 at -87 and below; NaN for NaN, for which every comparison is false."""
    z = float32(88.0) if x > float32(88.0) else x
    z = float32(-87.0) if z < float32(-87.0) else z
    n = np.floor(z * float32(1.44269504088896341) + float32(0.5))
    r = (z - n * float32(0.693359375)) - n * float32(-2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    power = _float(uint32(uint32(int32(n) + int32(127)) << uint32(23)))
    return float32(0.0) if x <= float32(-87.0) else (p * r * r + r + float32(1.0)) * power


# (Phi(x) - 1/2) / x and (gelu'(x) - 1/2) / x as polynomials in t = 2 (x / 5.5)^2 - 1, which need no exponential or
# division: Chebyshev fits to 2e-7 on |x| <= 5.5. Beyond, Phi and gelu' are constant to 6e-7.
EDGE = float32(5.5)
CDF = (
    0.128551938, -0.0641724542, 0.0477368195, -0.0387879353, 0.032084799, -0.0261064546, 0.020267635, -0.0146942694,
    0.0105324666, -0.0076326907, 0.00413436222, -0.00126603033, 0.00110413052, -0.00135662173, 0.000513398488,
)  # fmt: skip
SLOPE = (
    0.128759208, -0.0657397387, 0.0536653935, -0.0537426948, 0.0603107675, -0.0686545836, 0.0742790476, -0.0739811172,
    0.0650720543, -0.050253841, 0.0395777319, -0.0318418287, 0.0165777732, -0.00353910882, 0.00402832811,
    -0.00573461196, 0.0021264218,
)  # fmt: skip


@no_type_check
def horner(coefficients: tuple[float, ...]):
    """t -> c0 + t (c1 + t (c2 + ...)), unrolled, since a loop over the coefficients might not be vectorised."""
    first = float32(coefficients[0])
    if len(coefficients) == 1:
        return njit(**INLINE)(lambda t: first)
    rest = horner(coefficients[1:])
    return njit(**INLINE)(lambda t: first + t * rest(t))


cdf_polynomial, slope_polynomial = horner(CDF), horner(SLOPE)


@njit(**KERNEL)
@no_type_check
def gelu(x, out):
    for i in range(x.size):
        value = load(x[i])
        z = max(-EDGE, min(value, EDGE))
        t = z * z * float32(2 / 5.5**2) - float32(1.0)
        out[i] = cast(value * (half(value) + z * cdf_polynomial(t)), out[i])


@njit(**KERNEL)
@no_type_check
def gelu_backward(x, grad, out):
    for i in range(x.size):
        value = load(x[i])
        z = max(-EDGE, min(value, EDGE))
        t = z * z * float32(2 / 5.5**2) - float32(1.0)
        out[i] = cast(load(grad[i]) * (half(value) + z * slope_polynomial(t)), out[i])


@njit(**KERNEL)
@no_type_check
def dropout(x, keys, threshold, scale, out):
    """out = dropout(x), for (batch, places) arrays. With the gradient as x, it is its own backward pass."""
    for b in range(x.shape[0]):
        first, second = keys[b, 0], keys[b, 1]
        for i in range(x.shape[1]):
            kept = hashed(i, first, second) >= threshold
            out[b, i] = cast(load(x[b, i]) * scale if kept else float32(0.0), out[b, i])


@njit(**KERNEL)
@no_type_check
def add_dropout(x, keys, threshold, scale, out):
    """out += dropout(x)."""
    for b in range(x.shape[0]):
        first, second = keys[b, 0], keys[b, 1]
        for i in range(x.shape[1]):
            kept = hashed(i, first, second) >= threshold
            out[b, i] = cast(load(out[b, i]) + (load(x[b, i]) * scale if kept else float32(0.0)), out[b, i])


@njit(**KERNEL)
@no_type_check
def norm(x, residual, weight, bias, eps, keys, threshold, scale, out, normed, rstd, work):
    """out = LayerNorm(dropout(x) + residual), for (batch, tokens, width) arrays; `normed` excludes the affine map.

    In bfloat16, the map is applied to the rounded `normed`, so that `affine` reproduces the same bits.

    Args:
        work: `scratch(width)`.
    """
    batch, tokens, width = x.shape
    row = work[MARGIN : MARGIN + width]
    per = float32(1.0) / float32(width)
    for b in range(batch):
        first, second = keys[b, 0], keys[b, 1]
        for t in range(tokens):
            start = uint32(t * width)
            total = float32(0.0)
            for i in range(width):
                kept = hashed(start + uint32(i), first, second) >= threshold
                value = (load(x[b, t, i]) * scale if kept else float32(0.0)) + load(residual[b, t, i])
                row[i] = value
                total += value
            mean = total * per
            squares = float32(0.0)
            for i in range(width):
                squares += (row[i] - mean) * (row[i] - mean)
            inverse = float32(1.0) / np.sqrt(squares * per + eps)
            rstd[b, t] = inverse
            for i in range(width):
                value = cast((row[i] - mean) * inverse, normed[b, t, i])
                normed[b, t, i] = value
                out[b, t, i] = cast(load(value) * weight[i] + bias[i], out[b, t, i])


@njit(**KERNEL)
@no_type_check
def affine(normed, weight, bias, keys, threshold, scale, out):
    """out = dropout(normed * weight + bias), which recomputes the output of `norm`."""
    batch, tokens, width = normed.shape
    for b in range(batch):
        first, second = keys[b, 0], keys[b, 1]
        for t in range(tokens):
            start = uint32(t * width)
            for i in range(width):
                kept = hashed(start + uint32(i), first, second) >= threshold
                value = cast(load(normed[b, t, i]) * weight[i] + bias[i], out[b, t, i])
                out[b, t, i] = cast(load(value) * scale if kept else float32(0.0), out[b, t, i])


@njit(**KERNEL)
@no_type_check
def norm_backward(
    grad, weight, normed, rstd, keys, threshold, scale, grad_x, grad_residual, affine, grad_weight, grad_bias, work
):
    """Write the gradients of x and the residual; if `affine`, add the gradients of weight and bias to their arrays.

    Args:
        grad_x, grad_residual: May be the same array if nothing was dropped.
        work: `scratch(width)`.
    """
    batch, tokens, width = grad.shape
    row = work[MARGIN : MARGIN + width]
    per = float32(1.0) / float32(width)
    for b in range(batch):
        first, second = keys[b, 0], keys[b, 1]
        for t in range(tokens):
            mean = float32(0.0)
            along = float32(0.0)
            for i in range(width):
                value = load(grad[b, t, i]) * weight[i]
                row[i] = value
                mean += value
                along += value * load(normed[b, t, i])
            if affine:
                for i in range(width):
                    grad_weight[i] += load(grad[b, t, i]) * load(normed[b, t, i])
                    grad_bias[i] += load(grad[b, t, i])
            mean *= per
            along *= per
            inverse = rstd[b, t]
            start = uint32(t * width)
            for i in range(width):
                value = inverse * (row[i] - mean - load(normed[b, t, i]) * along)
                grad_residual[b, t, i] = cast(value, grad_residual[b, t, i])
                kept = hashed(start + uint32(i), first, second) >= threshold
                grad_x[b, t, i] = cast(value * scale if kept else float32(0.0), grad_x[b, t, i])


@njit(**INLINE)
@no_type_check
def adamw_element(p, g, m, v, rates):
    """The new value and moments of one parameter element under AdamW."""
    lr, decay, beta1, beta2, eps, correction1, correction2 = rates
    m = m + (float32(1.0) - beta1) * (g - m)
    v = beta2 * v + (float32(1.0) - beta2) * g * g
    p = p * (float32(1.0) - lr * decay) - lr / correction1 * m / (np.sqrt(v) / correction2 + eps)
    return p, m, v


@njit(**KERNEL)
@no_type_check
def adamw(p, grad, scale, m, v, rates):
    """AdamW on flat float32 arrays, in place, with the gradient times `scale`.

    Args:
        rates: lr, weight decay, beta1, beta2, eps, 1 - beta1^t, and the square root of 1 - beta2^t, in float32.
    """
    for i in range(p.size):
        p[i], m[i], v[i] = adamw_element(p[i], grad[i] * scale, m[i], v[i], rates)


@njit(**KERNEL)
@no_type_check
def adamw_rows(p, places, grad, scale, m, v, moving, rates):
    """AdamW on a matrix whose gradient is zero except in some rows.

    Args:
        places: For each row of p, its row in `grad`, or -1.
        moving: For each row of p, whether its moments may be nonzero; it is updated. The other rows only decay.
    """
    lr, decay, _, _, _, _, _ = rates
    kept = float32(1.0) - lr * decay
    for row in range(p.shape[0]):
        place = places[row]
        if place >= 0:
            moving[row] = True
            for i in range(p.shape[1]):
                p[row, i], m[row, i], v[row, i] = adamw_element(
                    p[row, i], grad[place, i] * scale, m[row, i], v[row, i], rates
                )
        elif moving[row]:
            for i in range(p.shape[1]):
                p[row, i], m[row, i], v[row, i] = adamw_element(p[row, i], float32(0.0), m[row, i], v[row, i], rates)
        elif kept != float32(1.0):
            for i in range(p.shape[1]):
                p[row, i] *= kept


@njit(**KERNEL)
@no_type_check
def sum_of_squares(x):
    total = 0.0  # float64, with float32 sums per block: as accurate as float64 throughout, and twice as fast
    for start in range(0, x.size, 4096):
        block = float32(0.0)
        for i in range(start, min(start + 4096, x.size)):
            block += x[i] * x[i]
        total += block
    return total


@njit(**INLINE)
@no_type_check
def fill_places(places, queries, keys):
    for i in range(queries):
        for j in range(keys):
            places[i * keys + j] = uint32(i * MAX_TOKENS + j)


@njit(**KERNEL | {"fastmath": {"nnan", "nsz"}})
@no_type_check
def largest(x):
    """The largest value of a row; arbitrary if it has a NaN. LLVM vectorises a maximum only if it may ignore NaNs."""
    highest = float32(-np.inf)
    for i in range(x.size):
        highest = max(highest, x[i])
    return highest


@njit(**KERNEL)
@no_type_check
def attend(scores, hidden, keys, threshold, scale, softmax_scale, lse, work, places):
    """scores <- dropout(softmax(softmax_scale * scores + hidden)), in place, for (batch, heads, queries, keys) arrays.

    Args:
        hidden: (batch, keys), added to the scaled scores. Minus infinity hides a key; each example needs a visible one.
        lse: (batch, heads, queries), the log of each softmax's denominator, for `attend_backward`.
        work: `scratch(queries * keys)`.
        places: Working memory of queries * keys uint32 values.
    """
    batch, heads, queries, width = scores.shape
    size = queries * width
    buffer = work[MARGIN : MARGIN + size]
    fill_places(places, queries, width)
    flat = scores.reshape(batch, heads, size)
    for b in range(batch):
        first, second = keys[b, 0], keys[b, 1]
        for h in range(heads):
            for i in range(queries):
                for j in range(width):
                    buffer[i * width + j] = load(flat[b, h, i * width + j]) * softmax_scale + hidden[b, j]
                highest = largest(buffer[i * width : (i + 1) * width])
                lse[b, h, i] = highest
                for j in range(width):
                    buffer[i * width + j] -= highest
            for e in range(size):  # over all rows at once, since rows are short
                buffer[e] = exp(buffer[e])
            for i in range(queries):
                total = float32(0.0)
                for j in range(width):
                    total += buffer[i * width + j]
                lse[b, h, i] += np.log(total)
                factor = scale / total
                for j in range(width):
                    buffer[i * width + j] *= factor
            start = uint32(h * MAX_TOKENS * MAX_TOKENS)
            for e in range(size):
                kept = hashed(start + places[e], first, second) >= threshold
                flat[b, h, e] = cast(buffer[e] if kept else float32(0.0), flat[b, h, e])


@njit(**KERNEL)
@no_type_check
def attend_backward(scores, hidden, keys, threshold, scale, softmax_scale, lse, grad, work, slopes_work, places):
    """From the original scores: scores <- the probabilities after dropout, grad <- the gradient of the scores.

    Args:
        work, slopes_work: `scratch(queries * keys)` each.
        places: Working memory of queries * keys uint32 values.
    """
    batch, heads, queries, width = scores.shape
    size = queries * width
    buffer = work[MARGIN : MARGIN + size]
    slopes = slopes_work[MARGIN : MARGIN + size]
    fill_places(places, queries, width)
    flat, flat_grad = scores.reshape(batch, heads, size), grad.reshape(batch, heads, size)
    for b in range(batch):
        first, second = keys[b, 0], keys[b, 1]
        for h in range(heads):
            for i in range(queries):
                shift = lse[b, h, i]
                for j in range(width):
                    buffer[i * width + j] = load(flat[b, h, i * width + j]) * softmax_scale + hidden[b, j] - shift
            start = uint32(h * MAX_TOKENS * MAX_TOKENS)
            for e in range(size):
                value = exp(buffer[e])
                kept = hashed(start + places[e], first, second) >= threshold
                factor = scale if kept else float32(0.0)
                buffer[e] = value
                slopes[e] = load(flat_grad[b, h, e]) * factor
                flat[b, h, e] = cast(value * factor, flat[b, h, e])
            for i in range(queries):
                along = float32(0.0)
                for j in range(width):
                    along += buffer[i * width + j] * slopes[i * width + j]
                for j in range(width):
                    value = buffer[i * width + j] * (slopes[i * width + j] - along) * softmax_scale
                    flat_grad[b, h, i * width + j] = cast(value, flat_grad[b, h, i * width + j])
