"""Pixels that are taken away and filled in from what is left."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["impute"]

Array = npt.NDArray[Any]

_ACCURACY: Final = 1e-5
"""Of a step, relative to the picture's largest value; what is left is up to a hundred times as much."""

_MOST_STEPS: Final = 2000


def impute(picture: Array, kept: npt.NDArray[np.bool_], start: Array | None = None) -> npt.NDArray[np.float32]:
    """Linear imputation: every missing pixel is the mean of its eight neighbours, missing ones among them.

    Rong et al. 2022 (A consistent and efficient evaluation strategy for attribution methods), section 4.2: neighbours
    along a side weigh 1/6, along a diagonal 1/12, and those outside of the picture nothing. The system of equations is
    symmetric, and is solved by conjugate gradients.

    Args:
        picture: float ``[C, H, W]``.
        kept: the pixels that are there, bool ``[H, W]``, at least one.
        start: a guess of the result, ``[C, H, W]``: the same with fewer pixels missing is a good one.
    """
    known = np.where(kept, picture, 0).astype(np.float32)
    missing = (~kept).astype(np.float32)
    present = _neighbours(np.ones(kept.shape, np.float32))

    def equations(values: Array) -> Array:
        found: Array = missing * (present * values - _neighbours(values))
        return found

    mean = (known.sum((1, 2)) / kept.sum())[:, None, None]
    values = missing * (mean if start is None else start)
    left = missing * _neighbours(known) - equations(values)
    step = way = left / present
    size, enough = _dot(left, way), _ACCURACY * float(np.abs(known).max())
    for _ in range(_MOST_STEPS):
        if np.abs(step).max() <= enough:
            break
        change = equations(way)
        length = size / np.maximum(_dot(way, change), np.finfo(np.float32).tiny)
        values = values + length * way
        left = left - length * change
        step = left / present
        before, size = size, _dot(left, step)
        way = step + size / np.maximum(before, np.finfo(np.float32).tiny) * way
    return np.where(kept, picture, values).astype(np.float32)


def _neighbours(values: Array) -> Array:
    """The weighted sum of the eight neighbours of every pixel of ``[..., H, W]``; zero lies around the picture."""
    wide = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    rows = wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]
    block = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    found: Array = (block - 4 * values) / 12
    return found


def _dot(a: Array, b: Array) -> Array:
    """The scalar product of each channel, ``[C, 1, 1]``."""
    product: Array = (a * b).sum((1, 2), keepdims=True)
    return product
