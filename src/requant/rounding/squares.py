"""How far decoded weights are from the base's: sums of squares in one pass, compiled by numba as `kernels.py` says."""

import numpy as np
from numba import njit

from requant.rounding.kernels import _OPTIONS


@njit(**_OPTIONS)
def sums_of_squares(decoded, weights, stretch, missed, whole):
    """Write sums of (decoded - weight)^2 and weight^2, float64 [rows, stretches], of so many inputs, a power of two.

    Both are float32 [rows, columns]. Squares are of float64, so that none is infinite, and added by halves: everywhere
    in one order.
    """
    squares = np.empty((2, stretch), np.float64)
    for r in range(weights.shape[0]):
        for s in range(whole.shape[1]):
            some, found = weights[r, s * stretch : (s + 1) * stretch], decoded[r, s * stretch : (s + 1) * stretch]
            if some.shape[0] < stretch:
                squares[:] = 0
            for i in range(some.shape[0]):
                away, weight = np.float64(found[i] - some[i]), np.float64(some[i])
                squares[0, i] = away * away
                squares[1, i] = weight * weight
            half = stretch // 2
            while half:
                for i in range(half):
                    squares[0, i] += squares[0, i + half]
                    squares[1, i] += squares[1, i + half]
                half //= 2
            missed[r, s], whole[r, s] = squares[0, 0], squares[1, 0]
