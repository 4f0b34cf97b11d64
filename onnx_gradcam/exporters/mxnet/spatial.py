"""MXNet's convolutions, pooling, resizing and padding, on channels-first maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value

from .operator_table import SHAPE_REMEDY, Ints, SizeError, fixed, fixed_sizes, mxnet_operator

__all__: list[str] = []

_LARGEST_SIZE = 2**16
_PERFORMANCE = ("workspace", "cudnn_tune", "cudnn_off")
_CHANNELS_FIRST = (None, "NCW", "NCHW", "NCDHW")


def _channels_first(layout: str | None) -> None:
    if layout not in _CHANNELS_FIRST:
        raise ExportError(f"its layout is {layout}; export the network with channels first ({_CHANNELS_FIRST[2]})")


def _spatial(numbers: Ints, rank: int, default: int, name: str) -> list[int]:
    """An attribute with one number per spatial dimension; empty means `default`."""
    if numbers and len(numbers) != rank:
        raise ExportError(f"its attribute {name} is {numbers}, but must be {rank} numbers")
    if any(number < default for number in numbers):
        raise ExportError(f"its attribute {name} is {numbers}, with a number below {default}")
    return list(numbers) or [default] * rank


def _check_weight(weight: Value, shape: tuple[int, ...], bias: Value | None, filters: int) -> None:
    if weight.shape != shape:
        raise SizeError(
            f"its weights {weight.name!r} have shape {list(weight.shape)}, but its attributes imply {list(shape)}; "
            "give the .params that belongs to the symbol"
        )
    if bias is not None and bias.shape != (filters,):
        raise SizeError(f"its bias {bias.name!r} has shape {list(bias.shape)}, not [{filters}]; give the right .params")


def _channels(x: Value, rank: int) -> int:
    if not 1 <= rank <= 3:
        raise ExportError(f"its kernel has {rank} dimensions; known are 1 to 3")
    if x.rank != rank + 2:
        raise SizeError(f"its input has {x.rank} dimensions, but its kernel needs {rank + 2}; {SHAPE_REMEDY}")
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise SizeError(f"the channels of its input are unknown; {SHAPE_REMEDY}")
    return channels


def _window(kernel: Ints, strides: list[int], dilations: list[int], pads: list[int]) -> dict[str, Any]:
    return {"kernel_shape": list(kernel), "strides": strides, "dilations": dilations, "pads": pads * 2}


def _check_reach(x: Value, extents: list[int], pads: list[int]) -> None:
    """Refuse a kernel larger than the padded image, which ONNX's shape inference accepts."""
    for size, extent, pad in zip(x.shape[2:], extents, pads, strict=True):
        if isinstance(size, int) and extent > size + 2 * pad:
            raise SizeError(f"its kernel spans {extent} positions, but its input has {size}; {SHAPE_REMEDY}")


@mxnet_operator("Convolution", "Convolution_v1", ignored=_PERFORMANCE, layout="made")
def convolution(
    t: Writer,
    data: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    kernel: Ints,
    num_filter: int,
    stride: Ints = (),
    dilate: Ints = (),
    pad: Ints = (),
    num_group: int = 1,
    no_bias: bool = False,
    layout: str | None = None,
) -> Value:
    """MXNet `src/operator/nn/convolution.cc`."""
    _channels_first(layout)
    rank, bias = len(kernel), None if no_bias else bias
    channels = _channels(data, rank)
    if num_group < 1 or channels % num_group:
        raise SizeError(f"its {channels} input channels do not split into {num_group} groups; {SHAPE_REMEDY}")
    _check_weight(weight, (num_filter, channels // num_group, *kernel), bias, num_filter)
    strides, dilations = _spatial(stride, rank, 1, "stride"), _spatial(dilate, rank, 1, "dilate")
    pads = _spatial(pad, rank, 0, "pad")
    _check_reach(data, [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)], pads)
    return t.op("Conv", data, weight, bias, **_window(kernel, strides, dilations, pads), group=num_group)


@mxnet_operator("Deconvolution", ignored=_PERFORMANCE, layout="made")
def deconvolution(
    t: Writer,
    data: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    kernel: Ints,
    num_filter: int,
    stride: Ints = (),
    dilate: Ints = (),
    pad: Ints = (),
    adj: Ints = (),
    target_shape: Ints = (),
    num_group: int = 1,
    no_bias: bool = True,
    layout: str | None = None,
) -> Value:
    """MXNet `src/operator/nn/deconvolution-inl.h`; `target_shape` determines the padding, as in `InferPad`."""
    _channels_first(layout)
    rank, bias = len(kernel), None if no_bias else bias
    if num_group < 1 or num_filter % num_group:
        raise ExportError(f"its {num_filter} filters do not split into {num_group} groups; save the symbol again")
    _check_weight(weight, (_channels(data, rank), num_filter // num_group, *kernel), bias, num_filter)
    strides, dilations = _spatial(stride, rank, 1, "stride"), _spatial(dilate, rank, 1, "dilate")
    if max(strides) > 1 and max(dilations) > 1:
        raise ExportError(
            f"its stride is {stride} and its dilate {dilate}, for which MXNet's CPU kernel does not compute a "
            "deconvolution; rewrite it with one of them 1"
        )
    pads, extra = _spatial(pad, rank, 0, "pad"), _spatial(adj, rank, 0, "adj")
    if any(target_shape):
        sizes = fixed_sizes(data, "its target_shape")
        _spatial(target_shape, rank, 1, "target_shape")
        spare = [
            s * (size - 1) + d * (k - 1) + 1 - target
            for s, size, d, k, target in zip(strides, sizes, dilations, kernel, target_shape, strict=True)
        ]
        if min(spare) < 0:
            raise ExportError(f"its target_shape {target_shape} is larger than its kernel spans; save it again")
        pads, extra = [(number + 1) // 2 for number in spare], [number % 2 for number in spare]
    window = _window(kernel, strides, dilations, pads)
    return t.op("ConvTranspose", data, weight, bias, **window, output_padding=extra, group=num_group)


_GLOBAL_POOLS = {"avg": "GlobalAveragePool", "max": "GlobalMaxPool", "lp": "GlobalLpPool", "sum": "ReduceSum"}


@mxnet_operator("Pooling", ignored=("cudnn_off",), layout="made")
def pooling(
    t: Writer,
    data: Value,
    *,
    kernel: Ints = (),
    pool_type: str = "max",
    global_pool: bool = False,
    pooling_convention: str = "valid",
    stride: Ints = (),
    pad: Ints = (),
    p_value: int | None = None,
    count_include_pad: bool | None = None,
    layout: str | None = None,
) -> Value:
    """MXNet `src/operator/nn/pooling.cc`, `pool.h`.

    A window that extends beyond the padding (`full`) is averaged over the elements up to there: the padding is made
    explicit, so that ONNX's border is where MXNet's padding ends.
    """
    _channels_first(layout)
    if pool_type not in _GLOBAL_POOLS or (pool_type == "lp" and p_value != 2):
        kind = pool_type if p_value is None else f"{pool_type} of p_value {p_value}"
        raise ExportError(f"its pool_type is {kind}; known are avg, max, sum, and lp of p_value 2")
    if global_pool:
        if pool_type == "sum":
            return t.sum(data, range(2, data.rank))
        return t.op(_GLOBAL_POOLS[pool_type], data, p=2 if pool_type == "lp" else None)
    rank = len(kernel)
    _channels(data, rank)
    _spatial(kernel, rank, 1, "kernel")
    strides, pads = _spatial(stride, rank, 1, "stride"), _spatial(pad, rank, 0, "pad")
    _check_reach(data, list(kernel), pads)
    if pooling_convention not in ("valid", "full"):
        raise ExportError(f"its pooling_convention is {pooling_convention}; known are valid and full")
    full = pooling_convention == "full"
    whole = count_include_pad is not False
    if full:
        _check_windows(data, kernel, strides, pads)
        if pool_type in ("sum", "lp"):
            raise ExportError(f"its pool_type is {pool_type} and its pooling_convention full; use valid")
    geometry: dict[str, Any] = {"kernel_shape": list(kernel), "strides": strides, "ceil_mode": int(full)}
    if pool_type == "max":
        return t.op("MaxPool", data, pads=pads * 2, **geometry)
    if pool_type == "lp":
        return t.op("LpPool", data, pads=pads * 2, p=2, **geometry)
    if full and whole and any(pads):
        data, pads = _padded(t, data, [0, 0, *pads] * 2), [0] * rank
        whole = False
    counted = int((whole or pool_type == "sum") and any(pads))
    mean = t.op("AveragePool", data, pads=pads * 2, count_include_pad=counted, **geometry)
    return mean * float(math.prod(kernel)) if pool_type == "sum" else mean


@mxnet_operator("Pooling_v1", layout="made")
def old_pooling(
    t: Writer,
    data: Value,
    *,
    kernel: Ints = (),
    pool_type: str = "max",
    global_pool: bool = False,
    pooling_convention: str = "valid",
    stride: Ints = (),
    pad: Ints = (),
) -> Value:
    """MXNet `src/operator/pooling_v1-inl.h`: it pads with zeros for the maximum too, and averages whole windows.

    Zeros behind the image complete every window of `full`.
    """
    if not global_pool:
        rank = len(kernel)
        _channels(data, rank)
        strides, before = _spatial(stride, rank, 1, "stride"), _spatial(pad, rank, 0, "pad")
        behind = before
        if pooling_convention == "full" and pool_type != "max":
            pooling_convention = "valid"
            behind = [number + step - 1 for number, step in zip(before, strides, strict=True)]
        if any(behind):
            data = _padded(t, data, [0, 0, *before, 0, 0, *behind])
    geometry: dict[str, Any] = {"kernel": kernel, "stride": stride, "pooling_convention": pooling_convention}
    return pooling(t, data, pool_type=pool_type, global_pool=global_pool, **geometry)


def _check_windows(x: Value, kernel: Ints, strides: list[int], pads: list[int]) -> None:
    """Refuse a window that starts behind the image: ONNX leaves it out, MXNet does not."""
    for dim, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        if s < k - p + 1:
            continue  # no size has such a window
        size = fixed(dim, "whether its last window starts behind its input")
        if -(-(size + 2 * p - k) // s) * s >= size + p:
            raise ExportError(f"its last window of {k} starts behind its input of size {size}; use another size")


@mxnet_operator("_contrib_AdaptiveAvgPooling2D", layout="made")
def adaptive_average_pooling(t: Writer, data: Value, *, output_size: Ints = ()) -> Value:
    """MXNet `src/operator/contrib/adaptive_avg_pooling-inl.h`: bin i is rows floor(i h/n) to ceil((i+1) h/n)."""
    _channels(data, 2)
    if len(output_size) > 2 or any(not 1 <= number <= 1024 for number in output_size):
        raise ExportError(f"its output_size is {output_size}; known are one or two numbers from 1 to 1024")
    height, width = (output_size * 2)[:2] if output_size else (1, 1)
    if (height, width) == (1, 1):
        return t.op("GlobalAveragePool", data)
    sizes = fixed_sizes(data, "what each of its bins averages")
    if not (sizes[0] % height or sizes[1] % width):
        bins = [sizes[0] // height, sizes[1] // width]
        return t.op("AveragePool", data, kernel_shape=bins, strides=bins)
    rows, columns = _bins(sizes[0], height), _bins(sizes[1], width)
    return t.const(rows, data.dtype) @ data @ t.const(columns.T, data.dtype)


def _bins(size: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The averages of `size` positions in `count` bins, as a matrix `[count, size]`."""
    matrix = np.zeros((count, size))
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@mxnet_operator("UpSampling", ignored=("workspace", "multi_input_mode", "num_args"), layout="made")
def upsampling(
    t: Writer, data: Value, weight: Value | None = None, *, scale: int, sample_type: str, num_filter: int = 0
) -> Value:
    """MXNet `src/operator/nn/upsampling-inl.h`: bilinear is a depthwise deconvolution with its own weight."""
    _spatial((scale,), 1, 1, "scale")
    if sample_type == "bilinear" and weight is not None:
        kernel, pad = (2 * scale - scale % 2,) * 2, (math.ceil((scale - 1) / 2),) * 2
        return deconvolution(
            t, data, weight, kernel=kernel, num_filter=num_filter, stride=(scale,) * 2, pad=pad, num_group=num_filter
        )
    if sample_type != "nearest" or weight is not None:
        raise ExportError(f"its sample_type is {sample_type} with several inputs; only nearest with one is known")
    scales = t.const([1.0, 1.0, scale, scale], np.float32)
    mode: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return t.op("Resize", data, None, scales, **mode)


@mxnet_operator("_contrib_BilinearResize2D", layout="made")
def bilinear_resize(
    t: Writer,
    data: Value,
    like: Value | None = None,
    *,
    height: int = 1,
    width: int = 1,
    scale_height: float | None = None,
    scale_width: float | None = None,
    mode: str = "size",
    align_corners: bool = True,
) -> Value:
    """MXNet `src/operator/contrib/bilinear_resize-inl.h`."""
    _channels(data, 2)
    if mode not in ("size", "like") or (mode == "like") != (like is not None):
        raise ExportError(f"its mode is {mode}; known are size, and like with a second input")
    scales = [] if scale_height is None or scale_width is None else [scale_height, scale_width]
    if like is not None:
        height, width = fixed_sizes(like, "its size")
        scales = []
    if not all(0 < s <= 64 for s in scales):
        raise ExportError(f"its scales are {scales}; known are numbers up to 64")
    if not align_corners and any(not s.is_integer() for s in scales):
        # MXNet rounds the size and uses the ratio of the sizes; ONNX uses the scale itself.
        sizes = fixed_sizes(data, "what its scales make of it")
        height, width = (int(np.float32(s) * np.float32(size)) for s, size in zip(scales, sizes, strict=True))
        scales = []
    if not all(1 <= size <= _LARGEST_SIZE for size in (height, width)):
        raise ExportError(f"its height {height} and width {width} are not valid; known are 1 to {_LARGEST_SIZE}")
    target = (t.const(scales, np.float32), None) if scales else (None, t.ints(height, width))
    # Like PyTorch, MXNet takes the first position, not the middle, for an output of size one.
    corners = "align_corners" if align_corners else "pytorch_half_pixel"
    return t.op("Resize", data, None, *target, mode="linear", coordinate_transformation_mode=corners, axes=[2, 3])


_PAD_MODES = ("constant", "edge", "reflect")


@mxnet_operator("Pad", layout="kept")
def pad(t: Writer, data: Value, *, mode: str, pad_width: Ints, constant_value: float = 0.0) -> Value:
    """MXNet `src/operator/pad-inl.h`; begin and end of each axis in turn."""
    if mode not in _PAD_MODES:
        raise ExportError(f"its mode is {mode}; known are {', '.join(_PAD_MODES)}")
    if len(pad_width) != 2 * data.rank or any(not 0 <= number < 2**20 for number in pad_width):
        raise ExportError(f"its pad_width is {pad_width}, but must be {2 * data.rank} non-negative integers")
    widths = [*pad_width[::2], *pad_width[1::2]]
    return _padded(t, data, widths, constant_value, mode)


def _padded(t: Writer, x: Value, widths: list[int], fill: float = 0.0, mode: str = "constant") -> Value:
    """Pad; zero is written as -0.0: ONNX Runtime folds a zero Pad into a following MaxPool, which pads with -inf."""
    value = t.const(-0.0 if fill == 0 else fill, x.dtype) if mode == "constant" else None
    return t.op("Pad", x, t.ints(*widths), value, mode=mode)
