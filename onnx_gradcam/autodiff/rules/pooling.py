"""Rules of pools: a window hands its cotangent to its first maximum, or to all of its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, cut, pad, reshape, sizes, vector
from ._windows import Windows, spread, windows


@vjp("MaxPool")
def max_pool(
    t: Builder, g: Value, y: Value, x: Value,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The first maximum of a window in scan order takes all, as in PyTorch, TensorFlow and ONNX Runtime's indices.

    There is no second output and no scatter: ONNX Runtime leaves its fast path for the indices, and other runtimes have
    none. A large kernel is handled one axis at a time, which keeps the scan order: the first row with the maximum, then
    the first such element in it.
    """
    over = windows(
        t, x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    return [lambda: route_through(t, g, y, x, stages(over), auto_pad, _route)]


def stages(over: Windows) -> list[Windows]:
    """The windows over all axes at once, or one axis at a time, last first, where that reads far fewer elements."""
    at_once = math.prod(k / s for k, s in zip(over.taps, over.strides, strict=True))
    apart, left = 0.0, 1.0
    for k, s in zip(reversed(over.taps), reversed(over.strides), strict=True):
        apart += left * k / s
        left /= s
    return [over] if at_once < 2 * apart else [over.along(i) for i in reversed(range(over.rank))]


Route = Callable[[Builder, Value, Value, Value, Windows], Value]


def route_through(
    t: Builder, g: Value, y: Value, x: Value, stages: Sequence[Windows], auto_pad: str, route: Route
) -> Value:
    """Hand `g` back through one stage after another, each by `route(t, g, y, x, windows)`."""
    images = [x]
    for stage in stages[:-1]:
        pads = stage.pads() if auto_pad == "NOTSET" else None
        steps = {"kernel_shape": stage.taps, "strides": list(stage.strides), "dilations": list(stage.dilations)}
        ceil_mode = int(stage.ceil)
        images.append(
            t.op("MaxPool", images[-1], **steps, ceil_mode=ceil_mode, pads=pads, auto_pad=auto_pad, shape=None)
        )
    for stage, image in zip(reversed(stages), reversed(images), strict=True):
        g = route(t, g, y, image, stage)
        y = image
    return g


def _route(t: Builder, g: Value, y: Value, x: Value, over: Windows) -> Value:
    """Hand each window's `g` to the first element of `x` in it that equals `y`."""
    spatial, outputs = sizes(t, x, over.axes), sizes(t, y, over.axes)
    image = reshape(t, x, [-1, 1, *spatial])
    top, g = reshape(t, y, [-1, 1, *outputs]), reshape(t, g, [-1, 1, *outputs])
    tap = _Taps(t, image, spatial, outputs, over)
    offsets = list(np.ndindex(*over.taps))
    pieces: list[Value] = []
    hit: Value | None = None
    for offset in offsets[:-1]:
        first = any_so_far = t.op("Equal", tap.at(offset), top)
        if hit is not None:
            any_so_far = t.op("Or", hit, first)
            first = t.op("Xor", any_so_far, hit)
        hit = any_so_far
        pieces.append(t.op("Where", first, g, 0.0))
    # If no other tap is the maximum, the last one is.
    pieces.append(g if hit is None else t.op("Where", hit, 0.0, g))
    stacked = t.op("Concat", *pieces, axis=1) if len(pieces) > 1 else g
    one_hot = np.eye(len(offsets)).reshape(len(offsets), 1, *over.taps)
    return t.reshape_like(spread(t, stacked, t.const(one_hot, x.dtype), image, over), x)


class _Taps:
    """The elements of all windows, one tap at a time.

    A plane with equal strides is first sorted into its phases, because a strided slice reads element by element.
    """

    def __init__(
        self, t: Builder, image: Value, spatial: Sequence[Size], outputs: Sequence[Size], over: Windows
    ) -> None:
        self.t, self.over, self.outputs = t, over, outputs
        self.phases = over.strides[0] if over.rank == 2 and len(set(over.strides)) == 1 else 1
        s = self.phases
        ends = [
            (((reach.least(h + p) + s - 1) // s) * s - h - p).least(0)
            for reach, h, p in zip(over.covered(outputs), spatial, over.begin, strict=True)
        ]
        padded = pad(t, image, over.axes, over.begin, ends, -np.inf)
        self.image = t.op("SpaceToDepth", padded, blocksize=s) if s > 1 else padded

    def at(self, offset: Sequence[int]) -> Value:
        """The tap `offset` of every window."""
        t, over, s = self.t, self.over, self.phases
        starts = [i * d for i, d in zip(offset, over.dilations, strict=True)]
        if s > 1 or set(over.strides) == {1}:
            phase = sum((p % s) * s ** (over.rank - 1 - i) for i, p in enumerate(starts)) if s > 1 else 0
            begin = [Size(t, phase), *(Size(t, p // s) for p in starts)]
            return cut(t, self.image, (1, *over.axes), begin, [Size(t, 1), *self.outputs])
        ends = [(o - 1) * n + (p + 1) for o, n, p in zip(self.outputs, over.strides, starts, strict=True)]
        return t.op("Slice", self.image, t.ints(*starts), vector(t, ends), t.ints(*over.axes), t.ints(*over.strides))


@vjp("AveragePool")
def average_pool(
    t: Builder, g: Value, y: Value, x: Value,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """An equal share, to every element of a window."""
    over = windows(
        t, x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    return [lambda: _share(t, _averaged(t, g, x, over, padded=bool(count_include_pad)), x, over)]


def _averaged(t: Builder, g: Value, x: Value, over: Windows, *, padded: bool) -> Value:
    """`g` divided by the number of elements that each window averages, with `padded` including the padding."""
    full = math.prod(over.taps)
    if not over.ceil and (padded or all(p.known == 0 for p in (*over.begin, *over.end))):
        return g / float(full) if full > 1 else g
    spatial, outputs = sizes(t, x, over.axes), sizes(t, g, over.axes)
    counted = [
        (Size(t, 0), p + h + q) if padded else (p, p + h) for h, p, q in zip(spatial, over.begin, over.end, strict=True)
    ]
    known = [(o.known, low.known, high.known) for o, (low, high) in zip(outputs, counted, strict=True)]
    counts = np.ones((1, 1, *[1] * over.rank))
    for i, (o, low, high) in enumerate(known):
        if o is None or low is None or high is None:
            return g / _counted(t, x, over, outputs, counted)
        taps = np.arange(o)[:, None] * over.strides[i] + np.arange(over.taps[i]) * over.dilations[i]
        inside = ((taps >= low) & (taps < high)).sum(1)
        counts = counts * inside.reshape(-1, *[1] * (over.rank - 1 - i))
    return g / t.const(counts if np.ptp(counts) else counts.flat[0], x.dtype)


def _counted(
    t: Builder, x: Value, over: Windows, outputs: Sequence[Size], counted: Sequence[tuple[Size, Size]]
) -> Value:
    """The same number where sizes are dynamic: an image of ones, padded with zeros and summed by a convolution."""
    shape = vector(t, [1, 1, *(high - low for low, high in counted)])
    ones = t.op("Expand", t.const(1.0, x.dtype), shape, shape=(None,) * x.rank)
    before = [low for low, _ in counted]
    after = [(reach - high).least(0) for reach, (_, high) in zip(over.covered(outputs), counted, strict=True)]
    image = pad(t, ones, over.axes, before, after)
    kernel = t.const(np.ones((1, 1, *over.taps)), x.dtype)
    count = t.op("Conv", image, kernel, strides=list(over.strides), dilations=list(over.dilations))
    return cut(t, count, over.axes, [Size(t, 0)] * over.rank, outputs)


def _share(t: Builder, g: Value, x: Value, over: Windows) -> Value:
    """Give every element of a window the window's `g`, added up over the windows that contain the element."""
    spatial, outputs = sizes(t, x, over.axes), sizes(t, g, over.axes)
    if all(
        o.known == 1 and p.known == 0 and h.known == k
        for o, p, h, k in zip(outputs, over.begin, spatial, over.taps, strict=True)
    ):
        return t.expand_like(g, x)
    pads = over.pads()
    if set(over.strides) == set(over.dilations) == {1} and pads is not None:
        # A pool is the fastest way to add overlapping windows, and at stride one the adjoint of a pool is a pool.
        reach = [extent - 1 - p for extent, p in zip([e.known or 0 for e in over.extent] * 2, pads, strict=True)]
        if min(reach) >= 0:
            total = g * float(math.prod(over.taps))
            return t.op("AveragePool", total, kernel_shape=list(over.taps), pads=reach, count_include_pad=1)
    channels = x.shape[1]
    if isinstance(channels, int):
        return spread(t, g, t.const(np.ones((channels, 1, *over.taps)), x.dtype), x, over, group=channels)
    planes = reshape(t, x, [-1, 1, *spatial])
    shared = spread(t, reshape(t, g, [-1, 1, *outputs]), t.const(np.ones((1, 1, *over.taps)), x.dtype), planes, over)
    return t.reshape_like(shared, x)


@vjp("LpPool")
def lp_pool(
    t: Builder, g: Value, y: Value, x: Value,
    *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, p: int = 2, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """X |x|^(p-2) times the window's g y^(1-p); zero in a window of zeros."""
    over = windows(
        t, x, kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads, strides=strides
    )
    return [lambda: _share(t, _norm_scale(t, g, y, p), x, over) * _signed_power(t, x, p)]


@vjp("GlobalLpPool")
def global_lp_pool(t: Builder, g: Value, y: Value, x: Value, *, p: int = 2) -> Sequence[Cotangent]:
    """As LpPool, with one window."""
    return [lambda: _norm_scale(t, g, y, p) * _signed_power(t, x, p)]


def _norm_scale(t: Builder, g: Value, y: Value, p: int) -> Value:
    if p == 1:
        return g
    # Where the norm is zero, so is every element: divide by one there.
    norm = t.op("Where", y > 0.0, y, 1.0)
    return g / (norm if p == 2 else norm ** float(p - 1))


def _signed_power(t: Builder, x: Value, p: int) -> Value:
    if p == 1:
        return t.op("Sign", x)
    return x if p == 2 else x * t.op("Abs", x) ** float(p - 2)


@vjp("GlobalAveragePool")
def global_average_pool(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """An equal share, to every position."""
    count = Size(t, 1)
    for size in sizes(t, x, range(2, x.rank)):
        count *= size
    if count.known is not None:
        return [lambda: t.expand_like(g / float(max(count.known or 1, 1)), x)]
    # The count can overflow float16, its inverse cannot.
    wide = np.float64 if x.dtype == np.float64 else np.float32
    share = t.cast(1.0 / t.cast(count.vector(), wide), x.dtype)
    return [lambda: t.expand_like(g * share, x)]


@vjp("GlobalMaxPool")
def global_max_pool(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """Ties share evenly, as in the reductions of every framework."""
    top = t.op("Equal", x, y)
    count = t.sum(t.cast(top, x.dtype), range(2, x.rank))
    return [lambda: t.op("Where", top, g / count, 0.0)]


@vjp("MaxUnpool")
def max_unpool(
    t: Builder, g: Value, y: Value, x: Value, indices: Value, output_shape: Value | None = None,
    *, kernel_shape: Sequence[int], pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangents at the positions that the elements went to.

    With an output shape, runtimes disagree on what the indices count. The operator itself tells: it unpools the numbers
    of the elements.
    """

    def at_indices() -> Value:
        return t.op("Gather", t.op("Reshape", g, t.ints(-1)), indices, shape=x.shape)

    def at_numbers() -> Value:
        count = t.op("Size", x)
        order = t.op("Range", t.const(np.int64(1)), count + 1, t.const(np.int64(1)))
        elements = t.reshape_like(t.cast(order, x.dtype), x)
        pooled = t.op(
            "MaxUnpool", elements, indices, output_shape, kernel_shape=kernel_shape, pads=pads, strides=strides
        )
        positions = t.cast(t.op("Reshape", pooled, t.ints(-1)), np.int64)
        row = t.op("Expand", t.const(0, g.dtype), t.op("Reshape", count + 1, t.ints(1)))
        filled = t.op("ScatterElements", row, positions, t.op("Reshape", g, t.ints(-1)), axis=0)
        return t.reshape_like(t.op("Slice", filled, t.ints(1), t.ints(np.iinfo(np.int64).max), t.ints(0)), x)

    return [at_indices if output_shape is None else at_numbers, None, None]
