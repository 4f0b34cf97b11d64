"""Keras's convolution and pooling layers.

Keras stores kernels as `[*window, in, out]`, ONNX as `[out, in / groups, *window]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import keras_layer
from onnx_gradcam.exporters.keras.weights import Slot
from onnx_gradcam.graph.builder import Value

from .activations import activate

__all__ = ["numbers", "window_attributes"]

_TOO_MANY = 2**31
_BIAS = Slot("bias", when="use_bias")


def numbers(value: Any, count: int, least: int = 1) -> list[int]:
    """One integer per axis, from a configuration's number for all axes or list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    whole = all(isinstance(v, int) and not isinstance(v, bool) and least <= v < _TOO_MANY for v in values)
    if len(values) != count or not whole:
        raise ValueError(f"{value!r} is not {count} integers of at least {least}")
    return values


def window_attributes(
    call: Call, x: Value, padding: str, window: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> dict[str, Any]:
    """Strides, dilations and padding of a sliding window, as ONNX attributes.

    Keras's `same` means ceil(size / stride) positions, with the odd element of padding at the end. It is written in
    numbers where the size is known, as ONNX Runtime refuses `SAME_UPPER` with dilations.
    """
    attributes: dict[str, Any] = {"strides": list(strides)}
    if any(d != 1 for d in dilations):
        attributes["dilations"] = list(dilations)
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    if padding == "causal":
        return attributes | {"pads": [spans[0] - 1, 0]}
    if padding not in {"same", "valid"}:
        call.refuse(f"its padding {padding!r} is not supported")
    if padding == "valid":
        for size, span in zip(x.shape[2:], spans, strict=True):
            if isinstance(size, int) and size < span:
                call.refuse(f"its window spans {span} positions, but its input has {size}")
        return attributes
    totals: list[int] = []
    for size, span, stride in zip(x.shape[2:], spans, strides, strict=True):
        if isinstance(size, int):
            totals.append(max((-(-size // stride) - 1) * stride + span - size, 0))
        elif stride == 1:
            totals.append(span - 1)
        else:
            return attributes | {"auto_pad": "SAME_UPPER"}
    return attributes | {"pads": [t // 2 for t in totals] + [t - t // 2 for t in totals]}


def _bias(call: Call, filters: int) -> list[Value]:
    return [call.weight("bias", [filters])] if "bias" in call.layer.variables else []


@keras_layer(
    "Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "Convolution3D", weights=[Slot("kernel"), _BIAS]
)
def convolution(
    call: Call,
    x: Tensor,
    *,
    filters: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    groups: Any = 1,
    activation: Any = None,
    use_bias: Any = True,
) -> Tensor:
    """A convolution of one to three dimensions."""
    del use_bias  # decides whether there is a variable
    maps = call.maps(x, data_format)
    n = maps.rank - 2
    window = numbers(kernel_size, n)
    channels = maps.shape[1]
    (count,) = numbers(groups, 1)
    inner = channels // count if isinstance(channels, int) else None
    kernel = call.weight("kernel", [*window, inner, filters], perm=[n + 1, n, *range(n)])
    attributes = window_attributes(call, maps, padding, window, numbers(strides, n), numbers(dilation_rate, n))
    y = call.op("Conv", maps, kernel, *_bias(call, filters), group=count, **attributes)
    return activate(call, call.mapped(y, data_format), activation)


@keras_layer(
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    weights=[Slot("depthwise_kernel"), _BIAS],
    neutral=["filters", "groups", "kernel_initializer"],
)
def depthwise_convolution(
    call: Call,
    x: Tensor,
    *,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    depth_multiplier: Any = 1,
    activation: Any = None,
    use_bias: Any = True,
) -> Tensor:
    """A depthwise convolution."""
    del use_bias
    maps = call.maps(x, data_format)
    n = maps.rank - 2
    window = numbers(kernel_size, n)
    attributes = window_attributes(call, maps, padding, window, numbers(strides, n), numbers(dilation_rate, n))
    y, _ = _by_channel(call, maps, window, depth_multiplier, attributes, with_bias=True)
    return activate(call, call.mapped(y, data_format), activation)


def _by_channel(
    call: Call, maps: Value, window: list[int], multiplier: int, attributes: dict[str, Any], *, with_bias: bool
) -> tuple[Value, int]:
    n = len(window)
    channels = maps.shape[1]
    if not isinstance(channels, int):
        call.refuse("its number of channels is unknown")
    filters = channels * multiplier
    kernel = call.weight(
        "depthwise_kernel", [*window, channels, multiplier], perm=[n, n + 1, *range(n)], shape=[filters, 1, *window]
    )
    bias = _bias(call, filters) if with_bias else []
    return call.op("Conv", maps, kernel, *bias, group=channels, **attributes), filters


@keras_layer(
    "SeparableConv1D",
    "SeparableConv2D",
    "SeparableConvolution1D",
    "SeparableConvolution2D",
    weights=[Slot("depthwise_kernel"), Slot("pointwise_kernel"), _BIAS],
    neutral=["groups"],
)
def separable_convolution(
    call: Call,
    x: Tensor,
    *,
    filters: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: str | None = None,
    dilation_rate: Any = 1,
    depth_multiplier: Any = 1,
    activation: Any = None,
    use_bias: Any = True,
) -> Tensor:
    """A depthwise convolution, then a 1x1 convolution."""
    del use_bias
    maps = call.maps(x, data_format)
    n = maps.rank - 2
    window = numbers(kernel_size, n)
    attributes = window_attributes(call, maps, padding, window, numbers(strides, n), numbers(dilation_rate, n))
    y, inner = _by_channel(call, maps, window, depth_multiplier, attributes, with_bias=False)
    pointwise = call.weight("pointwise_kernel", [*[1] * n, inner, filters], perm=[n + 1, n, *range(n)])
    y = call.op("Conv", y, pointwise, *_bias(call, filters))
    return activate(call, call.mapped(y, data_format), activation)


@keras_layer(
    "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "Deconvolution2D", weights=[Slot("kernel"), _BIAS]
)
def transposed_convolution(
    call: Call,
    x: Tensor,
    *,
    filters: Any,
    kernel_size: Any,
    strides: Any = 1,
    padding: str = "valid",
    output_padding: Any = None,
    data_format: str | None = None,
    dilation_rate: Any = 1,
    groups: Any = 1,
    activation: Any = None,
    use_bias: Any = True,
) -> Tensor:
    """A transposed convolution; the kernel is `[*window, out, in]` in Keras and `[in, out, *window]` in ONNX."""
    del use_bias
    if groups != 1:
        call.refuse(f"it has {groups} groups")
    maps = call.maps(x, data_format)
    n = maps.rank - 2
    window, steps, dilations = numbers(kernel_size, n), numbers(strides, n), numbers(dilation_rate, n)
    kernel = call.weight("kernel", [*window, filters, maps.shape[1]], perm=[n + 1, n, *range(n)])
    extra = None if output_padding is None else numbers(output_padding, n, 0)
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    # Positions beyond stride x (input - 1), see keras/src/layers/convolutional and TensorFlow's conv2d_transpose.
    if padding not in {"same", "valid"}:
        call.refuse(f"its padding {padding!r} is not supported")
    if extra is not None:
        halves = [span // 2 if padding == "same" else 0 for span in spans]
        rests = [span - 2 * half + e for span, half, e in zip(spans, halves, extra, strict=True)]
    elif padding == "same":
        rests = steps
    else:
        rests = [max(span, step) for span, step in zip(spans, steps, strict=True)]
    cuts = [max(span - rest, 0) for span, rest in zip(spans, rests, strict=True)]
    y = call.op(
        "ConvTranspose",
        maps,
        kernel,
        *_bias(call, filters),
        strides=steps,
        dilations=dilations,
        pads=[c // 2 for c in cuts] + [c - c // 2 for c in cuts],
        output_padding=[max(rest - span, 0) for span, rest in zip(spans, rests, strict=True)],
    )
    return activate(call, call.mapped(y, data_format), activation)


def _pooled(
    call: Call, op_type: str, x: Tensor, pool_size: Any, strides: Any, padding: str, data_format: str | None
) -> Tensor:
    maps = call.maps(x, data_format)
    n = maps.rank - 2
    window = numbers(pool_size, n)
    steps = window if strides is None else numbers(strides, n)
    attributes = window_attributes(call, maps, padding, window, steps, [1] * n)
    return call.mapped(call.op(op_type, maps, kernel_shape=window, **attributes), data_format)


@keras_layer("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "MaxPool1D", "MaxPool2D", "MaxPool3D")
def max_pooling(
    call: Call,
    x: Tensor,
    *,
    pool_size: Any = 2,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """The maximum of each window."""
    return _pooled(call, "MaxPool", x, pool_size, strides, padding, data_format)


@keras_layer("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AvgPool1D", "AvgPool2D", "AvgPool3D")
def average_pooling(
    call: Call,
    x: Tensor,
    *,
    pool_size: Any = 2,
    strides: Any = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> Tensor:
    """The mean of each window, without padding."""
    return _pooled(call, "AveragePool", x, pool_size, strides, padding, data_format)


def _globally(call: Call, op_type: str, x: Tensor, data_format: str | None, *, keepdims: bool) -> Tensor:
    maps = call.maps(x, data_format)
    y = call.writer.reduce(op_type, maps, range(2, maps.rank), keepdims=keepdims)
    return call.mapped(y, data_format)


@keras_layer(
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAveragePooling3D",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalAvgPool3D",
)
def global_average_pooling(call: Call, x: Tensor, *, data_format: str | None = None, keepdims: Any = False) -> Tensor:
    """The mean over all spatial positions."""
    return _globally(call, "ReduceMean", x, data_format, keepdims=bool(keepdims))


@keras_layer(
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalMaxPooling3D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GlobalMaxPool3D",
)
def global_max_pooling(call: Call, x: Tensor, *, data_format: str | None = None, keepdims: Any = False) -> Tensor:
    """The maximum over all spatial positions."""
    return _globally(call, "ReduceMax", x, data_format, keepdims=bool(keepdims))
