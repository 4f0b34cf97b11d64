"""Keras's convolution and pooling layers.

Keras stores kernels as `[*window, in, out]`, ONNX as `[out, in / groups, *window]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def _in_all_ranks(*names: str) -> list[str]:
    return [f"{name}{n}D" for name in names for n in (1, 2, 3)]


def _bias(call: Call, filters: int) -> list[Value]:
    return [call.weight("bias", [filters])] if "bias" in call.layer.variables else []


@keras_layer(*_in_all_ranks("Conv", "Convolution"), weights=[Slot("kernel"), _BIAS])
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
) -> Tensor:
    """A convolution of one to three dimensions."""
    maps = call.maps(x, data_format)
    window, attributes = _sliding(call, maps, padding, kernel_size, strides, dilation_rate)
    n, channels = len(window), maps.shape[1]
    (count,) = numbers(groups, 1)
    inner = channels // count if isinstance(channels, int) else None
    kernel = call.weight("kernel", [*window, inner, filters], perm=[n + 1, n, *range(n)])
    y = call.op("Conv", maps, kernel, *_bias(call, filters), group=count, **attributes)
    return activate(call, call.mapped(y, data_format), activation)


def _sliding(
    call: Call, maps: Value, padding: str, kernel_size: Any, strides: Any, dilation_rate: Any
) -> tuple[list[int], dict[str, Any]]:
    """The window and its attributes, from the configuration."""
    n = maps.rank - 2
    window = numbers(kernel_size, n)
    return window, window_attributes(call, maps, padding, window, numbers(strides, n), numbers(dilation_rate, n))


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
) -> Tensor:
    """A depthwise convolution."""
    maps = call.maps(x, data_format)
    window, attributes = _sliding(call, maps, padding, kernel_size, strides, dilation_rate)
    y, _ = _by_channel(call, maps, window, depth_multiplier, attributes, with_bias=True)
    return activate(call, call.mapped(y, data_format), activation)


def _by_channel(
    call: Call, maps: Value, window: list[int], multiplier: int, attributes: dict[str, Any], *, with_bias: bool
) -> tuple[Value, int]:
    n, channels = len(window), maps.shape[1]
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
) -> Tensor:
    """A depthwise convolution, then a 1x1 convolution."""
    maps = call.maps(x, data_format)
    window, attributes = _sliding(call, maps, padding, kernel_size, strides, dilation_rate)
    y, inner = _by_channel(call, maps, window, depth_multiplier, attributes, with_bias=False)
    n = len(window)
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
) -> Tensor:
    """A transposed convolution; the kernel is `[*window, out, in]` in Keras and `[in, out, *window]` in ONNX."""
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
    pads = [c // 2 for c in cuts] + [c - c // 2 for c in cuts]
    beyond = [max(rest - span, 0) for span, rest in zip(spans, rests, strict=True)]
    geometry = {"strides": steps, "dilations": dilations, "pads": pads, "output_padding": beyond}
    y = call.op("ConvTranspose", maps, kernel, *_bias(call, filters), **geometry)
    return activate(call, call.mapped(y, data_format), activation)


def _pooling(op_type: str) -> Callable[..., Tensor]:
    def pooling(
        call: Call,
        x: Tensor,
        *,
        pool_size: Any = 2,
        strides: Any = None,
        padding: str = "valid",
        data_format: str | None = None,
    ) -> Tensor:
        """The maximum, or the mean without padding, of each window."""
        maps = call.maps(x, data_format)
        window, attributes = _sliding(call, maps, padding, pool_size, pool_size if strides is None else strides, 1)
        return call.mapped(call.op(op_type, maps, kernel_shape=window, **attributes), data_format)

    return pooling


def _global_pooling(op_type: str) -> Callable[..., Tensor]:
    def pooling(call: Call, x: Tensor, *, data_format: str | None = None, keepdims: Any = False) -> Tensor:
        """The maximum or the mean over all spatial positions."""
        maps = call.maps(x, data_format)
        y = call.writer.reduce(op_type, maps, range(2, maps.rank), keepdims=bool(keepdims))
        return call.mapped(y, data_format)

    return pooling


keras_layer(*_in_all_ranks("MaxPooling", "MaxPool"))(_pooling("MaxPool"))
keras_layer(*_in_all_ranks("AveragePooling", "AvgPool"))(_pooling("AveragePool"))
keras_layer(*_in_all_ranks("GlobalMaxPooling", "GlobalMaxPool"))(_global_pooling("ReduceMax"))
keras_layer(*_in_all_ranks("GlobalAveragePooling", "GlobalAvgPool"))(_global_pooling("ReduceMean"))
