"""MXNet's reshaping, slicing and concatenation."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.shapes import Shape

from .operator_table import SHAPE_REMEDY, Ints, SizeError, SparseInts, fixed, fixed_sizes, mxnet_operator

__all__: list[str] = []

_TO_THE_END = 2**63 - 1
_MOST_PARTS = 4096


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ExportError(f"its axis is {axis}, but its input has {rank} dimensions; save the symbol again")
    return axis % rank


@mxnet_operator("Flatten", layout="lost")
def flatten(t: Writer, data: Value) -> Value:
    """All axes but the batch as one."""
    return data if data.rank == 2 else t.op("Flatten", data, axis=1)


# A planned dimension is a number, -1 for the rest, or the input dimensions whose product it is.


@mxnet_operator("Reshape", ignored=("target_shape", "keep_highest"), layout="lost")
def reshape(t: Writer, data: Value, *, shape: Ints = (), reverse: bool = False) -> Value:
    """MXNet `src/operator/tensor/matrix_op-inl.h`, `InferReshapeShape`.

    0 keeps a dimension, -1 takes the rest, -2 keeps all others, -3 merges two, -4 splits one into the two numbers
    that follow. `reverse` reads both shapes from the right.
    """
    if not shape:
        raise ExportError("its attribute shape is empty (target_shape is obsolete); save the symbol again")
    return _reshaped(t, data, _planned(data.shape, shape, reverse=reverse))


def _planned(dims: Shape, codes: Ints, *, reverse: bool) -> list[int | tuple[int, ...]]:
    if not reverse:
        return _decoded(dims, list(codes))
    if -4 in codes:
        raise ExportError(f"its shape {codes} splits a dimension in reverse; save the symbol without reverse")
    rank = len(dims)
    planned = _decoded(dims[::-1], list(codes[::-1]))
    return [dim if isinstance(dim, int) else tuple(rank - 1 - i for i in dim) for dim in planned[::-1]]


def _decoded(dims: Shape, codes: list[int]) -> list[int | tuple[int, ...]]:
    planned: list[int | tuple[int, ...]] = []
    at, i = 0, 0
    while i < len(codes):
        code = codes[i]
        taken = {0: 1, -2: len(dims) - at, -3: 2, -4: 1}.get(code, 1)
        if code in (0, -2, -3, -4) and at + taken > len(dims):
            raise SizeError(f"its shape {codes} needs more dimensions than the {len(dims)} of its input")
        if code == 0:
            planned.append((at,))
        elif code == -2:
            planned.extend((j,) for j in range(at, len(dims)))
        elif code == -3:
            planned.append((at, at + 1))
        elif code == -4:
            planned.extend(_split(dims[at], codes[i + 1 : i + 3]))
            i += 2
        elif code >= -1:
            planned.append(code)
        else:
            raise ExportError(f"its attribute shape contains the unknown code {code}; save the symbol again")
        at, i = at + taken, i + 1
    if planned.count(-1) > 1:
        raise ExportError(f"its attribute shape {codes} leaves more than one dimension open; save the symbol again")
    return planned


def _split(dim: int | str | None, parts: list[int]) -> list[int]:
    if len(parts) != 2 or min(parts) < -1 or max(parts) < 1 or 0 in parts:
        raise ExportError(f"its attribute shape splits a dimension into {parts}; save the symbol again")
    if -1 in parts:
        rest = fixed(dim, "the dimension that it splits") // max(parts)
        parts = [rest if part == -1 else part for part in parts]
    return parts


def _reshaped(t: Writer, x: Value, planned: list[int | tuple[int, ...]]) -> Value:
    """Reshape with numbers where known, ONNX's codes for one kept or open dimension, arithmetic for the others."""
    numbers: list[int | None] = []
    for position, dim in enumerate(planned):
        if isinstance(dim, int):
            numbers.append(dim)
            continue
        sizes = [x.shape[i] for i in dim]
        if all(isinstance(size, int) for size in sizes):
            numbers.append(int(np.prod([size for size in sizes if isinstance(size, int)])))
        else:
            numbers.append(0 if dim == (position,) else None)
    if numbers.count(None) == 1 and -1 not in numbers:
        numbers[numbers.index(None)] = -1
    if None not in numbers:
        return t.op("Reshape", x, t.ints(*(number for number in numbers if number is not None)))
    shape = t.op("Shape", x)
    parts = []
    for dim, number in zip(planned, numbers, strict=True):
        if number is not None:
            parts.append(t.ints(number))
        elif isinstance(dim, tuple):
            part = t.op("Gather", shape, t.ints(dim[0]))
            for other in dim[1:]:
                part = part * t.op("Gather", shape, t.ints(other))
            parts.append(part)
    return t.op("Reshape", x, t.op("Concat", *parts, axis=0))


@mxnet_operator("transpose", layout="lost")
def transpose(t: Writer, data: Value, *, axes: Ints = ()) -> Value:
    """Permuted axes; reversed by default."""
    perm = [_axis(axis, data.rank) for axis in axes] or list(range(data.rank))[::-1]
    if sorted(perm) != list(range(data.rank)):
        raise ExportError(f"its axes {axes} do not name each of {data.rank} dimensions once; save the symbol again")
    return t.transpose(data, perm)


@mxnet_operator("SwapAxis", layout="lost")
def swap_axes(t: Writer, data: Value, *, dim1: int = 0, dim2: int = 0) -> Value:
    """Two axes swapped."""
    first, second = _axis(dim1, data.rank), _axis(dim2, data.rank)
    perm = list(range(data.rank))
    perm[first], perm[second] = second, first
    return t.transpose(data, perm)


@mxnet_operator("expand_dims", layout="lost")
def expand_dims(t: Writer, data: Value, *, axis: int) -> Value:
    """A new axis of size one."""
    return t.op("Unsqueeze", data, t.ints(_axis(axis, data.rank + 1)))


@mxnet_operator("squeeze", layout="lost")
def squeeze(t: Writer, data: Value, *, axis: Ints | None = None) -> Value:
    """Without axes of size one; the batch stays."""
    if axis is None:
        fixed_sizes(data, "which dimensions are one")
        axis = tuple(i for i, dim in enumerate(data.shape) if dim == 1)
    places = [_axis(i, data.rank) for i in axis]
    if 0 in places:
        raise ExportError(f"its axis is {axis}, which drops the batch; save a network that takes several images")
    return t.op("Squeeze", data, t.ints(*places))


@mxnet_operator("Concat", "concat", ignored=("num_args",))
def concat(t: Writer, *data: Value, dim: int = 1) -> Value:
    """Concatenated along an axis."""
    return t.op("Concat", *data, axis=_axis(dim, data[0].rank))


@mxnet_operator("stack", ignored=("num_args",), layout="lost")
def stack(t: Writer, *data: Value, axis: int = 0) -> Value:
    """Concatenated along a new axis."""
    place = _axis(axis, data[0].rank + 1)
    return t.op("Concat", *(t.op("Unsqueeze", x, t.ints(place)) for x in data), axis=place)


@mxnet_operator("SliceChannel", "split", layout="kept")
def slice_channel(
    t: Writer, data: Value, *, num_outputs: int, axis: int = 1, squeeze_axis: bool = False
) -> tuple[Value, ...]:
    """Equal parts along an axis, whose size may be free."""
    axis = _axis(axis, data.rank)
    size = data.shape[axis]
    if not 1 <= num_outputs <= _MOST_PARTS or (isinstance(size, int) and size % num_outputs):
        raise ExportError(
            f"it splits {size} elements into {num_outputs} parts; known are up to {_MOST_PARTS} equal ones"
        )
    parts = t.ops("Split", data, outputs=num_outputs, axis=axis, num_outputs=num_outputs)
    if not squeeze_axis:
        return parts
    return tuple(t.op("Squeeze", part, t.ints(axis)) for part in parts)


@mxnet_operator("slice", "crop")
def slice_(t: Writer, data: Value, *, begin: SparseInts, end: SparseInts, step: SparseInts = ()) -> Value:
    """A range of each axis; None is an open end."""
    if len(begin) != len(end) or len(begin) > data.rank or len(step) not in (0, len(begin)) or 0 in step:
        raise ExportError(f"its begin {begin}, end {end} and step {step} do not fit together; save it again")
    steps = [1 if number is None else number for number in step] or [1] * len(begin)
    starts = [(0 if s > 0 else _TO_THE_END) if b is None else b for b, s in zip(begin, steps, strict=True)]
    ends = [(_TO_THE_END if s > 0 else -_TO_THE_END) if e is None else e for e, s in zip(end, steps, strict=True)]
    return t.op("Slice", data, t.ints(*starts), t.ints(*ends), t.ints(*range(len(begin))), t.ints(*steps))


@mxnet_operator("slice_axis")
def slice_axis(t: Writer, data: Value, *, axis: int, begin: int, end: int | None) -> Value:
    """A range of one axis."""
    stop = _TO_THE_END if end is None else end
    return t.op("Slice", data, t.ints(begin), t.ints(stop), t.ints(_axis(axis, data.rank)))


@mxnet_operator("slice_like")
def slice_like(t: Writer, data: Value, shape_like: Value, *, axes: Ints = ()) -> Value:
    """The first elements along each axis, as many as another tensor has."""
    places = [_axis(axis, data.rank) for axis in axes] or list(range(shape_like.rank))
    if max(places) >= min(data.rank, shape_like.rank):
        raise SizeError(f"its axes {axes} are not dimensions of both its inputs; {SHAPE_REMEDY}")
    places = [i for i in places if data.shape[i] is None or data.shape[i] != shape_like.shape[i]]
    if not places:
        return data
    ends = t.op("Gather", t.shape_of(shape_like), t.ints(*places))
    return t.op("Slice", data, t.ints(*[0] * len(places)), ends, t.ints(*places))


@mxnet_operator("Crop", ignored=("num_args",), layout="made")
def crop(
    t: Writer,
    data: Value,
    crop_like: Value | None = None,
    *,
    offset: Ints = (0, 0),
    h_w: Ints = (0, 0),
    center_crop: bool = False,
) -> Value:
    """MXNet `src/operator/crop-inl.h`: crop height and width to a size, or to another tensor's."""
    target = h_w if crop_like is None else fixed_sizes(crop_like, "what it cuts to")
    if len(target) != 2 or len(offset) != 2 or min(*target, 1) < 1 or min(offset) < 0:
        raise ExportError(f"its offset is {offset} and its h_w {h_w}, but each must be two numbers")
    sizes = fixed_sizes(data, "what it cuts")
    top, left = ((h - w) // 2 for h, w in zip(sizes, target, strict=True)) if center_crop else offset
    if top < 0 or left < 0 or top + target[0] > sizes[0] or left + target[1] > sizes[1]:
        raise SizeError(f"it cuts {target} at {top, left} out of {sizes}, which is smaller; {SHAPE_REMEDY}")
    return t.op("Slice", data, t.ints(top, left), t.ints(top + target[0], left + target[1]), t.ints(2, 3))
