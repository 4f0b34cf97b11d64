"""Rules of convolutions: the gradient by the image is a transposed convolution with the same weight, and vice versa."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, cut, pad, reshape, sizes
from ._windows import Windows, spread, windows


@vjp("Conv")
def conv(
    t: Builder, g: Value, y: Value, x: Value, w: Value, b: Value | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The image: a ConvTranspose of the cotangent. The weight: the image correlated with the cotangent."""
    over = windows(t, x, kernel_shape or w, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides)
    return [
        lambda: spread(t, g, w, x, over, group=group),
        lambda: _correlate(t, x, g, w, over, group),
        lambda: _bias(t, g),
    ]


@vjp("ConvTranspose")
def conv_transpose(
    t: Builder, g: Value, y: Value, x: Value, w: Value, b: Value | None = None,
    *, auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
    kernel_shape: Sequence[int] | None = None, output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """A convolution of the cotangent with the same weight."""
    over = windows(t, g, kernel_shape or w, dilations=dilations, pads=pads, strides=strides)
    extra = list(output_padding or [0] * over.rank)
    if output_shape or auto_pad.startswith("SAME"):
        heights = sizes(t, x, over.axes)
        outputs = [Size(t, o) for o in output_shape[-over.rank :]] if output_shape else None
        over = _padded(over, heights, extra, outputs, upper=auto_pad == "SAME_UPPER")
    elif auto_pad == "VALID":
        over = windows(t, g, kernel_shape or w, dilations=dilations, strides=strides)
    return [lambda: gather(t, g, w, x, over, group), lambda: _correlate(t, g, x, w, over, group), lambda: _bias(t, g)]


def _padded(
    over: Windows, heights: list[Size], extra: list[int], outputs: list[Size] | None, *, upper: bool
) -> Windows:
    """The padding that a transposed convolution removes to reach the sizes `outputs`, or stride times input."""
    begin, end = [], []
    for i, (h, s, extent) in enumerate(zip(heights, over.strides, over.extent, strict=True)):
        surplus = extent + extra[i] - s if outputs is None else (h - 1) * s + extra[i] + extent - outputs[i]
        total = surplus.least(0)
        small = total // 2
        begin.append(small if upper else total - small)
        end.append(total - begin[-1])
    return Windows(over.kernel, over.strides, over.dilations, tuple(begin), tuple(end))


def _bias(t: Builder, g: Value) -> Value:
    return t.sum(g, [0, *range(2, g.rank)], keepdims=False)


def gather(t: Builder, g: Value, w: Value, x: Value, over: Windows, group: int) -> Value:
    """Slide `w` over `g`, with as many windows as `x` has elements."""
    heights = sizes(t, x, over.axes)
    missing = [
        (reach - p - o).least(0)
        for reach, p, o in zip(over.covered(heights), over.begin, sizes(t, g, over.axes), strict=True)
    ]
    pads = over.pads()
    if all(m.known is not None for m in missing):
        over = Windows(over.kernel, over.strides, over.dilations, over.begin, tuple(missing))
        pads = over.pads()
    image = g
    if pads is None:
        image, pads = pad(t, g, over.axes, over.begin, missing), [0] * (2 * over.rank)
    strides, dilations = list(over.strides), list(over.dilations)
    y = t.op("Conv", image, w, strides=strides, dilations=dilations, group=group, pads=pads, shape=(None,) * x.rank)
    return cut(t, y, over.axes, [Size(t, 0)] * over.rank, heights)


def _correlate(t: Builder, image: Value, small: Value, w: Value, over: Windows, group: int) -> Value:
    """The gradient by the weight: `image` convolved with `small`, batch and channels swapped.

    Strides and dilations are swapped too. A stride that skips the last rows leaves surplus taps, which are cut.
    """
    axes = list(over.axes)
    dims = sizes(t, image)
    pads = over.pads()
    if pads is None:
        image, pads = pad(t, image, axes, over.begin, over.end), [0] * (2 * over.rank)
        dims = sizes(t, image)
    if group == 1:
        swapped = t.transpose(image, [1, 0, *axes])
    else:
        channels = dims[1] // group
        split = reshape(t, image, [dims[0], group, channels, *dims[2:]])
        turned = t.transpose(split, [2, 1, 0, *(a + 1 for a in axes)])
        swapped = reshape(t, turned, [channels, dims[0] * group, *dims[2:]])
    kernel = t.transpose(small, [1, 0, *axes])
    steps = {"strides": list(over.dilations), "dilations": list(over.strides)}
    taps = t.op("Conv", swapped, kernel, **steps, group=group, pads=pads, shape=(None,) * image.rank)
    taps = cut(t, taps, axes, [Size(t, 0)] * over.rank, sizes(t, w, axes))
    return t.transpose(taps, [1, 0, *axes])


@vjp("Col2Im")
def col2im(
    t: Builder, g: Value, y: Value, x: Value, image_shape: Value, block_shape: Value,
    *, dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The columns of the cotangent, by a convolution with one-hot kernels."""
    block = block_shape.array()
    if block is None:
        raise UnsupportedError(
            f"the VJP rule of Col2Im needs a constant block_shape, but {block_shape.name!r} is computed; "
            "choose a later layer"
        )
    kernel = [int(k) for k in block]
    count = math.prod(kernel)

    def columns() -> Value:
        image = reshape(t, g, [-1, 1, *sizes(t, g)[2:]])
        weight = t.const(np.eye(count).reshape(count, 1, *kernel), x.dtype)
        cut_out = t.op("Conv", image, weight, strides=strides, dilations=dilations, pads=pads)
        return t.reshape_like(cut_out, x)

    return [columns, None, None]
