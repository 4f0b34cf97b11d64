"""Keras operations that rearrange tensors: shapes, indices, slices, order of axes and elements.

Operations that do not keep the axes in their places are written in Keras's own order of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import operation
from onnx_gradcam.graph.builder import Value

from .convolutions import numbers
from .structure import END, reshaped

__all__ = ["without_axes"]

_MOST = 4096
"""The most parts, repeats or values of a patch; more are no model's but an attack on the memory."""


def without_axes(call: Call, x: Tensor, axes: Sequence[int], y: Value) -> Tensor:
    """`y`, which is `x` without Keras's `axes`, with the remaining axes in Keras's order; maps are moved again."""
    kept = [x.axis(a) for a in range(x.rank) if a not in axes]
    return call.settle(Tensor(call.writer.transpose(y, [sorted(kept).index(k) for k in kept])))


@operation("Reshape", tf=["reshape"])
def reshape(call: Call, x: Tensor, newshape: Any) -> Tensor:
    """Another shape, with the elements in Keras's order; the first size is computed."""
    first, *rest = [-1 if d is None else d for d in newshape]
    if first != -1:
        call.refuse(f"it gives the batch the size {first}")
    own = call.plain(x).shape[1:]
    sizes = [*own, *rest]
    if -1 in rest or not all(isinstance(d, int) for d in sizes) or _product(own) == _product(rest):
        return reshaped(call, x, rest)
    # The first axis is not the batch alone, such as in windows of an image.
    target = call.writer.ints(-1, *numbers(rest, len(rest)))
    return call.settle(Tensor(call.op("Reshape", call.plain(x).value, target)))


def _product(sizes: Sequence[int | str | None]) -> int:
    return math.prod(size for size in sizes if isinstance(size, int))


def _bounds(key: int | slice) -> tuple[int, int, int]:
    """Start, end and step of ONNX's Slice."""
    if isinstance(key, int):
        return key, key + 1 or END, 1
    step = 1 if key.step is None else int(key.step)
    start = (0 if step > 0 else END) if key.start is None else int(key.start)
    end = (END if step > 0 else -END) if key.stop is None else int(key.stop)
    return start, end, step


@operation("GetItem", tf=["__operators__.getitem"])
def get_item(call: Call, x: Tensor, key: Any) -> Tensor:
    """Indexing with integers, slices, an ellipsis and new axes, as in `x[..., 0]`; the batch stays whole."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    if keys.count(...) > 1 or not all(
        k in (..., None) or (isinstance(k, (int, slice)) and not isinstance(k, bool)) for k in keys
    ):
        call.refuse(f"it indexes with {key!r}")
    if None in keys:
        return _with_new_axes(call, x, keys)
    at = keys.index(...) if ... in keys else len(keys)
    rest = [k for k in keys if k is not ...]
    full = [*rest[:at], *[slice(None)] * (x.rank - len(rest)), *rest[at:]]
    if len(full) != x.rank or (full[0] != slice(None) and not isinstance(x.shape[0], int)):
        call.refuse(f"it indexes the batch, or more than {x.rank} axes")
    y = x.value
    for axis, k in enumerate(full):
        if k != slice(None):
            y = call.op("Slice", y, *map(call.writer.ints, (*_bounds(k)[:2], x.axis(axis), _bounds(k)[2])))
    dropped = [axis for axis, k in enumerate(full) if isinstance(k, int)]
    if not dropped:
        return Tensor(y, x.moved)
    return without_axes(call, x, dropped, call.op("Squeeze", y, call.writer.ints(*(x.axis(a) for a in dropped))))


def _with_new_axes(call: Call, x: Tensor, keys: list[Any]) -> Tensor:
    """Indexing with `None` for axes of size one."""
    indexed = get_item(call, x, [k for k in keys if k is not None])
    places, axis, count = [], 0, sum(k is not None and k is not ... for k in keys)
    for k in keys:
        if k is None:
            places.append(axis)
        axis += x.rank - count if k is ... else not isinstance(k, int)
    return expand_dims(call, indexed, places)


@operation("Stack", tf=["stack"])
def stack(call: Call, *xs: Any, axis: Any = 0) -> Tensor:
    """Tensors, or those of a list, along a new axis."""
    tensors = [call.plain(x).value for x in (xs[0] if isinstance(xs[0], list) else xs)]
    rank = tensors[0].rank + 1
    if axis % rank == 0:
        call.refuse("it stacks along the batch")
    # Maps get their channels second at once.
    moved = axis % rank == rank - 1 and rank >= 4 and call.channels_last
    place = 1 if moved else axis % rank
    raised = [call.op("Unsqueeze", value, call.writer.ints(place)) for value in tensors]
    y = Tensor(call.op("Concat", *raised, axis=place), moved)
    return y if moved else call.settle(y)


@operation("Concatenate", tf=["concat"])
def concatenate(call: Call, *xs: Any, axis: Any = -1) -> Tensor:
    """Concatenation of tensors or a list of them along one axis."""
    values, moved = call.aligned(xs[0] if isinstance(xs[0], list) else xs)
    return Tensor(call.op("Concat", *values, axis=Tensor(values[0], moved).axis(axis)), moved)


@operation("Transpose", tf=["transpose", "compat.v1.transpose"])
def transpose(call: Call, x: Tensor, axes: Any = None, *, perm: Any = None, conjugate: Any = False) -> Tensor:
    """The axes in another order, reversed by default; real numbers are their own conjugates."""
    del conjugate
    order = axes if axes is not None else perm if perm is not None else range(x.rank)[::-1]
    return _permuted(call, x, [axis % x.rank for axis in numbers(list(order), x.rank, -x.rank)])


@operation("Swapaxes")
def swap_axes(call: Call, x: Tensor, axis1: Any, axis2: Any) -> Tensor:
    """Two axes exchanged."""
    order = list(range(x.rank))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return _permuted(call, x, order)


@operation("Moveaxis")
def move_axis(call: Call, x: Tensor, source: Any, destination: Any) -> Tensor:
    """Axes moved to other places."""
    return _permuted(call, x, [int(i) for i in np.moveaxis(np.empty(range(x.rank)), source, destination).shape])


def _permuted(call: Call, x: Tensor, order: list[int]) -> Tensor:
    return call.settle(Tensor(call.op("Transpose", call.plain(x).value, perm=order)))


@operation("ExpandDims", tf=["expand_dims"])
def expand_dims(call: Call, x: Tensor, axis: Any) -> Tensor:
    """New axes of size one."""
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return call.settle(Tensor(call.op("Unsqueeze", call.plain(x).value, call.writer.ints(*axes))))


@operation("Squeeze", tf=["squeeze", "compat.v1.squeeze"])
def squeeze(call: Call, x: Tensor, axis: Any = None) -> Tensor:
    """Axes of size one removed, all of them by default."""
    if axis is None:
        axis = [i for i, size in enumerate(x.shape) if size == 1]
    axes = sorted(a % x.rank for a in (axis if isinstance(axis, (list, tuple)) else [axis]))
    return without_axes(call, x, axes, call.op("Squeeze", x.value, call.writer.ints(*(x.axis(a) for a in axes))))


@operation("Split", tf=["split"])
def split(
    call: Call, x: Tensor, indices_or_sections: Any = None, axis: Any = 0, *, num_or_size_splits: Any = None
) -> list[Tensor]:
    """Parts along one axis: a number of equal ones, those between indices, or (TensorFlow) those of given sizes."""
    size = _size(call, x, axis)
    if isinstance(num_or_size_splits, (list, tuple)):
        sizes = numbers(list(num_or_size_splits), len(num_or_size_splits))
    elif isinstance(indices_or_sections, (list, tuple)):
        ends = [0, *numbers(list(indices_or_sections), len(indices_or_sections), 0), size]
        sizes = [end - start for start, end in pairwise(ends)]
    else:
        count = int(num_or_size_splits or indices_or_sections)
        sizes = [size // count] * min(count, size)
    if sum(sizes) != size or min(sizes) < 1:
        call.refuse(f"it splits {size} positions into {sizes}")
    return [Tensor(y, x.moved) for y in _parts(call, x, axis, sizes)]


@operation("Unstack", tf=["unstack"])
def unstack(call: Call, x: Tensor, num: Any = None, axis: Any = 0) -> list[Tensor]:
    """The tensors that an axis holds."""
    size = _size(call, x, axis)
    if num not in (None, size):
        call.refuse(f"it makes {num} tensors of {size} positions")
    parts = _parts(call, x, axis, [1] * min(size, _MOST + 1))
    return [squeeze(call, Tensor(part, x.moved), axis) for part in parts]


def _parts(call: Call, x: Tensor, axis: int, sizes: list[int]) -> list[Value]:
    if len(sizes) > _MOST:
        call.refuse(f"it makes {len(sizes)} tensors")
    if len(sizes) == 1:
        return [x.value]
    return list(call.writer.ops("Split", x.value, call.writer.ints(*sizes), outputs=len(sizes), axis=x.axis(axis)))


def _size(call: Call, x: Tensor, axis: int) -> int:
    size = x.shape[axis]
    if not isinstance(size, int):
        call.refuse(f"the size of its axis {axis} is unknown")
    return size


@operation("Take", tf=["gather", "compat.v1.gather"])
def take(
    call: Call, x: Tensor, indices: Any, axis: Any = None, *, batch_dims: Any = 0, validate_indices: Any = None
) -> Tensor:
    """The positions of one axis that indices name."""
    del validate_indices
    if axis is None or batch_dims:
        call.refuse("it takes elements across axes")
    if isinstance(indices, Tensor):
        call.refuse("its indices are computed")
    index = np.asarray(indices).astype(np.int64)
    if index.ndim == 1:
        return Tensor(call.op("Gather", x.value, call.writer.const(index), axis=x.axis(axis)), x.moved)
    taken = call.op("Gather", call.plain(x).value, call.writer.const(index), axis=axis % x.rank)
    return call.settle(Tensor(taken))


@operation("Tile", tf=["tile"])
def tile(call: Call, x: Tensor, repeats: Any = None, *, multiples: Any = None) -> Tensor:
    """The tensor repeated along its axes."""
    given = repeats if multiples is None else multiples
    times = numbers(given, len(given) if isinstance(given, (list, tuple)) else 1)
    if len(times) > x.rank:
        call.refuse(f"it repeats {len(times)} axes of a tensor of rank {x.rank}")
    times = [1] * (x.rank - len(times)) + times
    return call.settle(Tensor(call.op("Tile", call.plain(x).value, call.writer.ints(*times))))


@operation("Repeat", tf=["repeat"])
def repeat(call: Call, x: Tensor, repeats: Any, axis: Any = None) -> Tensor:
    """Every position of one axis repeated."""
    if axis is None:
        call.refuse("it repeats elements across axes")
    if np.ndim(repeats) or not 1 <= repeats <= _MOST:
        call.refuse(f"it repeats positions {repeats!r} times")
    return take(call, x, np.repeat(np.arange(_size(call, x, axis)), repeats), axis)


@operation("Roll", tf=["roll"])
def roll(call: Call, x: Tensor, shift: Any, axis: Any = None) -> Tensor:
    """Positions shifted along axes; those that leave at the end come in at the start."""
    if axis is None:
        call.refuse("it shifts elements across axes")
    shifts, axes = ([v] if isinstance(v, int) else list(v) for v in (shift, axis))
    y = x
    for by, place in zip(shifts, axes, strict=True):
        y = take(call, y, np.roll(np.arange(_size(call, y, place)), by), place)
    return y


@operation("Flip", tf=["reverse"])
def flip(call: Call, x: Tensor, axis: Any = None) -> Tensor:
    """The positions of some axes in reverse."""
    axes = [axis] if isinstance(axis, int) else list(range(1, x.rank) if axis is None else axis)
    full = slice(None)
    keys = [slice(None, None, -1) if i in {a % x.rank for a in axes} else full for i in range(x.rank)]
    return get_item(call, x, keys)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge"}


@operation("Pad", tf=["pad"])
def pad(
    call: Call,
    x: Tensor,
    pad_width: Any = None,
    constant_values: Any = None,
    *,
    mode: str = "constant",
    paddings: Any = None,
) -> Tensor:
    """Positions added around the tensor; zeros are written as -0.0, see `zero_padding`."""
    kind = _PAD_MODES.get(mode.lower())
    if kind is None:
        call.refuse(f"its mode {mode!r} is not supported")
    widths = np.broadcast_to(np.asarray(pad_width if paddings is None else paddings, np.int64), (x.rank, 2))
    pairs = {x.axis(axis): widths[axis] for axis in range(x.rank)}
    starts, ends = ([int(pairs[axis][side]) for axis in range(x.rank)] for side in (0, 1))
    fill = call.writer.const(np.float32(constant_values or -0.0))
    padded = call.op("Pad", x.value, call.writer.ints(*starts, *ends), fill if kind == "constant" else None, mode=kind)
    return Tensor(padded, x.moved)


@operation("ExtractPatches")
def extract_patches(
    call: Call,
    x: Tensor,
    *,
    size: Any,
    strides: Any = None,
    dilation_rate: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """Patches of maps with their pixels as channels, row by row: a convolution whose kernel is the identity."""
    if padding != "valid" or set(numbers(dilation_rate, 2)) != {1}:
        call.refuse(f"its patches overlap the border (padding {padding!r}) or are dilated")
    maps, (height, width) = call.maps(x, data_format), numbers(size, 2)
    channels = maps.shape[1]
    if not isinstance(channels, int):
        call.refuse("its number of channels is unknown")
    count = height * width * channels
    if count > _MOST:
        call.refuse(f"its patches hold {count} values")
    kernel = np.eye(count, dtype=np.float32).reshape(count, height, width, channels).transpose(0, 3, 1, 2)
    patches = call.op("Conv", maps, call.writer.const(kernel), strides=numbers(strides or size, 2))
    return call.mapped(patches, data_format)
