"""Rules of operators that move, cut or pad elements: the gradient moves them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, contract, cut, identity, pad, reshape, size_at, sizes, vector


@vjp("Flatten")
def flatten(t: Builder, g: Value, y: Value, x: Value, *, axis: int = 1) -> Sequence[Cotangent]:
    """The shape of the input."""
    return [t.reshape_like(g, x)]


@vjp("Reshape")
def reshaped(t: Builder, g: Value, y: Value, x: Value, shape: Value, *, allowzero: int = 0) -> Sequence[Cotangent]:
    """The shape of the input."""
    return [t.reshape_like(g, x), None]


@vjp("Squeeze", "Unsqueeze")
def squeeze(t: Builder, g: Value, y: Value, x: Value, axes: Value | None = None) -> Sequence[Cotangent]:
    """The shape of the input."""
    return [t.reshape_like(g, x), None]


@vjp("Transpose")
def transpose(t: Builder, g: Value, y: Value, x: Value, *, perm: Sequence[int] | None = None) -> Sequence[Cotangent]:
    """The inverse permutation."""
    order = list(perm) if perm is not None else list(reversed(range(x.rank)))
    return [t.transpose(g, [int(i) for i in np.argsort(order)])]


@vjp("Concat")
def concat(t: Builder, g: Value, y: Value, *xs: Value, axis: int) -> Sequence[Cotangent]:
    """The slice of the cotangent that belongs to each input."""
    axis %= y.rank
    starts = [Size(t, 0)]
    for x in xs:
        starts.append(starts[-1] + sizes(t, x, [axis])[0])

    def slice_of(i: int) -> Cotangent:
        return lambda: cut(t, g, [axis], [starts[i]], sizes(t, xs[i], [axis]))

    return [slice_of(i) for i in range(len(xs))]


@vjp("Split", all_outputs=True)
def split(
    t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value, lengths: Value | None = None,
    *, axis: int = 0, num_outputs: int | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The concatenated cotangents, with zeros for an unused output."""
    parts = [t.full_like(y, 0.0) if g is None else g for g, y in zip(gs, ys, strict=True)]
    return [t.op("Concat", *parts, axis=axis % x.rank), None]


@vjp("Slice")
def sliced(
    t: Builder, g: Value, y: Value, x: Value, starts: Value, ends: Value, axes: Value | None = None,
    steps: Value | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """Zeros around the slice, and between its elements where its step is larger than one."""
    over = (
        _constant(axes, "Slice", "axes")
        if axes is not None
        else list(range(starts.dims("the VJP rule of Slice without axes")[0]))
    )
    strides = _constant(steps, "Slice", "steps") if steps is not None else [1] * len(over)
    return [lambda: _unslice(t, g, y, x, starts, [a % x.rank for a in over], strides), None, None, None, None]


def _constant(value: Value, op_type: str, name: str) -> list[int]:
    """The content of an input that has to be constant."""
    array = value.array()
    if array is None:
        raise UnsupportedError(
            f"the VJP rule of {op_type} needs constant {name}, but {value.name!r} is computed; choose a later layer"
        )
    return [int(i) for i in array.ravel()]


def _unslice(t: Builder, g: Value, y: Value, x: Value, starts: Value, axes: list[int], strides: list[int]) -> Value:
    before, after = [], []
    for i, (axis, step) in enumerate(zip(axes, strides, strict=True)):
        (whole,), (count,) = sizes(t, x, [axis]), sizes(t, y, [axis])
        span = ((count - 1) * abs(step) + 1).least(0)
        first = _normalised(t, size_at(t, starts, i), whole, step)
        if step < 0:
            g = t.op("Slice", g, t.ints(-1), t.ints(np.iinfo(np.int64).min), t.ints(axis), t.ints(-1))
            first = first - (span - 1).least(0)
        if abs(step) > 1:
            g = _spaced(t, g, axis, abs(step), count, span)
        before.append(first)
        after.append(whole - first - span)
    return pad(t, g, axes, before, after)


def _normalised(t: Builder, start: Size, whole: Size, step: int) -> Size:
    """The element that a slice begins at: a negative one counts from the end, and all are clipped to the tensor."""
    if start.known is not None:
        if start.known == 0 and step > 0:
            return start
        start = whole + start.known if start.known < 0 else start
    else:
        index = start.vector()
        start = Size(t, t.op("Where", index < 0, (whole + start).vector(), index))
    return start.least(0).most(whole if step > 0 else whole - 1)


def _spaced(t: Builder, g: Value, axis: int, step: int, count: Size, span: Size) -> Value:
    """`g` with `step - 1` zeros between neighbours along `axis`."""
    dims = sizes(t, g)
    tail = dims[axis + 1 :]
    column = reshape(t, g, [*dims[:axis], count, 1, *tail])
    wide = pad(t, column, [axis + 1], [Size(t, 0)], [Size(t, step - 1)])
    flat = reshape(t, wide, [*dims[:axis], count * step, *tail])
    return cut(t, flat, [axis], [Size(t, 0)], [span])


@vjp("Pad", stops=(2,))
def padded(
    t: Builder, g: Value, y: Value, x: Value, pads: Value, constant_value: Value | None = None,
    axes: Value | None = None,
    *, mode: str = "constant",
) -> Sequence[Cotangent]:  # fmt: skip
    """The inner block; in other modes than `constant`, the cotangents of the copied elements are added."""
    over = [a % x.rank for a in _constant(axes, "Pad", "axes")] if axes is not None else list(range(x.rank))
    amounts = [size_at(t, pads, i) for i in range(2 * len(over))]
    before, after = amounts[: len(over)], amounts[len(over) :]
    if mode == "constant":
        return [lambda: _unpad(t, g, x, over, before, after), None, None, None]

    def unfold() -> Value:
        total = g
        for axis, b, a in zip(over, before, after, strict=True):
            if b.known != 0 or a.known != 0:
                copies = t.op("Pad", identity(t, sizes(t, x, [axis])[0], x.dtype), vector(t, [b, 0, a, 0]), mode=mode)
                total = contract(t, total, copies, axis)
        return total

    return [unfold, None, None, None]


def _unpad(t: Builder, g: Value, x: Value, axes: list[int], before: list[Size], after: list[Size]) -> Value:
    """Cut off the padding, and add zeros where a negative amount cut elements off."""
    cropped, short, late = [], [], []
    for h, b, a in zip(sizes(t, x, axes), before, after, strict=True):
        short.append((-1 * b).least(0))
        late.append((-1 * a).least(0))
        cropped.append(h - short[-1] - late[-1])
    kept = cut(t, g, axes, [b.least(0) for b in before], cropped)
    return pad(t, kept, axes, short, late)


@vjp("Expand", broadcasts=True)
def expand(t: Builder, g: Value, y: Value, x: Value, shape: Value) -> Sequence[Cotangent]:
    """The sum over the copies, which the backward pass computes."""
    return [g, None]


@vjp("Tile")
def tile(t: Builder, g: Value, y: Value, x: Value, repeats: Value) -> Sequence[Cotangent]:
    """The sum over the copies."""
    dims: list[Size] = []
    copies: list[int] = []
    for i, size in enumerate(sizes(t, x)):
        count = size_at(t, repeats, i)
        if count.known != 1:
            copies.append(len(dims))
            dims.append(count)
        dims.append(size)
    if not copies:
        return [g, None]
    return [lambda: t.sum(reshape(t, g, dims), copies, keepdims=False), None]


@vjp("DepthToSpace")
def depth_to_space(
    t: Builder, g: Value, y: Value, x: Value, *, blocksize: int, mode: str = "DCR"
) -> Sequence[Cotangent]:
    """SpaceToDepth in the same order of channels."""
    if mode == "DCR":
        return [t.op("SpaceToDepth", g, blocksize=blocksize)]
    n, depth, h, w = sizes(t, x)
    channels = depth // (blocksize * blocksize)
    blocks = reshape(t, g, [n, channels, h, blocksize, w, blocksize])
    return [lambda: t.reshape_like(t.transpose(blocks, (0, 1, 3, 5, 2, 4)), x)]


@vjp("SpaceToDepth")
def space_to_depth(
    t: Builder, g: Value, y: Value, x: Value, *, blocksize: int, mode: str = "DCR"
) -> Sequence[Cotangent]:
    """DepthToSpace in the same order of channels."""
    return [t.op("DepthToSpace", g, blocksize=blocksize, mode=mode)]


@vjp("Trilu")
def trilu(t: Builder, g: Value, y: Value, x: Value, k: Value | None = None, *, upper: int = 1) -> Sequence[Cotangent]:
    """The same triangle."""
    return [t.op("Trilu", g, k, upper=upper), None]


@vjp("CenterCropPad")
def center_crop_pad(
    t: Builder, g: Value, y: Value, x: Value, shape: Value, *, axes: Sequence[int] | None = None
) -> Sequence[Cotangent]:
    """The same operator to the input's size: cropping and padding round alike."""
    over = list(range(x.rank)) if axes is None else [a % x.rank for a in axes]
    return [lambda: t.op("CenterCropPad", g, vector(t, sizes(t, x, over)), axes=over), None]
