"""Picking elements by index: the gradient adds up where an element was picked, and is zero where none was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, contract, one_hot, pad, reshape, sizes


@vjp("Gather")
def gather(
    t: Builder,
    g: Value,
    y: Value,
    x: Value,
    indices: Value,
    *,
    axis: int = 0,
) -> Sequence[Cotangent]:
    """A block of zeros around constant neighbours, a Gather back where no element was picked twice, else a product.

    No scatter: ONNX Runtime adds none up in float16, and other runtimes have none.
    """
    axis %= x.rank

    def back() -> Value:
        (whole,) = sizes(t, x, [axis])
        dims = sizes(t, g)
        rank = indices.rank
        count = Size(t, 1)
        for size in dims[axis : axis + rank]:
            count *= size
        column = g if rank == 1 else reshape(t, g, [*dims[:axis], count, *dims[axis + rank :]])
        constant = indices.array()
        if constant is not None and constant.size == 0:
            return t.full_like(x, 0.0)
        picked = None if constant is None else _picked(constant, whole)
        if picked is None:
            return contract(t, column, one_hot(t, reshape(t, indices, [-1]), whole, x.dtype), axis)
        if all(b - a == 1 for a, b in itertools.pairwise(picked)):
            first = Size(t, int(picked[0])) if picked[0] >= 0 else whole + int(picked[0])
            return pad(t, column, [axis], [first], [whole - first - len(picked)])
        return _gather_back(t, column, picked, whole, axis)

    return [back, None]


def _picked(indices: npt.NDArray[Any], whole: Size) -> npt.NDArray[Any] | None:
    """The constant indices where they can be inverted: none twice, counted from one end."""
    picked = indices.ravel()
    if whole.known is not None:
        picked = picked % whole.known
    neighbours = bool(np.all(np.diff(picked) == 1)) and (picked[0] >= 0) == (picked[-1] >= 0)
    if neighbours or (whole.known is not None and len(np.unique(picked)) == len(picked)):
        return picked
    return None


def _gather_back(t: Builder, g: Value, picked: npt.NDArray[Any], whole: Size, axis: int) -> Value:
    """Every element of the input picks its cotangent, or the row of zeros that is appended."""
    inverse = np.full(whole.known or 0, len(picked), np.int64)
    inverse[picked] = np.arange(len(picked))
    if len(picked) in inverse:
        g = pad(t, g, [axis], [Size(t, 0)], [Size(t, 1)])
    return t.op("Gather", g, t.const(inverse), axis=axis)
