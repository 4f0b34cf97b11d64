"""Keras operations outside of layers: `keras.ops` in Keras 3, TensorFlow's functions in Keras 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_gradcam.exporters.keras.call import Call, Tensor
from onnx_gradcam.exporters.keras.layer_table import operation
from onnx_gradcam.graph.builder import Value

from .activations import FUNCTIONS, activate, gelu
from .structure import END, reshaped

__all__: list[str] = []


def _binary(op_type: str, *names: str, tf: Sequence[str]) -> None:
    """Register an elementwise operator of two tensors, or of a tensor and a constant."""

    @operation(*names, tf=tf)
    def write(call: Call, x1: Any, x2: Any) -> Tensor:
        tensors = [x for x in (x1, x2) if isinstance(x, Tensor)]
        if len(tensors) == 2:
            if x1.rank != x2.rank:
                call.refuse(f"it combines tensors of ranks {x1.rank} and {x2.rank}")
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
    return _without_axes(call, x, axes, call.writer.reduce(op_type, x.value, [x.axis(a) for a in axes], keepdims=False))


def _without_axes(call: Call, x: Tensor, axes: Sequence[int], y: Value) -> Tensor:
    """`y`, which is `x` without Keras's `axes`, with the remaining axes in Keras's order; maps are moved again."""
    kept = [x.axis(a) for a in range(x.rank) if a not in axes]
    return call.settle(Tensor(call.writer.transpose(y, [sorted(kept).index(k) for k in kept])))


def _reducing(op_type: str, name: str, *, tf: Sequence[str]) -> None:
    """Register a reduction over some axes."""

    @operation(name, tf=tf)
    def write(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False) -> Tensor:
        return _reduced(call, op_type, x, axis, keepdims=bool(keepdims))


_reducing("ReduceMean", "Mean", tf=["math.reduce_mean", "reduce_mean"])
_reducing("ReduceSum", "Sum", tf=["math.reduce_sum", "reduce_sum"])


@operation("Max", tf=["math.reduce_max", "reduce_max"])
def largest(call: Call, x: Tensor, axis: Any = None, *, keepdims: Any = False, initial: Any = None) -> Tensor:
    """The maximum over some axes."""
    if initial is not None:
        call.refuse("it has an initial value")
    return _reduced(call, "ReduceMax", x, axis, keepdims=bool(keepdims))


@operation("Reshape", tf=["reshape"])
def reshape(call: Call, x: Tensor, newshape: Any) -> Tensor:
    """Another shape, with the elements in Keras's order; the batch stays."""
    shape = list(newshape)
    if shape[:1] not in ([-1], [None]):
        call.refuse(f"it gives the batch the size {shape[:1]}")
    return reshaped(call, x, [-1 if d is None else d for d in shape[1:]])


def _bounds(key: int | slice) -> tuple[int, int, int]:
    """Start, end and step of ONNX's Slice."""
    if isinstance(key, int):
        return key, key + 1 or END, 1
    step = 1 if key.step is None else int(key.step)
    start = (0 if step > 0 else END) if key.start is None else int(key.start)
    end = (END if step > 0 else -END) if key.stop is None else int(key.stop)
    return start, end, step


@operation("GetItem")
def get_item(call: Call, x: Tensor, key: Any) -> Tensor:
    """Indexing with integers, slices and an ellipsis, as in `x[..., 0]`; the batch stays whole."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    if keys.count(...) > 1 or not all(
        k is ... or (isinstance(k, (int, slice)) and not isinstance(k, bool)) for k in keys
    ):
        call.refuse(f"it indexes with {key!r}")
    at = keys.index(...) if ... in keys else len(keys)
    rest = [k for k in keys if k is not ...]
    full = [*rest[:at], *[slice(None)] * (x.rank - len(rest)), *rest[at:]]
    if len(full) != x.rank or full[0] != slice(None):
        call.refuse(f"it indexes the batch, or more than {x.rank} axes")
    y = x.value
    for axis, k in enumerate(full):
        if k != slice(None):
            y = call.op("Slice", y, *map(call.writer.ints, (*_bounds(k)[:2], x.axis(axis), _bounds(k)[2])))
    dropped = [axis for axis, k in enumerate(full) if isinstance(k, int)]
    if not dropped:
        return Tensor(y, x.moved)
    return _without_axes(call, x, dropped, call.op("Squeeze", y, call.writer.ints(*(x.axis(a) for a in dropped))))


@operation("Stack")
def stack(call: Call, xs: Any, axis: Any = 0) -> Tensor:
    """The tensors of a list along a new axis."""
    tensors = [call.plain(x).value for x in xs]
    rank = tensors[0].rank + 1
    if axis % rank == 0:
        call.refuse("it stacks along the batch")
    # Maps get their channels second at once.
    moved = axis % rank == rank - 1 and rank >= 4 and call.channels_last
    place = 1 if moved else axis % rank
    raised = [call.op("Unsqueeze", value, call.writer.ints(place)) for value in tensors]
    y = Tensor(call.op("Concat", *raised, axis=place), moved)
    return y if moved else call.settle(y)


@operation("Concatenate", tf=["concat"])
def concatenate(call: Call, *xs: Any, axis: Any = -1) -> Tensor:
    """Concatenation of tensors or a list of them along one axis."""
    values, moved = call.aligned(xs[0] if isinstance(xs[0], list) else xs)
    return Tensor(call.op("Concat", *values, axis=Tensor(values[0], moved).axis(axis)), moved)


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
