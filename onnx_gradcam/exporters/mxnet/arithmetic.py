"""MXNet's activations, losses (as their predictions) and arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value

from .operator_table import SHAPE_REMEDY, Ints, Rule, SizeError, mxnet_operator

__all__: list[str] = []

_MOST_NUMBERS = 2**20
"""The longest constant that a node may make."""


@mxnet_operator("MakeLoss", ignored=("grad_scale", "valid_thresh", "normalization"))
@mxnet_operator("_copy", "identity", "BlockGrad", "stop_gradient", "make_loss", "_CrossDeviceCopy")
def identity(_t: Writer, data: Value) -> Value:
    """The input itself."""
    return data


@mxnet_operator(
    "LinearRegressionOutput",
    "MAERegressionOutput",
    "SVMOutput",
    ignored=("grad_scale", "margin", "regularization_coefficient", "use_linear"),
)
def regression_output(_t: Writer, data: Value, _label: Value | None = None) -> Value:
    """The prediction, which the loss compares with the label: the input itself."""
    return data


@mxnet_operator("Dropout", ignored=("p", "axes", "cudnn_off"))
def dropout(_t: Writer, data: Value, *, mode: str = "training") -> Value:
    """The input itself."""
    if mode != "training":
        raise ExportError(f"its mode is {mode}, which is random in prediction too; use training")
    return data


@mxnet_operator("Cast", "amp_cast")
def cast(t: Writer, data: Value, *, dtype: str) -> Value:
    """Another dtype."""
    if dtype not in ("float16", "float32", "float64", "uint8", "int8", "int32", "int64"):
        raise ExportError(f"its dtype is {dtype}; only floating-point and integer dtypes are known")
    return t.cast(data, dtype)


@mxnet_operator("_arange", ignored=("ctx",), layout="lost")
def arange(
    t: Writer,
    *,
    start: float,
    stop: float | None = None,
    step: float = 1.0,
    repeat: int = 1,
    infer_range: bool = False,
    dtype: str = "float32",
) -> Value:
    """Numbers from `start` to below `stop`, each repeated; without `stop`, from zero to below `start`."""
    first, last = (0.0, start) if stop is None else (start, stop)
    if infer_range or not step or not 0 <= (last - first) / step <= _MOST_NUMBERS or not 1 <= repeat <= _MOST_NUMBERS:
        raise ExportError(f"its range from {first} to {last} by {step} is open or too long; save a fixed range")
    return _filled(t, np.repeat(np.arange(first, last, step), repeat), dtype)


def _constant(value: float) -> Rule[Value]:
    def rule(t: Writer, *, shape: Ints, dtype: str = "float32") -> Value:
        """One number everywhere."""
        if min(shape, default=1) < 1 or math.prod(shape) > _MOST_NUMBERS:
            raise ExportError(f"its shape {shape} is open or too large; save a fixed shape")
        return _filled(t, np.full(shape, value), dtype)

    return rule


for _name, _number in {"_zeros": 0.0, "_ones": 1.0}.items():
    mxnet_operator(_name, ignored=("ctx",), layout="lost")(_constant(_number))


def _filled(t: Writer, content: np.ndarray[Any, Any], dtype: str) -> Value:
    return t.op("Identity", t.const(content, dtype))


def _over_rows(t: Writer, x: Value) -> Value:
    """Softmax over everything but the batch."""
    if x.rank == 2:
        return t.op("Softmax", x, axis=1)
    return t.reshape_like(t.op("Softmax", t.op("Flatten", x, axis=1), axis=1), x)


@mxnet_operator(
    "SoftmaxOutput",
    "Softmax",
    ignored=("grad_scale", "ignore_label", "use_ignore", "normalization", "out_grad", "smooth_alpha"),
)
def softmax_output(
    t: Writer, data: Value, _label: Value | None = None, *, multi_output: bool = False, preserve_shape: bool = False
) -> Value:
    """MXNet `src/operator/softmax_output-inl.h`: the softmax without the loss."""
    if multi_output:
        return t.op("Softmax", data, axis=1)
    return t.op("Softmax", data, axis=-1) if preserve_shape else _over_rows(t, data)


@mxnet_operator("LogisticRegressionOutput", ignored=("grad_scale",))
def logistic_output(t: Writer, data: Value, _label: Value | None = None) -> Value:
    """MXNet `src/operator/regression_output.cc`: the sigmoid without the loss."""
    return t.op("Sigmoid", data)


@mxnet_operator("SoftmaxActivation")
def softmax_activation(t: Writer, data: Value, *, mode: str = "instance") -> Value:
    """MXNet `src/operator/nn/softmax_activation.cc`."""
    if mode not in ("instance", "channel"):
        raise ExportError(f"its mode is {mode}; known are instance and channel")
    if mode == "instance" and data.rank != 2:
        raise ExportError(
            f"its mode is instance on {data.rank} dimensions, on which MXNet's own devices do not agree; use softmax"
        )
    return t.op("Softmax", data, axis=1)


def _softmax(kind: str, sign: float) -> Rule[Value]:
    def rule(
        t: Writer,
        data: Value,
        *,
        axis: int = -1,
        temperature: float | None = None,
        dtype: str | None = None,
        use_length: bool | None = False,
    ) -> Value:
        """MXNet `src/operator/nn/softmax-inl.h`."""
        if use_length:
            raise ExportError("its use_length is True, which is not supported; use fixed lengths")
        if temperature == 0:
            raise ExportError("its temperature is 0; give a positive number")
        scale = sign / (temperature or 1.0)
        result = t.op(kind, data if scale == 1.0 else data * scale, axis=axis)
        return result if dtype is None else cast(t, result, dtype=dtype)

    return rule


mxnet_operator("softmax")(_softmax("Softmax", 1.0))
mxnet_operator("log_softmax")(_softmax("LogSoftmax", 1.0))
mxnet_operator("softmin")(_softmax("Softmax", -1.0))

_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus", "softsign": "Softsign"}


@mxnet_operator("Activation")
def activation(t: Writer, data: Value, *, act_type: str) -> Value:
    """MXNet `src/operator/nn/activation.cc`."""
    if act_type not in _ACTIVATIONS:
        raise ExportError(f"its act_type is {act_type}; known are {', '.join(_ACTIVATIONS)}")
    return t.op(_ACTIVATIONS[act_type], data)


@mxnet_operator("LeakyReLU")
def leaky_relu(
    t: Writer,
    data: Value,
    gamma: Value | None = None,
    *,
    act_type: str = "leaky",
    slope: float = 0.25,
    lower_bound: float = 0.125,
    upper_bound: float = 0.334,
) -> Value:
    """MXNet `src/operator/leaky_relu-inl.h`; in prediction `rrelu` uses the mean of its bounds."""
    if act_type == "prelu":
        return _prelu(t, data, gamma)
    if act_type == "gelu":
        return data * 0.5 * (t.op("Erf", data / math.sqrt(2)) + 1.0)
    simple = {
        "leaky": ("LeakyRelu", slope),
        "rrelu": ("LeakyRelu", (lower_bound + upper_bound) / 2),
        "elu": ("Elu", slope),
        "selu": ("Selu", None),
    }
    if act_type not in simple:
        raise ExportError(f"its act_type is {act_type}; known are prelu, gelu, {', '.join(simple)}")
    kind, alpha = simple[act_type]
    return t.op(kind, data, alpha=alpha)


def _prelu(t: Writer, x: Value, gamma: Value | None) -> Value:
    slopes = None if gamma is None else gamma.array()
    if gamma is None or slopes is None or slopes.ndim != 1 or slopes.size not in (1, x.shape[1]):
        raise SizeError(f"its slopes are not one number, or one per channel of {x.shape[1]}; give the right .params")
    return t.op("PRelu", x, t.const(slopes.reshape(-1, *[1] * (x.rank - 2))))


@mxnet_operator("clip")
def clip(t: Writer, data: Value, *, a_min: float, a_max: float) -> Value:
    """Clip to `[a_min, a_max]`."""
    return t.op("Clip", data, a_min, a_max)


@mxnet_operator("hard_sigmoid")
def hard_sigmoid(t: Writer, data: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    """`clip(alpha x + beta, 0, 1)`."""
    return t.op("HardSigmoid", data, alpha=alpha, beta=beta)


def _unary(kind: str) -> Rule[Value]:
    def rule(t: Writer, data: Value) -> Value:
        return t.op(kind, data)

    return rule


_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softsign": "Softsign", "erf": "Erf", "exp": "Exp",
    "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "negative": "Neg", "reciprocal": "Reciprocal", "floor": "Floor",
    "ceil": "Ceil", "sin": "Sin", "cos": "Cos",
}  # fmt: skip
for _name, _kind in _UNARY.items():
    mxnet_operator(_name)(_unary(_kind))


@mxnet_operator("square")
def square(_t: Writer, data: Value) -> Value:
    """The square."""
    return data * data


@mxnet_operator("rsqrt")
def reciprocal_square_root(t: Writer, data: Value) -> Value:
    """One over the square root."""
    return t.op("Reciprocal", t.op("Sqrt", data))


def _binary(kind: str, *, equal: bool) -> Rule[Value]:
    def rule(t: Writer, lhs: Value, rhs: Value) -> Value:
        if equal:
            _check_equal(lhs, rhs)
        return t.op(kind, lhs, rhs)

    return rule


def _check_equal(a: Value, b: Value) -> None:
    """Refuse shapes that ONNX would broadcast and MXNet refuses."""
    pairs = [(x, y) for x, y in zip(a.shape, b.shape, strict=False) if isinstance(x, int) and isinstance(y, int)]
    if a.rank != b.rank or any(x != y for x, y in pairs):
        raise SizeError(
            f"its inputs have shapes {list(a.shape)} and {list(b.shape)}, which are not equal; {SHAPE_REMEDY}"
        )


_BINARY = {
    "Add": (("broadcast_add", "broadcast_plus"), ("elemwise_add", "_plus", "_Plus", "_add", "_grad_add")),
    "Sub": (("broadcast_sub", "broadcast_minus"), ("elemwise_sub", "_minus", "_Minus", "_sub")),
    "Mul": (("broadcast_mul",), ("elemwise_mul", "_mul", "_Mul")),
    "Div": (("broadcast_div",), ("elemwise_div", "_div", "_Div")),
    "Max": (("broadcast_maximum",), ("_maximum", "_Maximum")),
    "Min": (("broadcast_minimum",), ("_minimum", "_Minimum")),
    "Pow": (("broadcast_power",), ("_power", "_Power")),
}
for _kind, (_broadcasting, _equal) in _BINARY.items():
    mxnet_operator(*_broadcasting)(_binary(_kind, equal=False))
    mxnet_operator(*_equal)(_binary(_kind, equal=True))


def _scalar(kind: str, *, reverse: bool) -> Rule[Value]:
    def rule(t: Writer, data: Value, *, scalar: float = 1.0) -> Value:
        return t.op(kind, scalar, data) if reverse else t.op(kind, data, scalar)

    return rule


_SCALAR = {
    "Add": (("_plus_scalar", "_PlusScalar"), ()),
    "Sub": (("_minus_scalar", "_MinusScalar"), ("_rminus_scalar", "_RMinusScalar")),
    "Mul": (("_mul_scalar", "_MulScalar"), ()),
    "Div": (("_div_scalar", "_DivScalar"), ("_rdiv_scalar", "_RDivScalar")),
    "Max": (("_maximum_scalar", "_MaximumScalar"), ()),
    "Min": (("_minimum_scalar", "_MinimumScalar"), ()),
    "Pow": (("_power_scalar", "_PowerScalar"), ("_rpower_scalar", "_RPowerScalar")),
}
for _kind, (_forward, _backward) in _SCALAR.items():
    mxnet_operator(*_forward, ignored=("is_int",))(_scalar(_kind, reverse=False))
    if _backward:
        mxnet_operator(*_backward, ignored=("is_int",))(_scalar(_kind, reverse=True))


@mxnet_operator("add_n", "ElementWiseSum", ignored=("num_args",))
def add_n(t: Writer, *args: Value) -> Value:
    """The sum of any number of tensors of one shape."""
    for other in args[1:]:
        _check_equal(args[0], other)
    return t.op("Sum", *args)


@mxnet_operator("broadcast_to")
def broadcast_to(t: Writer, data: Value, *, shape: Ints = ()) -> Value:
    """Broadcast to a shape; 0 keeps a dimension."""
    if len(shape) != data.rank or min(shape, default=0) < 0:
        raise ExportError(f"its shape is {shape}, but must be {data.rank} non-negative integers")
    return t.op("Expand", data, t.ints(*(number or 1 for number in shape)))


@mxnet_operator("broadcast_axis", "broadcast_axes")
def broadcast_axis(t: Writer, data: Value, *, axis: Ints = (), size: Ints = ()) -> Value:
    """Broadcast single axes of size one."""
    if len(axis) != len(size) or any(not -data.rank <= a < data.rank for a in axis) or min(size, default=1) < 1:
        raise ExportError(f"its axis {axis} and size {size} do not fit together; save the symbol again")
    sizes = {a % data.rank: number for a, number in zip(axis, size, strict=True)}
    return t.op("Expand", data, t.ints(*(sizes.get(i, 1) for i in range(data.rank))))


@mxnet_operator("broadcast_like")
def broadcast_like(
    t: Writer, lhs: Value, rhs: Value, *, lhs_axes: Ints | None = None, rhs_axes: Ints | None = None
) -> Value:
    """Broadcast to the shape of another tensor."""
    if lhs_axes is not None or rhs_axes is not None:
        raise ExportError(f"its lhs_axes are {lhs_axes}; only broadcasting of all axes is known")
    return t.expand_like(lhs, rhs)
