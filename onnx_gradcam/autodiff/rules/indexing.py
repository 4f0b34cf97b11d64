"""Rules of reading and writing at indices: the gradient of a read is a write that adds up, and vice versa."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, contract, numbers, one_hot, pad, reshape, sizes, vector


@vjp("Gather")
def gather(t: Builder, g: Value, y: Value, x: Value, indices: Value, *, axis: int = 0) -> Sequence[Cotangent]:
    """Padding around constant neighbours, a Gather where no element was picked twice, otherwise a product.

    There is no scatter: ONNX Runtime has no float16 kernel for one that adds up, and other runtimes have none at all.
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
    """The constant indices, if they can be inverted: all different, counted from one end."""
    picked = indices.ravel()
    if whole.known is not None:
        picked = picked % whole.known
    neighbours = bool(np.all(np.diff(picked) == 1)) and (picked[0] >= 0) == (picked[-1] >= 0)
    if neighbours or (whole.known is not None and len(np.unique(picked)) == len(picked)):
        return picked
    return None


def _gather_back(t: Builder, g: Value, picked: npt.NDArray[Any], whole: Size, axis: int) -> Value:
    """A Gather by which every element of the input picks its cotangent, or an appended row of zeros."""
    inverse = np.full(whole.known or 0, len(picked), np.int64)
    inverse[picked] = np.arange(len(picked))
    if len(picked) in inverse:
        g = pad(t, g, [axis], [Size(t, 0)], [Size(t, 1)])
    return t.op("Gather", g, t.const(inverse), axis=axis)


Put = Callable[[Value, Value, str], Value]
"""Writes values into a tensor: `put(base, values, reduction)`."""

Pick = Callable[[Value], Value]
"""Reads a tensor at the positions that `Put` writes to."""


def reducing(t: Builder, put: Put) -> Put:
    """`put`, in float32 where it reduces narrower numbers, for which ONNX Runtime has no kernel."""

    def wide(base: Value, values: Value, reduction: str) -> Value:
        dtype = base.dtype
        if reduction == "none" or dtype is None or dtype.itemsize >= 4:
            return put(base, values, reduction)
        return t.cast(put(t.cast(base, np.float32), t.cast(values, np.float32), reduction), dtype)

    return wide


def scatter_add(t: Builder, base: Value, indices: Value, values: Value, axis: int) -> Value:
    """`base` with `values` added at `indices` along `axis`."""
    return reducing(t, _put_elements(t, indices, axis))(base, values, "add")


@vjp("GatherElements")
def gather_elements(t: Builder, g: Value, y: Value, x: Value, indices: Value, *, axis: int = 0) -> Sequence[Cotangent]:
    """Cotangents added up at the elements that were picked."""
    return [lambda: scatter_add(t, t.full_like(x, 0.0), indices, g, axis % x.rank), None]


@vjp("GatherND")
def gather_nd(t: Builder, g: Value, y: Value, x: Value, indices: Value, *, batch_dims: int = 0) -> Sequence[Cotangent]:
    """Cotangents added up at the slices that were picked."""

    def back() -> Value:
        positions = t.cast(indices, np.int64)
        lead = sizes(t, indices)[:-1]
        shape = vector(t, [*lead, 1])
        columns = []
        for i in range(batch_dims):
            column = reshape(t, numbers(t, lead[i]), [-1 if j == i else 1 for j in range(len(lead) + 1)])
            columns.append(t.op("Expand", column, shape, shape=(*(d.known for d in lead), 1)))
        if columns:
            positions = t.op("Concat", *columns, positions, axis=len(lead))
        put = reducing(t, _put_slices(t, positions))
        return put(t.full_like(x, 0.0), g, "add")

    return [back, None]


@vjp("ScatterElements")
def scatter_elements(
    t: Builder, g: Value, y: Value, data: Value, indices: Value, updates: Value,
    *, axis: int = 0, reduction: str = "none",
) -> Sequence[Cotangent]:  # fmt: skip
    """See `_scatter`."""
    axis %= data.rank

    def pick(v: Value) -> Value:
        return t.op("GatherElements", v, indices, axis=axis)

    by_data, by_updates = _scatter(t, g, y, data, updates, reduction, _put_elements(t, indices, axis), pick)
    return [by_data, None, by_updates]


@vjp("ScatterND")
def scatter_nd(
    t: Builder, g: Value, y: Value, data: Value, indices: Value, updates: Value, *, reduction: str = "none"
) -> Sequence[Cotangent]:
    """See `_scatter`."""

    def pick(v: Value) -> Value:
        return t.op("GatherND", v, indices)

    by_data, by_updates = _scatter(t, g, y, data, updates, reduction, _put_slices(t, indices), pick)
    return [by_data, None, by_updates]


def _put_elements(t: Builder, indices: Value, axis: int) -> Put:
    return lambda base, values, reduction: t.op(
        "ScatterElements", base, indices, values, axis=axis, reduction=reduction, shape=base.shape
    )


def _put_slices(t: Builder, indices: Value) -> Put:
    return lambda base, values, reduction: t.op(
        "ScatterND", base, indices, values, reduction=reduction, shape=base.shape
    )


def _scatter(
    t: Builder, g: Value, y: Value, data: Value, updates: Value, reduction: str, put: Put, pick: Pick
) -> tuple[Cotangent, Cotangent]:
    """The cotangents of `data` and `updates`.

    An overwritten element gets zero, a summand the cotangent of the sum, a factor that times the other factors, and the
    elements that equal an extremum share its cotangent.
    """
    put = reducing(t, put)
    if reduction == "none":
        return lambda: put(g, t.full_like(updates, 0.0), "none"), lambda: pick(g)
    if reduction == "add":
        return g, lambda: pick(g)
    if reduction == "mul":
        return lambda: put(g, updates, "mul"), lambda: _by_factor(t, g, data, updates, put, pick)
    kept, written = t.op("Equal", data, y), t.op("Equal", updates, pick(y))
    shares = g / put(t.cast(kept, g.dtype), t.cast(written, g.dtype), "add")
    return lambda: t.op("Where", kept, shares, 0.0), lambda: t.op("Where", written, pick(shares), 0.0)


def _by_factor(t: Builder, g: Value, data: Value, updates: Value, put: Put, pick: Pick) -> Value:
    """The cotangent times the product of all other factors; nothing is divided by zero."""
    zero = t.op("Equal", updates, t.const(0, updates.dtype))
    safe = t.op("Where", zero, 1.0, updates)
    rest = pick(g * put(data, safe, "mul")) / safe
    others = pick(put(t.full_like(data, 0.0), t.cast(zero, g.dtype), "add")) - t.cast(zero, g.dtype)
    return t.op("Where", others < 0.5, rest, 0.0)


@vjp("TensorScatter")
def tensor_scatter(
    t: Builder, g: Value, y: Value, cache: Value, update: Value, write_indices: Value | None = None,
    *, axis: int = -2, mode: str = "linear",
) -> Sequence[Cotangent]:  # fmt: skip
    """The cache gets the entries that stay, the update those that were written."""
    axis %= cache.rank

    def overwritten() -> Value:
        zeros = t.full_like(update, 0.0)
        return t.op("TensorScatter", g, zeros, write_indices, axis=axis, mode=mode, shape=cache.shape)

    def written() -> Value:
        dims = sizes(t, update)
        positions = reshape(t, numbers(t, dims[axis]), [-1 if i == axis else 1 for i in range(update.rank)])
        if write_indices is not None:
            positions = reshape(t, write_indices, [-1, *[1] * (update.rank - 1)]) + positions
        if mode == "circular":
            positions = t.op("Mod", positions, sizes(t, cache, [axis])[0].vector())
        return t.op("GatherElements", g, t.op("Expand", positions, vector(t, dims)), axis=axis, shape=update.shape)

    return [overwritten, written, None]


@vjp("TopK", all_outputs=True)
def top_k(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value, k: Value,
    *, axis: int = -1, largest: int = 1, sorted: int = 1,  # noqa: A002 - the attribute's name
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangents, written to the positions of the selected elements."""
    g, indices = gs[0], ys[1]
    if g is None:
        return [None, None]
    return [lambda: _put_elements(t, indices, axis % x.rank)(t.full_like(x, 0.0), g, "none"), None]


@vjp("Compress")
def compress(
    t: Builder, g: Value, y: Value, x: Value, condition: Value, *, axis: int | None = None
) -> Sequence[Cotangent]:
    """Every selected element picks the cotangent of its rank; the others pick an appended zero."""

    def back() -> Value:
        along = 0 if axis is None else axis % x.rank
        dims = sizes(t, x)
        whole = Size(t, 1)
        for size in dims if axis is None else dims[along : along + 1]:
            whole *= size
        chosen = t.cast(condition, np.int64)
        chosen = pad(t, chosen, [0], [Size(t, 0)], [whole - sizes(t, chosen)[0]])
        rank = t.op("CumSum", chosen, t.const(np.int64(0)), exclusive=1)
        positions = t.op("Where", t.cast(chosen, np.bool_), rank, sizes(t, g, [along])[0].vector())
        longer = pad(t, g, [along], [Size(t, 0)], [Size(t, 1)])
        return t.reshape_like(t.op("Gather", longer, positions, axis=along), x)

    return [back, None]


@vjp("OneHot")
def one_hot_(
    t: Builder, g: Value, y: Value, indices: Value, depth: Value, values: Value, *, axis: int = -1
) -> Sequence[Cotangent]:
    """The cotangents summed over the cold elements, and over the hot ones."""

    def back() -> Value:
        hot = t.cast(t.op("OneHot", indices, depth, t.const([0, 1], np.float32), axis=axis), g.dtype)
        everything, on = t.sum(g, keepdims=False), t.sum(g * hot, keepdims=False)
        first = t.ints(0)
        return t.op("Concat", t.op("Unsqueeze", everything - on, first), t.op("Unsqueeze", on, first), axis=0)

    return [None, None, back]


@vjp("ReverseSequence")
def reverse_sequence(
    t: Builder, g: Value, y: Value, x: Value, lengths: Value, *, batch_axis: int = 1, time_axis: int = 0
) -> Sequence[Cotangent]:
    """The same reversal."""
    return [t.op("ReverseSequence", g, lengths, batch_axis=batch_axis, time_axis=time_axis), None]
