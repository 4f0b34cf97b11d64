"""Keras's activation functions and activation layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import keras_layer
from onnx_gradcam.exporters.keras.weights import Slot
from onnx_gradcam.graph.builder import Value

__all__ = ["activate"]


def _single(op_type: str, **attributes: float) -> Callable[[Call, Value], Value]:
    return lambda call, x: call.op(op_type, x, **attributes)


def _silu(call: Call, x: Value) -> Value:
    return x * call.op("Sigmoid", x)


def _hard_sigmoid(call: Call, x: Value) -> Value:
    # Keras 2: clip(0.2 x + 0.5, 0, 1); Keras 3: relu6(x + 3) / 6.
    return call.op("HardSigmoid", x, alpha=0.2 if call.major < 3 else 1 / 6, beta=0.5)


def _hard_silu(call: Call, x: Value) -> Value:
    return x * _hard_sigmoid(call, x)


def gelu(call: Call, x: Value, *, approximate: bool = False) -> Value:
    """GELU, `x * Phi(x)`, or its tanh approximation."""
    if approximate:
        return 0.5 * x * (call.op("Tanh", (x + 0.044715 * (x * x * x)) * 0.7978845608028654) + 1.0)
    return x * (call.op("Erf", x * 0.7071067811865476) + 1.0) * 0.5


FUNCTIONS: Mapping[str, Callable[[Call, Value], Value]] = {
    "relu": _single("Relu"),
    "relu6": lambda call, x: call.op("Clip", x, 0.0, 6.0),
    "sigmoid": _single("Sigmoid"),
    "tanh": _single("Tanh"),
    "elu": _single("Elu"),
    "selu": _single("Selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "softplus": _single("Softplus"),
    "softsign": _single("Softsign"),
    "exponential": _single("Exp"),
    "leaky_relu": _single("LeakyRelu", alpha=0.2),
    "silu": _silu,
    "swish": _silu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "hard_swish": _hard_silu,
    "gelu": gelu,
    "mish": _single("Mish"),
}
"""Keras's elementwise activation functions, with their default arguments."""


def activate(call: Call, x: Tensor, activation: Any) -> Tensor:
    """Apply an activation function, as the configuration names it."""
    if isinstance(activation, Mapping) and activation.get("class_name") == "function":
        activation = activation.get("config")
    if activation is None or activation == "linear":
        return x
    if activation in {"softmax", "log_softmax"}:
        kind = "Softmax" if activation == "softmax" else "LogSoftmax"
        return Tensor(call.op(kind, x.value, axis=x.axis(-1)), x.moved)
    function = FUNCTIONS.get(activation) if isinstance(activation, str) else None
    if function is None:
        call.refuse(f"its activation {activation!r} is not supported")
    return Tensor(function(call, x.value), x.moved)


@keras_layer("Activation")
def activation(call: Call, x: Tensor, *, activation: Any) -> Tensor:
    """An activation function as a layer."""
    return activate(call, x, activation)


@keras_layer("ReLU")
def relu(call: Call, x: Tensor, *, max_value: Any = None, negative_slope: Any = 0.0, threshold: Any = 0.0) -> Tensor:
    """ReLU, with an optional upper bound or negative slope."""
    if threshold not in (0, None):
        call.refuse(f"its threshold {threshold!r} is not 0")
    if negative_slope in (0, None):
        y = call.op("Relu", x.value) if max_value is None else call.op("Clip", x.value, 0.0, float(max_value))
    else:
        y = call.op("LeakyRelu", x.value, alpha=float(negative_slope))
        y = y if max_value is None else call.op("Min", y, float(max_value))
    return Tensor(y, x.moved)


@keras_layer("LeakyReLU")
def leaky_relu(call: Call, x: Tensor, *, negative_slope: Any = None, alpha: Any = None) -> Tensor:
    """Leaky ReLU; the slope is `negative_slope` in Keras 3, `alpha` in Keras 2."""
    slope = alpha if negative_slope is None else negative_slope
    return Tensor(call.op("LeakyRelu", x.value, alpha=0.3 if slope is None else _number(slope)), x.moved)


def _number(value: Any) -> float:
    """A number, which Keras 2 sometimes writes as an array of rank 0."""
    return float(value["config"]["value"] if isinstance(value, Mapping) and "config" in value else value)


@keras_layer("PReLU", weights=[Slot("alpha")])
def prelu(call: Call, x: Tensor, *, shared_axes: Any = None) -> Tensor:
    """PReLU: a learned slope for negative values."""
    shared = set(shared_axes or ())
    expected = [1 if i in shared else size for i, size in enumerate(x.shape)][1:]
    perm = [len(expected) - 1, *range(len(expected) - 1)] if x.moved else None
    return Tensor(call.op("PRelu", x.value, call.weight("alpha", expected, perm=perm)), x.moved)


@keras_layer("ELU")
def elu(call: Call, x: Tensor, *, alpha: Any = 1.0) -> Tensor:
    """The exponential linear unit."""
    return Tensor(call.op("Elu", x.value, alpha=_number(alpha)), x.moved)


@keras_layer("ThresholdedReLU")
def thresholded_relu(call: Call, x: Tensor, *, theta: Any = 1.0) -> Tensor:
    """`x` where above `theta`, else 0; Keras 2 only."""
    return Tensor(call.op("ThresholdedRelu", x.value, alpha=_number(theta)), x.moved)


@keras_layer("Softmax")
def softmax(call: Call, x: Tensor, *, axis: Any = -1) -> Tensor:
    """The softmax over one axis."""
    (only,) = axis if isinstance(axis, list) else [axis]
    return Tensor(call.op("Softmax", x.value, axis=x.axis(only)), x.moved)
