"""Rules of elementary functions, arithmetic, and operators that pass a tensor through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

Derivative = Callable[[Builder, Value, Value, Value], Value]
"""(t, g, y, x) -> the cotangent of `x`."""

_UNARY: dict[str, Derivative] = {
    "Identity": lambda t, g, y, x: g,
    "Neg": lambda t, g, y, x: -g,
    "Abs": lambda t, g, y, x: g * t.op("Sign", x),
    "Exp": lambda t, g, y, x: g * y,
    "Log": lambda t, g, y, x: g / x,
    "Sqrt": lambda t, g, y, x: g / (y * 2.0),
    # Multiply from the left: the square of the output can overflow float16 where the product does not.
    "Reciprocal": lambda t, g, y, x: -(g * y * y),
    "Erf": lambda t, g, y, x: g * (t.op("Exp", -(x * x)) * (2.0 / math.sqrt(math.pi))),
    "Sin": lambda t, g, y, x: g * t.op("Cos", x),
    "Cos": lambda t, g, y, x: -(g * t.op("Sin", x)),
    "Tan": lambda t, g, y, x: g * (y * y + 1.0),
    "Asin": lambda t, g, y, x: g / t.op("Sqrt", 1.0 - x * x),
    "Acos": lambda t, g, y, x: -(g / t.op("Sqrt", 1.0 - x * x)),
    "Atan": lambda t, g, y, x: g / (x * x + 1.0),
    "Sinh": lambda t, g, y, x: g * t.op("Cosh", x),
    "Cosh": lambda t, g, y, x: g * t.op("Sinh", x),
    "Asinh": lambda t, g, y, x: g / t.op("Sqrt", x * x + 1.0),
    # Two factors: x * x - 1 loses its digits near one.
    "Acosh": lambda t, g, y, x: g / t.op("Sqrt", (x - 1.0) * (x + 1.0)),
    "Atanh": lambda t, g, y, x: g / ((1.0 - x) * (x + 1.0)),
}


def _register(op_type: str, derivative: Derivative) -> None:
    @vjp(op_type)
    def rule(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
        return [derivative(t, g, y, x)]


for _op_type, _derivative in _UNARY.items():
    _register(_op_type, _derivative)


@vjp("Cast")
def cast(
    t: Builder, g: Value, y: Value, x: Value, *, to: int, saturate: int = 1, round_mode: str = "up"
) -> Sequence[Cotangent]:
    """The cotangent in the type of the input; a small integer has a floating-point one."""
    return [t.cast(g, x.dtype) if x.is_float else g]


@vjp("CastLike", stops=(1,))
def cast_like(
    t: Builder, g: Value, y: Value, x: Value, like: Value, *, saturate: int = 1, round_mode: str = "up"
) -> Sequence[Cotangent]:
    """As Cast; `like` contributes only its type."""
    return [t.cast(g, x.dtype) if x.is_float else g, None]


@vjp("Dropout", stops=(1,))
def dropout(
    t: Builder, g: Value, y: Value, x: Value, ratio: Value | None = None, training_mode: Value | None = None,
    *, seed: int | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """The identity, which Dropout is at inference."""
    if training_mode is not None:
        training = training_mode.array()
        if training is None or training.any():
            raise UnsupportedError(
                f"the Dropout that produces {y.name!r} is in training mode; export the model for inference"
            )
    return [g, None, None]


@vjp("Add", broadcasts=True)
def add(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The cotangent, to both inputs."""
    return [g, g]


@vjp("Sub", broadcasts=True)
def sub(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The cotangent, negative for the subtrahend."""
    return [g, lambda: -g]


@vjp("Mul", broadcasts=True)
def mul(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The cotangent times the other factor."""
    return [lambda: g * b, lambda: g * a]


@vjp("Div", broadcasts=True)
def div(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The quotient rule, written with the quotient."""
    return [lambda: g / b, lambda: -(g * y / b)]


@vjp("Mod", broadcasts=True)
def mod(t: Builder, g: Value, y: Value, a: Value, b: Value, *, fmod: int = 0) -> Sequence[Cotangent]:
    """`y = a - b q` with an integer q, floored or truncated; Round removes the rounding error of the division."""
    return [g, lambda: -(g * t.op("Round", (a - y) / b))]


@vjp("Pow", broadcasts=True)
def power(t: Builder, g: Value, y: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """Base: b a^(b-1), zero for a zero exponent. Exponent: y log a, zero where a is not positive."""

    def base() -> Value:
        exponent = b.array()
        if exponent is not None and exponent.size == 1:
            e = float(exponent.item())
            if e == 0.0:
                return t.op("Expand", t.const(0.0, a.dtype), t.shape_of(y), shape=y.known_shape)
            return g if e == 1.0 else g * (a * 2.0) if e == 2.0 else g * ((a ** (e - 1.0)) * e)
        wide = t.cast(b, a.dtype)
        # At a zero exponent 0 * a^(-1) would be NaN for a zero base.
        zero = t.op("Equal", wide, 0.0)
        return t.op("Where", zero, 0.0, g * (wide * (a ** t.op("Where", zero, 1.0, wide - 1.0))))

    def exponent() -> Value:
        positive = a > 0.0
        logarithm = t.op("Log", t.op("Where", positive, a, 1.0))
        return t.cast(t.op("Where", positive, g * (y * logarithm), 0.0), b.dtype)

    return [base, exponent]


@vjp("Sum", broadcasts=True)
def variadic_sum(t: Builder, g: Value, y: Value, *xs: Value) -> Sequence[Cotangent]:
    """The cotangent, to every input."""
    return [g] * len(xs)


@vjp("Mean", broadcasts=True)
def variadic_mean(t: Builder, g: Value, y: Value, *xs: Value) -> Sequence[Cotangent]:
    """An equal share of the cotangent, to every input."""
    share = g if len(xs) == 1 else g * (1.0 / len(xs))
    return [share] * len(xs)


@vjp("Max", "Min", broadcasts=True)
def extremum(t: Builder, g: Value, y: Value, *xs: Value) -> Sequence[Cotangent]:
    """The inputs that equal the output share the cotangent evenly, as in PyTorch's `maximum` and `minimum`."""
    if len(xs) == 1:
        return [g]
    hits = [t.cast(t.op("Equal", x, y), y.dtype) for x in xs]
    share = g / t.op("Sum", *hits)
    return [share * hit for hit in hits]


@vjp("Where", broadcasts=True)
def where(t: Builder, g: Value, y: Value, condition: Value, a: Value, b: Value) -> Sequence[Cotangent]:
    """The cotangent, to the selected input."""
    return [None, lambda: t.op("Where", condition, g, 0.0), lambda: t.op("Where", condition, 0.0, g)]


@vjp("Range", stops=(1,))
def arange(
    t: Builder, g: Value, y: Value, start: Value, limit: Value, delta: Value, *, stash_type: int = 1
) -> Sequence[Cotangent]:
    """`start + i * delta`; the limit decides only the length."""

    def step() -> Value:
        index = t.op("Range", t.const(np.int64(0)), t.op("Size", g), t.const(np.int64(1)))
        return t.sum(g * t.cast(index, g.dtype), keepdims=False)

    return [lambda: t.sum(g, keepdims=False), None, step]
