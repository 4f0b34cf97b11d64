"""What LibraGrad passes back through smooth activations and normalizations (`onnx_gradcam.autodiff.libra`).

An activation `phi` is passed along its chord, `(phi(x) - phi(0)) / x`, so that x times the slope is `phi(x) - phi(0)`;
a normalization as if its standard deviation or norm were a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx_gradcam.autodiff.registry import Cotangent, RuleFunction
from onnx_gradcam.graph.builder import Builder, Value

from .normalization import Standardised, channel_means, per_channel, widened

__all__ = ["CHORDS", "CONSTANT_SCALES", "Chord"]

_SMALL = 1e-3
"""Below this magnitude a chord is its series around zero, which is right to the last digits of float32."""


@dataclass(frozen=True)
class Chord:
    """The chord of an activation from zero: its slope there, and where it starts.

    Attributes:
        slope: `(t, x, y, **attributes) -> (phi(x) - phi(0)) / x`.
        start: `phi(0)`.
    """

    slope: Callable[..., Value]
    start: float = 0.0


def _near_zero(t: Builder, x: Value, series: Value | float, quotient: Value) -> Value:
    return t.op("Where", t.op("Abs", x) < _SMALL, series if isinstance(series, Value) else t.const(series, x.dtype),
                quotient)  # fmt: skip


def _over_x(t: Builder, x: Value, y: Value, series: Value | float) -> Value:
    """`y / x`, and around zero its series."""
    small = t.op("Abs", x) < _SMALL
    return _near_zero(t, x, series, y / t.op("Where", small, 1.0, x))


def _gelu(t: Builder, x: Value, y: Value, *, approximate: str = "none") -> Value:
    if approximate == "none":
        return t.op("Erf", x * math.sqrt(0.5)) * 0.5 + 0.5
    scale = math.sqrt(2.0 / math.pi)
    x = t.op("Clip", x, -16.0, 16.0)
    return (t.op("Tanh", x * (x * x * (scale * 0.044715) + scale)) + 1.0) * 0.5


def _exponential(t: Builder, x: Value, y: Value, rate: float, alpha: float, gamma: float = 1.0) -> Value:
    """Of `gamma x` above zero and `gamma alpha (e^(rate x) - 1)` below."""
    below = _over_x(t, x, y, x * (gamma * alpha * rate * rate / 2) + gamma * alpha * rate)
    return t.op("Where", x > 0.0, t.const(gamma, x.dtype), below)


CHORDS: dict[str, Chord] = {
    "Gelu": Chord(_gelu),
    "Swish": Chord(lambda t, x, y, alpha=1.0: t.op("Sigmoid", x if alpha == 1.0 else x * alpha)),
    "HardSwish": Chord(lambda t, x, y: t.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    "Mish": Chord(lambda t, x, y: t.op("Tanh", t.op("Softplus", x))),
    "Elu": Chord(lambda t, x, y, alpha=1.0: _exponential(t, x, y, 1.0, alpha)),
    "Celu": Chord(lambda t, x, y, alpha=1.0: _exponential(t, x, y, 1.0 / alpha, alpha)),
    "Selu": Chord(
        lambda t, x, y, alpha=1.6732631921768188, gamma=1.0507010221481323: _exponential(t, x, y, 1.0, alpha, gamma)
    ),
    "Softplus": Chord(lambda t, x, y: _over_x(t, x, y - math.log(2.0), x * 0.125 + 0.5), math.log(2.0)),
    "Softsign": Chord(lambda t, x, y: t.op("Reciprocal", t.op("Abs", x) + 1.0)),
    "Tanh": Chord(lambda t, x, y: _over_x(t, x, y, 1.0)),
    # sigmoid(x) - 1/2 = tanh(x/2) / 2, without its cancellation.
    "Sigmoid": Chord(lambda t, x, y: _over_x(t, x, t.op("Tanh", x * 0.5), 0.5) * 0.5, 0.5),
}
"""Activations with a chord, by operator."""


def _layer_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value | None = None,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    own = Standardised(t, widened(t, x), range(axis % x.rank, x.rank), epsilon)
    return [_scaled_back(t, own, g, scale, x), None, None]


def _rms_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    own = Standardised(t, widened(t, x), range(axis % x.rank, x.rank), epsilon, centred=False)
    return [_scaled_back(t, own, g, scale, x), None]


def _scaled_back(t: Builder, own: Standardised, g: Value, scale: Value, x: Value) -> Value:
    dtype = own.value.dtype
    return t.cast(own.constant_scale(t.cast(g, dtype) * t.cast(scale, dtype)), x.dtype)


def _instance_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5
) -> Sequence[Cotangent]:
    own = Standardised(t, widened(t, x), range(2, x.rank), epsilon)
    return [_scaled_back(t, own, g, per_channel(t, scale, x.rank, own.value.dtype), x), None, None]


def _group_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value,
    *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    own = Standardised(t, t.merged(widened(t, x), 1, parts=[num_groups]), [2], epsilon)
    dtype = own.value.dtype
    s = t.merged(t.cast(g, dtype) * per_channel(t, scale, x.rank, dtype), 1, parts=[num_groups])
    return [t.cast(t.reshape_like(own.constant_scale(s), x), x.dtype), None, None]


def _mean_variance_normalization(
    t: Builder, g: Value, y: Value, x: Value, *, axes: Sequence[int] = (0, 2, 3)
) -> Sequence[Cotangent]:
    own = Standardised(t, widened(t, x), axes, 1e-18)
    return [t.cast(own.constant_scale(t.cast(g, own.value.dtype)), x.dtype)]


def _lp_normalization(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1, p: int = 2) -> Sequence[Cotangent]:
    norm = t.reduce("ReduceL1" if p == 1 else "ReduceL2", widened(t, x), [axis])
    zero = t.op("Equal", norm, 0.0)
    return [t.cast(t.op("Where", zero, 0.0, t.cast(g, norm.dtype) / t.op("Where", zero, 1.0, norm)), x.dtype)]


def _local_response_normalization(
    t: Builder, g: Value, y: Value, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Sequence[Cotangent]:
    wide = widened(t, x)
    s = channel_means(t, wide * wide, (size - 1) // 2, size // 2) * alpha + bias
    return [t.cast(t.cast(g, s.dtype) * (s**-beta), x.dtype)]


CONSTANT_SCALES: dict[str, RuleFunction] = {
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response_normalization,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
}
"""The rules of normalizations as if their scale did not depend on the image, by operator."""
