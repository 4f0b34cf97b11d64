"""Sizes and indices that several families of rules share.

`Size` is arithmetic on dimensions: plain numbers where a size is known, nodes where only the running model knows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_gradcam.graph.builder import Builder, Value

__all__ = [
    "Size",
    "contract",
    "cut",
    "identity",
    "index_along",
    "numbers",
    "one_hot",
    "pad",
    "reshape",
    "size_at",
    "sizes",
    "vector",
]


class Size:
    """A dimension or an offset: an `int`, or an `int64` vector of one element."""

    __slots__ = ("_t", "value")

    def __init__(self, t: Builder, value: int | Value) -> None:
        self._t = t
        self.value = value

    @property
    def known(self) -> int | None:
        """The number; `None` where it is unknown."""
        return self.value if isinstance(self.value, int) else None

    def vector(self) -> Value:
        """The size as an `int64` vector of one element."""
        return self._t.ints(self.value) if isinstance(self.value, int) else self.value

    def _node(self, op_type: str, other: Size | int) -> Size:
        return Size(self._t, self._t.op(op_type, self.vector(), self._lift(other).vector()))

    def _lift(self, other: Size | int) -> Size:
        return other if isinstance(other, Size) else Size(self._t, other)

    def __add__(self, other: Size | int) -> Size:
        a, b = self.known, self._lift(other).known
        if a is not None and b is not None:
            return Size(self._t, a + b)
        if b == 0:
            return self
        return self._lift(other) if a == 0 else self._node("Add", other)

    __radd__ = __add__

    def __sub__(self, other: Size | int) -> Size:
        b = self._lift(other).known
        return self + -b if b is not None else self._node("Sub", other)

    def __rsub__(self, other: int) -> Size:
        return self._lift(other) - self

    def __mul__(self, other: Size | int) -> Size:
        a, b = self.known, self._lift(other).known
        if a is not None and b is not None:
            return Size(self._t, a * b)
        if b == 1:
            return self
        return self._lift(other) if a == 1 else self._node("Mul", other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Size:
        """The quotient, rounded down, of two numbers that are not negative."""
        if other == 1:
            return self
        return Size(self._t, self.value // other) if isinstance(self.value, int) else self._node("Div", other)

    def _extreme(self, op_type: str, bound: Size | int) -> Size:
        a, b = self.known, self._lift(bound).known
        if a is None or b is None:
            return self._node(op_type, bound)
        return Size(self._t, max(a, b) if op_type == "Max" else min(a, b))

    def least(self, bound: Size | int) -> Size:
        """The larger of this size and `bound`."""
        return self._extreme("Max", bound)

    def most(self, bound: Size | int) -> Size:
        """The smaller of this size and `bound`."""
        return self._extreme("Min", bound)


def sizes(t: Builder, x: Value, axes: Sequence[int] | None = None) -> list[Size]:
    """The dimensions of `x` along `axes` (all of them by default)."""
    dims = x.shape
    axes = range(len(dims)) if axes is None else [a % len(dims) for a in axes]
    return [Size(t, d if isinstance(d := dims[a], int) else t.op("Shape", x, start=a, end=a + 1)) for a in axes]


def size_at(t: Builder, numbers: Value, index: int) -> Size:
    """Entry `index` of a vector of integers."""
    array = numbers.array()
    if array is not None:
        return Size(t, int(array.ravel()[index]))
    return Size(t, t.cast(t.op("Slice", numbers, t.ints(index), t.ints(index + 1), t.ints(0)), np.int64))


def vector(t: Builder, entries: Sequence[Size | int]) -> Value:
    """`entries` as one `int64` vector; a constant where all are known."""
    values = [e.value if isinstance(e, Size) else e for e in entries]
    if all(isinstance(v, int) for v in values):
        return t.ints(*(v for v in values if isinstance(v, int)))
    return t.op("Concat", *(t.ints(v) if isinstance(v, int) else v for v in values), axis=0)


def reshape(t: Builder, x: Value, dims: Sequence[Size | int]) -> Value:
    """`x` with the dimensions `dims`, of which at most one is -1."""
    shape = [d.known if isinstance(d, Size) else d for d in dims]
    # Without a dimension to infer, zero means zero, and not "as in the input".
    zero = None if -1 in shape else 1
    return t.op("Reshape", x, vector(t, dims), allowzero=zero, shape=tuple(None if d == -1 else d for d in shape))


def cut(t: Builder, x: Value, axes: Sequence[int], starts: Sequence[Size], lengths: Sequence[Size]) -> Value:
    """The block of `x` that begins at `starts` and has `lengths` along `axes`."""
    shape = list(x.shape)
    shortened = []
    for i, (axis, start, length) in enumerate(zip(axes, starts, lengths, strict=True)):
        if start.known != 0 or length.known is None or length.known != shape[axis]:
            shortened.append(i)
        shape[axis] = length.known
    if not shortened:
        return x
    begin = vector(t, [starts[i] for i in shortened])
    end = vector(t, [starts[i] + lengths[i] for i in shortened])
    return t.op("Slice", x, begin, end, t.ints(*(axes[i] for i in shortened)), shape=tuple(shape))


def pad(
    t: Builder, x: Value, axes: Sequence[int], before: Sequence[Size], after: Sequence[Size], fill: float = 0.0
) -> Value:
    """`x` padded with `fill` along `axes`; no amount is negative."""
    if all(a.known == 0 for a in (*before, *after)):
        return x
    rank = x.rank
    amounts: list[Size | int] = [0] * (2 * rank)
    for axis, b, a in zip(axes, before, after, strict=True):
        amounts[axis], amounts[axis + rank] = b, a
    return t.op("Pad", x, vector(t, amounts), t.const(fill, x.dtype) if fill else None)


def numbers(t: Builder, count: Size) -> Value:
    """The vector 0, 1, 2 ... of length `count`."""
    if count.known is not None:
        return t.const(np.arange(count.known))
    return t.op("Range", t.const(np.int64(0)), t.op("Squeeze", count.vector(), t.ints(0)), t.const(np.int64(1)))


def one_hot(t: Builder, indices: Value, depth: Size, dtype: npt.DTypeLike | None) -> Value:
    """One row for each index, of length `depth`, with a one at the index; negative indices count from the end.

    It is computed by a comparison, which stores nothing large and has a kernel for every type.
    """
    indices = t.cast(indices, np.int64)
    wrapped = t.op("Where", indices < 0, indices + depth.vector(), indices)
    rows, columns = t.op("Unsqueeze", wrapped, t.ints(1)), t.op("Unsqueeze", numbers(t, depth), t.ints(0))
    return t.cast(t.op("Equal", rows, columns), dtype)


def identity(t: Builder, size: Size, dtype: npt.DTypeLike | None) -> Value:
    """The identity matrix; see `one_hot`."""
    index = numbers(t, size)
    rows, columns = t.op("Unsqueeze", index, t.ints(1)), t.op("Unsqueeze", index, t.ints(0))
    return t.cast(t.op("Equal", rows, columns), dtype)


def contract(t: Builder, g: Value, matrix: Value, axis: int) -> Value:
    """The product of `g` and `matrix` over dimension `axis`: `[.., K, ..]` and `[K, D]` become `[.., D, ..]`."""
    axis %= g.rank
    if axis == g.rank - 1:
        return t.op("MatMul", g, matrix)
    turned = t.transpose(matrix, (1, 0))
    if axis == g.rank - 2:
        return t.op("MatMul", turned, g)
    dims = sizes(t, g)
    if axis == 0:
        flat = t.op("MatMul", turned, reshape(t, g, [dims[0], -1]))
    else:
        behind = dims[axis + 1]
        for d in dims[axis + 2 :]:
            behind *= d
        flat = t.op("MatMul", turned, reshape(t, g, [-1, dims[axis], behind]))
    return reshape(t, flat, [*dims[:axis], *sizes(t, matrix, [1]), *dims[axis + 1 :]])


def index_along(t: Builder, x: Value, axis: int) -> Value:
    """0, 1, 2 ... along one dimension of `x`, `int64`, of size one along the others."""
    size = x.shape[axis]
    shape = [1] * x.rank
    shape[axis] = -1
    if isinstance(size, int):
        return t.const(np.arange(size).reshape(shape))
    count = t.op("Squeeze", t.op("Shape", x, start=axis, end=axis + 1))
    index = t.op("Range", t.const(np.int64(0)), count, t.const(np.int64(1)))
    return t.op("Reshape", index, t.ints(*shape))
