"""Pooling layers."""

from __future__ import annotations

from typing import Any

from onnx_gradcam.export.keras.call import Call, Tensor
from onnx_gradcam.export.keras.registry import keras_layer

from .convolution import numbers, window_attributes

__all__: list[str] = []


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
    """The largest value of each window."""
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
    """The mean of each window; padding does not count."""
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
    """The mean over all places."""
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
    """The largest value over all places."""
    return _globally(call, "ReduceMax", x, data_format, keepdims=bool(keepdims))
