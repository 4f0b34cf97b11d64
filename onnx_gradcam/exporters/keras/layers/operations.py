"""Keras operations outside of layers: `keras.ops` in Keras 3, TensorFlow's functions in Keras 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import operation

from .activations import FUNCTIONS, activate, gelu
from .rearranging import without_axes

__all__: list[str] = []


def _binary(op_type: str, *names: str, tf: Sequence[str]) -> None:
    """Register an elementwise operator of two tensors, or of a tensor and a constant."""

    @operation(*names, tf=tf)
    def write(call: Call, x1: Any, x2: Any) -> Tensor:
        tensors = [x for x in (x1, x2) if isinstance(x, Tensor)]
        if len(tensors) == 2:
            if x1.rank != x2.rank:
                return call.settle(Tensor(call.op(op_type, *(call.plain(x).value for x in tensors))))
            (a, b), moved = call.aligned(tensors)
            return Tensor(call.op(op_type, a, b), moved)
        (only,) = tensors
        constants = [np.asarray(x, np.float32) for x in (x1, x2) if not isinstance(x, Tensor)]
        if any(c.dtype.kind != "f" or c.ndim > only.rank for c in constants):
            call.refuse(f"it combines a tensor with {constants}")
        values = [x.value if isinstance(x, Tensor) else call.constant(x, only) for x in (x1, x2)]
        return Tensor(call.op(op_type, *values), only.moved)


_binary("Add", "Add", tf=["__operators__.add", "math.add", "add"])
_binary("Sub", "Subtract", tf=["__operators__.sub", "math.subtract", "subtract"])
_binary("Mul", "Multiply", tf=["__operators__.mul", "math.multiply", "multiply"])
_binary("Div", "Divide", "TrueDivide", tf=["__operators__.truediv", "math.truediv", "math.divide", "divide"])
_binary("Max", "Maximum", tf=["math.maximum", "maximum"])
_binary("Min", "Minimum", tf=["math.minimum", "minimum"])
_binary("Pow", "Power", tf=["__operators__.pow", "math.pow", "pow"])


@operation(tf=["nn.bias_add"])
def bias_add(call: Call, x: Tensor, bias: Any, *, data_format: str | None = None) -> Tensor:
    """A number per channel added."""
    content, channel = np.asarray(bias, np.float32), 1 if str(data_format).startswith("NC") else x.rank - 1
    sizes = [content.size if axis == channel else 1 for axis in range(x.rank)]
    return Tensor(call.op("Add", x.value, call.constant(content.reshape(sizes), x)), x.moved)


def _single(op_type: str, *names: str, tf: Sequence[str] = ()) -> None:
    """Register an operation that is one ONNX operator of one tensor."""

    @operation(*names, tf=tf)
    def write(call: Call, x: Tensor) -> Tensor:
        return Tensor(call.op(op_type, x.value), x.moved)


_single("Neg", "Negative", tf=["math.negative"])
_single("Abs", "Abs", "Absolute", tf=["math.abs"])
_single("Exp", "Exp", tf=["math.exp"])
_single("Log", "Log", tf=["math.log"])
_single("Sqrt", "Sqrt", tf=["math.sqrt", "sqrt"])
_single("Reciprocal", "Reciprocal", tf=["math.reciprocal"])
_single("Erf", "Erf", tf=["math.erf"])
_single("Sin", "Sin", tf=["math.sin", "sin"])
_single("Cos", "Cos", tf=["math.cos", "cos"])


def _activation(name: str, *names: str, tf: Sequence[str] = ()) -> None:
    """Register an operation that is an activation function without arguments."""

    @operation(*names, tf=tf)
    def write(call: Call, x: Tensor) -> Tensor:
        return Tensor(FUNCTIONS[name](call, x.value), x.moved)


_activation("relu", "Relu", tf=["nn.relu"])
_activation("relu6", "Relu6", tf=["nn.relu6"])
_activation("sigmoid", "Sigmoid", tf=["math.sigmoid", "sigmoid"])
_activation("tanh", "Tanh", tf=["math.tanh", "tanh"])
_activation("silu", "Silu")
_activation("hard_sigmoid", "HardSigmoid")
_activation("hard_silu", "HardSilu")
_activation("softplus", "Softplus", tf=["math.softplus"])
_activation("softsign", "Softsign", tf=["nn.softsign"])
_activation("selu", "Selu", tf=["nn.selu"])


@operation("Square", tf=["math.square", "square"])
def square(call: Call, x: Tensor) -> Tensor:
    """The square."""
    return Tensor(call.op("Mul", x.value, x.value), x.moved)


@operation("Rsqrt", tf=["math.rsqrt", "rsqrt"])
def rsqrt(call: Call, x: Tensor) -> Tensor:
    """One over the square root."""
    return Tensor(call.op("Reciprocal", call.op("Sqrt", x.value)), x.moved)


@operation("Gelu")
def gelu_of(call: Call, x: Tensor, *, approximate: Any = True) -> Tensor:
    """GELU; Keras's operation approximates by default."""
    return Tensor(gelu(call, x.value, approximate=bool(approximate)), x.moved)


@operation(tf=["nn.gelu"])
def gelu_of_tensorflow(call: Call, x: Tensor, *, approximate: Any = False) -> Tensor:
    """GELU; TensorFlow's function is exact by default."""
    return Tensor(gelu(call, x.value, approximate=bool(approximate)), x.moved)


@operation("Softmax", tf=["nn.softmax"])
def softmax(call: Call, x: Tensor, axis: Any = -1) -> Tensor:
    """The softmax over one axis."""
    return Tensor(call.op("Softmax", x.value, axis=x.axis(-1 if axis is None else axis)), x.moved)


@operation("LogSoftmax", tf=["nn.log_softmax"])
def log_softmax(call: Call, x: Tensor, axis: Any = -1) -> Tensor:
    """The logarithm of the softmax over one axis."""
    return Tensor(call.op("LogSoftmax", x.value, axis=x.axis(-1 if axis is None else axis)), x.moved)


@operation("LeakyRelu")
def leaky_relu(call: Call, x: Tensor, negative_slope: Any = 0.2) -> Tensor:
    """Leaky ReLU."""
    return Tensor(call.op("LeakyRelu", x.value, alpha=float(negative_slope)), x.moved)


@operation("Clip", tf=["clip_by_value"])
def clip(call: Call, x: Tensor, x_min: Any, x_max: Any) -> Tensor:
    """The tensor clipped to two bounds."""
    return Tensor(call.op("Clip", x.value, float(x_min), float(x_max)), x.moved)


def _reduced(call: Call, op_type: str, x: Tensor, axis: Any, *, keepdims: bool) -> Tensor:
    if axis is None:
        call.refuse("it reduces over the batch")
    axes = sorted(a % x.rank for a in (axis if isinstance(axis, (list, tuple)) else [axis]))
    if not axes or axes[0] == 0:
        call.refuse("it reduces over the batch")
    if keepdims:
        return Tensor(call.writer.reduce(op_type, x.value, [x.axis(a) for a in axes]), x.moved)
    return without_axes(call, x, axes, call.writer.reduce(op_type, x.value, [x.axis(a) for a in axes], keepdims=False))


def _reducing(op_type: str, name: str, *, tf: Sequence[str]) -> None:
    """Register a reduction over some axes."""

    @operation(name, tf=tf)
    def write(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False) -> Tensor:
        return _reduced(call, op_type, x, axis, keepdims=bool(keepdims))


_reducing("ReduceMean", "Mean", tf=["math.reduce_mean", "reduce_mean"])
_reducing("ReduceSum", "Sum", tf=["math.reduce_sum", "reduce_sum"])


def _extreme(op_type: str, name: str, *, tf: Sequence[str]) -> None:
    """Register the largest or smallest number over some axes."""

    @operation(name, tf=tf)
    def write(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False, initial: Any = None) -> Tensor:
        if initial is not None:
            call.refuse("it has an initial value")
        return _reduced(call, op_type, x, axis, keepdims=bool(keepdims))


_extreme("ReduceMax", "Max", tf=["math.reduce_max", "reduce_max"])
_extreme("ReduceMin", "Min", tf=["math.reduce_min", "reduce_min"])


@operation("Var", tf=["math.reduce_variance"])
def variance(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False) -> Tensor:
    """The variance over some axes."""
    difference = Tensor(x.value - _reduced(call, "ReduceMean", x, axis, keepdims=True).value, x.moved)
    return _reduced(call, "ReduceMean", square(call, difference), axis, keepdims=bool(keepdims))


@operation("Std", tf=["math.reduce_std"])
def deviation(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False) -> Tensor:
    """The standard deviation over some axes."""
    spread = variance(call, x, axis, keepdims=keepdims)
    return Tensor(call.op("Sqrt", spread.value), spread.moved)


@operation("Identity", "StopGradient", tf=["identity", "stop_gradient"])
def identity(call: Call, x: Tensor) -> Tensor:
    """The tensor itself."""
    return activate(call, x, None)


@operation("Cast", tf=["cast"])
def cast(call: Call, x: Tensor, dtype: Any) -> Tensor:
    """No change between floating-point dtypes: everything is computed in float32."""
    if dtype not in {"float16", "bfloat16", "float32", "float64"}:
        call.refuse(f"it casts to {dtype!r}")
    return x
