"""ggml's reference functions over blocks, compiled by numba: `quantize_row_*_ref` of ggml-quants.c, ggml 0.15.3.

Every sum is taken in order and every operation rounded to float32, as C demands of a compiler; what a compiler may
contract to one fused multiply-add, x * y + z rounded once, is said by `fused`: 0 none of them, 1 those that stand in
one expression (clang), 2 also those that meet across statements and calls, but for sums whose products gcc 12 at -O3
computes as vectors and adds one by one. Weights are float32 [n, elements],
codes uint8 alike, scales and least weights uint8 [n, groups], `d` and `m` bits of float16, uint16 [n].
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_OPTIONS: Any = {"nogil": True, "cache": True, "error_model": "numpy"}
F32 = np.float32
NONE, ONE, HALF, TENTH = F32(0), F32(1), F32(0.5), F32(0.1)
MAGIC = F32(12582912)
"""1.5 * 2**23: added, it leaves a small number's nearest integer in the lowest bits, ties to even."""
TINY = F32(1e-15)
"""`GROUP_MAX_EPS`."""
STRICT, WITHIN, ACROSS = 0, 1, 2


@intrinsic
def _fma(typing, x, y, z):
    """Return x * y + z of float32, rounded once."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _bits(typing, x):
    """Return the bits of a float32, int64 from 0 to 2^32 - 1."""

    def generate(context, builder, signature, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), generate


@intrinsic
def _number(typing, bits):
    """Return the float32 of the lowest 32 of some bits, int64."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


@njit(inline="always")
def _mad(x, y, z, fused):
    """Return x * y + z, rounded once if it is `fused`."""
    return _fma(x, y, z) if fused else x * y + z


@njit(inline="always")
def _nearest(x, y, fused, least, most):
    """Return x * y as the nearest integer, `nearest_int`, from `least` to `most`."""
    shifted = _fma(x, y, MAGIC) if fused else x * y + MAGIC
    near = (_bits(shifted) & 0x7FFFFF) - 0x400000
    return max(least, min(most, near))


@njit(inline="always")
def _truncated(x):
    """Return the integer part, and 0 where C does not say what it is: there x86 has 0 in the lowest bits."""
    return np.int64(x) if abs(x) < F32(2147483648) else np.int64(0)


@njit(**_OPTIONS)
def _half(x):
    """Return the bits of a float32 rounded to float16, ties to even."""
    wide = _bits(x)
    sign, wide = (wide >> 16) & 0x8000, wide & 0x7FFFFFFF
    if wide > 0x7F800000:
        return sign | 0x7E00
    if wide >= 0x477FF000:
        return sign | 0x7C00
    if wide < 0x38800000:
        return sign | (_bits(_number(wide) + HALF) - 0x3F000000)
    return sign | ((wide - (112 << 23) + 0xFFF + ((wide >> 13) & 1)) >> 13)


@njit(**_OPTIONS)
def _widened(half):
    """Return the number of the bits of a float16."""
    sign, exponent, mantissa = (half & 0x8000) << 16, (half >> 10) & 31, half & 0x3FF
    if exponent == 0:
        small = F32(mantissa) * F32(2.0**-24)
        return -small if sign else small
    if exponent == 31:
        return _number(sign | 0x7F800000 | mantissa << 13)
    return _number(sign | (exponent + 112) << 23 | mantissa << 13)


@njit(**_OPTIONS)
def around(x, half, fused, codes, d):
    """Q4_0 with a `half` of 8, Q5_0 with one of 16."""
    top, middle = 2 * half - 1, F32(half + 0.5)
    for b in range(x.shape[0]):
        widest = most = NONE
        for i in range(32):
            if widest < abs(x[b, i]):
                widest, most = abs(x[b, i]), x[b, i]
        scale = most / F32(-half)
        inverse = ONE / scale if scale != 0 else NONE
        d[b] = _half(scale)
        for i in range(32):
            codes[b, i] = min(top, _truncated(_mad(x[b, i], inverse, middle, fused == ACROSS))) & top


@njit(**_OPTIONS)
def above(x, top, fused, codes, d, m):
    """Q4_1 with a `top` of 15, Q5_1 with one of 31."""
    for b in range(x.shape[0]):
        least, most = F32(3.4028234663852886e38), F32(-3.4028234663852886e38)
        for i in range(32):
            least = x[b, i] if x[b, i] < least else least
            most = x[b, i] if x[b, i] > most else most
        scale = (most - least) / F32(top)
        inverse = ONE / scale if scale != 0 else NONE
        d[b], m[b] = _half(scale), _half(least)
        for i in range(32):
            code = _truncated(_mad(x[b, i] - least, inverse, HALF, fused == ACROSS))
            codes[b, i] = (min(top, code) if top == 15 else code) & top


@njit(**_OPTIONS)
def whole(x, codes, d):
    """Q8_0: codes are int8's bits."""
    for b in range(x.shape[0]):
        widest = NONE
        for i in range(32):
            widest = max(widest, abs(x[b, i]))
        scale = widest / F32(127)
        inverse = ONE / scale if scale != 0 else NONE
        d[b] = _half(scale)
        for i in range(32):
            value = x[b, i] * inverse
            near = np.trunc(value)
            near += np.copysign(F32(abs(value - near) >= HALF), value)
            codes[b, i] = _truncated(near) & 0xFF


@njit(**_OPTIONS)
def powers(x, numbers, codes, exponents):
    """MXFP4: codes of `numbers`, `E2M1`, by powers of two; of equally near ones the first."""
    for b in range(x.shape[0]):
        widest = NONE
        for i in range(32):
            if widest < abs(x[b, i]):
                widest = abs(x[b, i])
        e = np.int64(0)
        if widest > 0:
            e = _truncated(np.floor(F32(np.log2(np.float64(widest)))) + F32(125)) & 0xFF
        exponents[b] = e
        scale = _number(np.int64(0x200000) << e if e < 2 else (e - 1) << 23)
        for i in range(32):
            best, code = abs(numbers[0] * scale - x[b, i]), 0
            for k in range(1, 16):
                error = abs(numbers[k] * scale - x[b, i])
                if error < best:
                    best, code = error, k
            codes[b, i] = code


@njit(**_OPTIONS)
def _line(x, w, top, start, steps, absolute, fused, codes, tried):
    """Return the scale, and less the least weight, of the best of some lines through a group (`make_qkx2_quants`)."""
    n, within, across = x.shape[0], fused > STRICT, fused == ACROSS
    least = most = x[0]
    sum_w = w[0]
    sum_x = sum_w * x[0]
    for i in range(1, n):
        least = x[i] if x[i] < least else least
        most = x[i] if x[i] > most else most
        sum_w += w[i]
        sum_x = _mad(w[i], x[i], sum_x, within)
    least = NONE if least > 0 else least
    if most == least:
        codes[:] = 0
        return NONE, -least
    inverse = F32(top) / (most - least)
    scale = ONE / inverse
    best = NONE
    for i in range(n):
        code = _nearest(inverse, x[i] - least, across, 0, top)
        codes[i] = code
        miss = _mad(scale, F32(code), least, within) - x[i]
        best = _mad(w[i], abs(miss) if absolute else miss * miss, best, within)
    for step in range(steps + 1):
        inverse = (_mad(TENTH, F32(step), start, within) + F32(top)) / (most - least)
        sum_l = sum_l2 = sum_xl = NONE
        for i in range(n):
            code = _nearest(inverse, x[i] - least, across, 0, top)
            tried[i] = code
            wl = w[i] * F32(code)
            sum_l = _mad(w[i], F32(code), sum_l, fused == WITHIN)
            sum_l2 = _mad(wl, F32(code), sum_l2, within)
            sum_xl = _mad(wl, x[i], sum_xl, within)
        spread = _mad(sum_w, sum_l2, -(sum_l * sum_l), within)
        if spread > 0:
            if across:  # gcc takes the other product
                this = _fma(-sum_x, sum_l, sum_w * sum_xl) / spread
            else:
                this = _mad(sum_w, sum_xl, -(sum_x * sum_l), within) / spread
            low = _mad(sum_l2, sum_x, -(sum_l * sum_xl), within) / spread
            if low > 0:
                low = NONE
                this = sum_xl / sum_l2
            error = NONE
            for i in range(n):
                miss = _mad(this, F32(tried[i]), low, within) - x[i]
                error = _mad(w[i], abs(miss) if absolute else miss * miss, error, within)
            if error < best:
                codes[:] = tried
                best, scale, least = error, this, low
    return scale, -least


@njit(**_OPTIONS)
def lines(x, size, top, start, steps, fused, codes, scales, mins, d, m):
    """Q2_K, Q4_K and Q5_K by groups of `size`: 16 with four-bit scales for Q2_K, 32 with six-bit ones.

    `start` and `steps` are those of the search, float32 and int.
    """
    two = top == 3
    limit = 15 if two else 63
    groups = 256 // size
    w, tried = np.empty(size, F32), np.empty(size, np.uint8)
    steep, low = np.empty(groups, F32), np.empty(groups, F32)
    for b in range(x.shape[0]):
        steepest = lowest = NONE
        for g in range(groups):
            some = x[b, g * size : (g + 1) * size]
            if two:
                for i in range(size):
                    w[i] = abs(some[i])
            else:
                total = NONE
                for i in range(size):
                    total = _mad(some[i], some[i], total, fused == WITHIN)
                average = np.sqrt(total / F32(32))
                for i in range(size):
                    w[i] = average + abs(some[i])
            steep[g], low[g] = _line(some, w, top, start, steps, two, fused, codes[b, g * size : (g + 1) * size], tried)
            steepest = max(steep[g], steepest)
            lowest = max(low[g], lowest)
        first = F32(limit) / steepest if steepest > 0 else NONE
        second = F32(limit) / lowest if lowest > 0 else NONE
        d[b] = _half(steepest / F32(limit) if steepest > 0 else NONE)
        m[b] = _half(lowest / F32(limit) if lowest > 0 else NONE)
        for g in range(groups):
            scale = _nearest(first, steep[g], fused == ACROSS, -0x400000, 0x3FFFFF) & 0xFF
            least = _nearest(second, low[g], fused == ACROSS, -0x400000, 0x3FFFFF) & 0xFF
            scales[b, g], mins[b, g] = min(limit, scale), min(limit, least)
            step = _widened(np.int64(d[b])) * F32(scales[b, g])
            if step == 0:
                continue
            shift = _widened(np.int64(m[b])) * F32(mins[b, g])
            for i in range(g * size, (g + 1) * size):
                codes[b, i] = _nearest((x[b, i] + shift) / step, ONE, False, 0, top)


@njit(**_OPTIONS)
def _widest(x):
    widest = most = NONE
    for i in range(x.shape[0]):
        if abs(x[i]) > widest:
            widest, most = abs(x[i]), x[i]
    return widest, most


@njit(**_OPTIONS)
def _descent(x, fused, codes):
    """Return the scale of Q3_K's group, found by moving single codes (`make_q3_quants`)."""
    within = fused > STRICT
    widest, most = _widest(x)
    codes[:] = 0
    if widest < TINY:
        return NONE
    near = np.zeros(16, np.int64)
    inverse = F32(-4) / most
    sum_lx = sum_l2 = NONE
    for i in range(16):
        near[i] = _nearest(inverse, x[i], fused == ACROSS, -4, 3)
        w, code = x[i] * x[i], F32(near[i])
        sum_lx = _mad(w * x[i], code, sum_lx, within)
        sum_l2 = _mad(w * code, code, sum_l2, within)
    for _ in range(5):
        moved = False
        for i in range(16):
            w, code = x[i] * x[i], F32(near[i])
            lx = _mad(-(w * x[i]), code, sum_lx, within)
            if lx > 0:
                l2 = _mad(-(w * code), code, sum_l2, within)
                new = _nearest(x[i] * l2 / lx, ONE, False, -4, 3)
                if new != near[i]:
                    lx = _mad(w * x[i], F32(new), lx, within)
                    l2 = _mad(w * F32(new), F32(new), l2, within)
                    if l2 > 0 and lx * lx * sum_l2 > sum_lx * sum_lx * l2:
                        near[i], sum_lx, sum_l2, moved = new, lx, l2, True
        if not moved:
            break
    for i in range(16):
        codes[i] = near[i] + 4
    return sum_lx / sum_l2 if sum_l2 > 0 else NONE


@njit(**_OPTIONS)
def threes(x, fused, codes, scales, d):
    """Q3_K; scales are stored 32 higher."""
    found = np.empty(16, F32)
    for b in range(x.shape[0]):
        for g in range(16):
            found[g] = _descent(x[b, 16 * g : 16 * g + 16], fused, codes[b, 16 * g : 16 * g + 16])
        most = _widest(found)[1]
        scales[b, :] = 0
        d[b] = 0
        if most == 0:
            continue
        inverse = F32(-32) / most
        d[b] = _half(ONE / inverse)
        for g in range(16):
            near = _nearest(inverse, found[g], fused == ACROSS, -0x400000, 0x3FFFFF)
            near = (near + 128) % 256 - 128
            scales[b, g] = max(-32, min(31, near)) + 32
            step = _widened(np.int64(d[b])) * F32(np.int64(scales[b, g]) - 32)
            if step == 0:
                continue
            for i in range(16 * g, 16 * g + 16):
                codes[b, i] = _nearest(x[b, i] / step, ONE, False, -4, 3) + 4


@njit(**_OPTIONS)
def _searched(x, fused, codes):
    """Return the scale of Q6_K's group, the best of nineteen (`make_qx_quants` with x * x for a weight)."""
    within = fused > STRICT
    widest, most = _widest(x)
    if widest < TINY:
        codes[:] = 0
        return NONE
    scale = best = NONE
    for step in range(-10, 10):
        if step == 0:
            continue
        # The first is the plain one; 0 does not come twice.
        inverse = F32(-32) / most if step == -10 else -_mad(TENTH, F32(step), F32(32), within) / most
        sums = fused == WITHIN or (fused == ACROSS and step == -10)
        sum_lx = sum_l2 = NONE
        for i in range(16):
            code = F32(_nearest(inverse, x[i], fused == ACROSS, -32, 31))
            w = x[i] * x[i]
            sum_lx = _mad(w * x[i], code, sum_lx, sums)
            sum_l2 = _mad(w * code, code, sum_l2, sums)
        if step == -10 or (sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2):
            for i in range(16):
                codes[i] = _nearest(inverse, x[i], fused == ACROSS, -32, 31) + 32
            scale = sum_lx / sum_l2 if sum_l2 != 0 else NONE
            best = scale * sum_lx
    return scale


@njit(**_OPTIONS)
def sixes(x, fused, codes, scales, d):
    """Q6_K; scales are int8's bits."""
    found = np.empty(16, F32)
    for b in range(x.shape[0]):
        for g in range(16):
            found[g] = _searched(x[b, 16 * g : 16 * g + 16], fused, codes[b, 16 * g : 16 * g + 16])
        widest, most = _widest(found)
        if widest < TINY:
            codes[b, :] = 0
            scales[b, :] = 0
            d[b] = 0
            continue
        inverse = F32(-128) / most
        d[b] = _half(ONE / inverse)
        for g in range(16):
            near = _nearest(inverse, found[g], fused == ACROSS, -0x400000, 127)
            scales[b, g] = near & 0xFF
            step = _widened(np.int64(d[b])) * F32((near + 128) % 256 - 128)
            if step == 0:
                continue
            for i in range(16 * g, 16 * g + 16):
                codes[b, i] = _nearest(x[b, i] / step, ONE, False, -32, 31) + 32
