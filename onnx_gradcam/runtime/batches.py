"""Models that allow one batch size only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .session import InputInfo

__all__ = ["fixed_size", "in_batches", "in_type"]

Array = npt.NDArray[Any]
Run = Callable[[Array, Sequence[int]], dict[str, Array]]


def fixed_size(picture: InputInfo) -> int | None:
    """The batch size, where the model allows only one."""
    size = picture.shape[0]
    return size if isinstance(size, int) and size > 0 else None


def in_type(values: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in the type of a model's input: where that is whole numbers, rounded and cut off at its ends."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def in_batches(run: Run, rows: Array, classes: Sequence[int], size: int | None) -> dict[str, Array]:
    """Run any number of rows through a model of a fixed batch size, the last row repeated to fill a batch.

    Args:
        run: takes `size` rows and their classes.
        rows: one row a sample.
        classes: one a row.
        size: the one batch size; `None` where any will do.

    Returns:
        All outputs by name, one row a sample.
    """
    if size is None or size == len(rows):
        return run(rows, classes)
    parts = []
    for start in range(0, len(rows), size):
        some, wanted = rows[start : start + size], list(classes[start : start + size])
        missing = size - len(some)
        padded = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
        parts.append({k: v[: len(some)] for k, v in run(padded, wanted + wanted[-1:] * missing).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
