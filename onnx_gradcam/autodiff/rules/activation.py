"""Rules of rectifiers, exponential units, sigmoids and softmax.

They are written from the output wherever possible, so that runtimes keep fusing the activation into the node before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_gradcam.autodiff.registry import Cotangent, vjp, zero_gradient
from onnx_gradcam.graph.builder import Builder, Value


@vjp("Relu")
def relu(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The gradient passes where the output is positive."""
    return [t.op("Where", y > 0.0, g, 0.0)]


@vjp("LeakyRelu")
def leaky_relu(t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 0.01) -> Sequence[Cotangent]:
    """The gradient passes where the output is positive, times alpha elsewhere."""
    return [t.op("Where", _sign_of(x, y, alpha) > 0.0, g, g * alpha)]


@vjp("PRelu", broadcasts=True)
def prelu(t: Builder, g: Value, y: Value, x: Value, slope: Value) -> Sequence[Cotangent]:
    """LeakyRelu with a slope that broadcasts and can be learnt."""
    constant = slope.array()
    not_negative = constant is not None and bool((constant >= 0).all())
    return [
        lambda: t.op("Where", (y if not_negative else x) > 0.0, g, g * slope),
        lambda: t.op("Where", x > 0.0, 0.0, g * x),
    ]


@vjp("ThresholdedRelu")
def thresholded_relu(t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 1.0) -> Sequence[Cotangent]:
    """The gradient passes above the threshold."""
    return [t.op("Where", y > 0.0 if alpha >= 0 else x > alpha, g, 0.0)]


@vjp("Shrink")
def shrink(t: Builder, g: Value, y: Value, x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Sequence[Cotangent]:
    """The gradient passes outside of [-lambd, lambd]."""
    return [t.op("Where", t.op("Abs", x) > lambd, g, 0.0)]


@vjp("Clip", stops=(1, 2))
def clip(
    t: Builder, g: Value, y: Value, x: Value, low: Value | None = None, high: Value | None = None
) -> Sequence[Cotangent]:
    """The gradient passes strictly between the bounds, as in PyTorch's `hardtanh` and TensorFlow's `relu6`."""
    if low is not None:
        g = t.op("Where", y > low, g, 0.0)
    if high is not None:
        g = t.op("Where", y < high, g, 0.0)
    return [g, None, None]


@vjp("HardSigmoid")
def hard_sigmoid(
    t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 0.2, beta: float = 0.5
) -> Sequence[Cotangent]:
    """Alpha where the output is strictly between 0 and 1."""
    return [t.op("Where", t.op("And", y > 0.0, y < 1.0), g * alpha, 0.0)]


@vjp("HardSwish")
def hard_swish(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """0 below -3, 1 above 3, x/3 + 1/2 between."""
    ramp = t.op("Where", x < 3.0, g * (x * (1.0 / 3.0) + 0.5), g)
    return [t.op("Where", x > -3.0, ramp, 0.0)]


@vjp("Elu")
def elu(t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 1.0) -> Sequence[Cotangent]:
    """Below zero, alpha e^x, which is y + alpha."""
    return [t.op("Where", _sign_of(x, y, alpha) > 0.0, g, g * (y + alpha))]


@vjp("Selu")
def selu(
    t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323
) -> Sequence[Cotangent]:
    """Elu times gamma."""
    positive = _sign_of(x, y, min(alpha, gamma)) > 0.0
    return [t.op("Where", positive, g * gamma, g * (y + gamma * alpha))]


@vjp("Celu")
def celu(t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 1.0) -> Sequence[Cotangent]:
    """Below zero, e^(x / alpha), which is y / alpha + 1."""
    return [t.op("Where", y > 0.0, g, g * (y * (1.0 / alpha) + 1.0))]


def _sign_of(x: Value, y: Value, slope: float) -> Value:
    """A tensor with the sign of the input: the output, unless the slope below zero is negative."""
    return y if slope >= 0 else x


@vjp("Sigmoid")
def sigmoid(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The derivative is y (1 - y)."""
    return [g * (y * (1.0 - y))]


@vjp("Tanh")
def tanh(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """1 - y^2."""
    return [g * (1.0 - y * y)]


@vjp("Softplus")
def softplus(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The sigmoid."""
    return [g * t.op("Sigmoid", x)]


@vjp("Softsign")
def softsign(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """1 / (1 + |x|)^2."""
    d = t.op("Abs", x) + 1.0
    return [g / (d * d)]


@vjp("Gelu")
def gelu(t: Builder, g: Value, y: Value, x: Value, *, approximate: str = "none") -> Sequence[Cotangent]:
    """The normal distribution function plus x times its density, or the derivative of the tanh approximation.

    Hendrycks and Gimpel 2016, section 2.
    """
    if approximate == "none":
        cdf = t.op("Erf", x * math.sqrt(0.5)) * 0.5 + 0.5
        density = t.op("Exp", x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
        return [g * (cdf + x * density)]
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    # Beyond 16 the slope is 0 or 1 to the last digit, and squares overflow in float16.
    x = t.op("Clip", x, -16.0, 16.0)
    square = x * x
    th = t.op("Tanh", x * (square * (scale * cubic) + scale))
    slope = square * (3.0 * scale * cubic) + scale
    return [g * ((th + 1.0) * 0.5 + (1.0 - th * th) * (x * slope * 0.5))]


@vjp("Mish")
def mish(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
    """The product rule on x tanh(softplus(x))."""
    th = t.op("Tanh", t.op("Softplus", x))
    return [g * (th + x * t.op("Sigmoid", x) * (1.0 - th * th))]


@vjp("Swish")
def swish(t: Builder, g: Value, y: Value, x: Value, *, alpha: float = 1.0) -> Sequence[Cotangent]:
    """The product rule on x sigmoid(alpha x)."""
    return [g * _swish_slope(t, x, alpha)]


@vjp("SwiGLU")
def swiglu(t: Builder, g: Value, y: Value, a: Value, b: Value, *, alpha: float = 1.0) -> Sequence[Cotangent]:
    """The product rule on swish(a) b."""
    return [lambda: g * b * _swish_slope(t, a, alpha), lambda: g * (a * t.op("Sigmoid", a * alpha))]


def _swish_slope(t: Builder, x: Value, alpha: float) -> Value:
    s = t.op("Sigmoid", x if alpha == 1.0 else x * alpha)
    return s + x * alpha * (s * (1.0 - s))


# One at the largest element, zero elsewhere: a step function.
zero_gradient("Hardmax")


@vjp("Softmax")
def softmax(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1) -> Sequence[Cotangent]:
    """The cotangent is y (g - sum(g y))."""
    weighted = g * y
    return [weighted - y * t.sum(weighted, [axis])]


@vjp("LogSoftmax")
def log_softmax(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1) -> Sequence[Cotangent]:
    """The cotangent is g - e^y sum(g)."""
    return [g - t.op("Exp", y) * t.sum(g, [axis])]
