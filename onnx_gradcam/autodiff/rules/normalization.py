"""Rules of normalisations. Those with the tensor's own statistics share one formula.

With `x^ = (x - mean) / std` and `s` the cotangent of `x^`, the cotangent of `x` is
`(s - mean(s) - x^ mean(s x^)) / std` (Ioffe and Szegedy 2015, section 3; the means over the normalised axes). Without a
mean, as in RMSNormalization, the middle term drops out. Types of 16 bits are widened, because their squares overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["Standardised", "channel_means", "per_channel", "widened"]


class Standardised:
    """`x` standardised over `axes`; recomputed, because a forward node with more outputs is slower."""

    def __init__(self, t: Builder, x: Value, axes: Sequence[int], epsilon: float, *, centred: bool = True) -> None:
        self.t, self.axes, self.centred = t, axes, centred
        deviation = x - t.mean(x, axes) if centred else x
        self.one_over_std = t.op("Reciprocal", t.op("Sqrt", t.mean(deviation * deviation, axes) + epsilon))
        self.value = deviation * self.one_over_std

    def cotangent(self, s: Value) -> Value:
        """The cotangent of `x` from that of the standardised value."""
        mean = self.t.mean
        centred = s - mean(s, self.axes) if self.centred else s
        return (centred - self.value * mean(s * self.value, self.axes)) * self.one_over_std

    def constant_scale(self, s: Value) -> Value:
        """The same as if the standard deviation did not depend on `x`."""
        return (s - self.t.mean(s, self.axes) if self.centred else s) * self.one_over_std


def widened(t: Builder, x: Value) -> Value:
    """`x`, in float32 where its own type has 16 bits."""
    return t.cast(x, np.float32) if x.dtype is not None and x.dtype.itemsize < 4 else x


def per_channel(t: Builder, vector: Value, rank: int, dtype: npt.DTypeLike | None) -> Value:
    """A vector with one element a channel, reshaped to multiply a tensor of `rank`, channels second."""
    return t.op("Reshape", t.cast(vector, dtype), t.ints(-1, *[1] * (rank - 2)))


def _to_channels(t: Builder, x: Value, vector: Value) -> Value:
    """`x` summed to the shape and type of a vector with one element a channel."""
    return t.cast(t.reshape_like(t.sum(x, [a for a in range(x.rank) if a != 1]), vector), vector.dtype)


@vjp("BatchNormalization")
def batch_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value, mean: Value, var: Value,
    *, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """At inference an affine map of each channel; in training the statistics are the batch's own."""
    dtype = widened(t, x).dtype
    wide = t.cast(g, dtype)
    factor = per_channel(t, scale, x.rank, dtype)
    if training_mode:
        axes = [a for a in range(x.rank) if a != 1]
        own = Standardised(t, widened(t, x), axes, epsilon)
        return [
            lambda: t.cast(own.cotangent(wide * factor), x.dtype),
            lambda: _to_channels(t, wide * own.value, scale),
            lambda: _to_channels(t, wide, bias),
            lambda: t.full_like(mean, 0.0),
            lambda: t.full_like(var, 0.0),
        ]
    std = t.op("Sqrt", per_channel(t, var, x.rank, dtype) + epsilon)

    def standardised() -> Value:
        return (widened(t, x) - per_channel(t, mean, x.rank, dtype)) / std

    return [
        lambda: g * _slope(t, x, scale, var, epsilon),
        lambda: _to_channels(t, wide * standardised(), scale),
        lambda: _to_channels(t, wide, bias),
        lambda: _to_channels(t, -(wide * (factor / std)), mean),
        lambda: _to_channels(t, wide * standardised() * (factor * -0.5 / (std * std)), var),
    ]


def _slope(t: Builder, x: Value, scale: Value, var: Value, epsilon: float) -> Value:
    """`scale / sqrt(var + epsilon)`, one number a channel; a constant if scale and variance are."""
    a, v = scale.array(), var.array()
    if a is not None and v is not None:
        slope = a.astype(np.float64) / np.sqrt(v.astype(np.float64) + epsilon)
        return t.const(slope.reshape(-1, *[1] * (x.rank - 2)), x.dtype)
    dtype = widened(t, x).dtype
    std = t.op("Sqrt", per_channel(t, var, x.rank, dtype) + epsilon)
    return t.cast(per_channel(t, scale, x.rank, dtype) / std, x.dtype)


@vjp("LayerNormalization", broadcasts=True)
def layer_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value | None = None,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    """Each sample over its last dimensions (Ba, Kiros and Hinton 2016)."""
    own = Standardised(t, widened(t, x), range(axis % x.rank, x.rank), epsilon)
    wide = t.cast(g, own.value.dtype)
    return [
        lambda: t.cast(own.cotangent(wide * t.cast(scale, wide.dtype)), x.dtype),
        lambda: t.cast(wide * own.value, scale.dtype),
        g,
    ]


@vjp("RMSNormalization", broadcasts=True)
def rms_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value,
    *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    """LayerNormalization without a mean (Zhang and Sennrich 2019)."""
    own = Standardised(t, widened(t, x), range(axis % x.rank, x.rank), epsilon, centred=False)
    wide = t.cast(g, own.value.dtype)
    return [
        lambda: t.cast(own.cotangent(wide * t.cast(scale, wide.dtype)), x.dtype),
        lambda: t.cast(wide * own.value, scale.dtype),
    ]


@vjp("InstanceNormalization")
def instance_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5
) -> Sequence[Cotangent]:
    """Each channel of each sample by itself."""
    own = Standardised(t, widened(t, x), range(2, x.rank), epsilon)
    wide = t.cast(g, own.value.dtype)
    return [
        lambda: t.cast(own.cotangent(wide * per_channel(t, scale, x.rank, wide.dtype)), x.dtype),
        lambda: _to_channels(t, wide * own.value, scale),
        lambda: _to_channels(t, wide, bias),
    ]


@vjp("GroupNormalization")
def group_normalization(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, bias: Value,
    *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1,
) -> Sequence[Cotangent]:  # fmt: skip
    """Each group of channels of each sample by itself (Wu and He 2018)."""

    def grouped(v: Value) -> Value:
        return t.merged(v, 1, parts=[num_groups])

    own = Standardised(t, grouped(widened(t, x)), [2], epsilon)
    wide = t.cast(g, own.value.dtype)

    def data() -> Value:
        return t.reshape_like(own.cotangent(grouped(wide * per_channel(t, scale, x.rank, wide.dtype))), x)

    return [
        lambda: t.cast(data(), x.dtype),
        lambda: _to_channels(t, wide * t.reshape_like(own.value, x), scale),
        lambda: _to_channels(t, wide, bias),
    ]


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(
    t: Builder, g: Value, y: Value, x: Value, *, axes: Sequence[int] = (0, 2, 3)
) -> Sequence[Cotangent]:
    """Without scale and bias; the 1e-9 that the operator adds to the standard deviation is added to its square."""
    own = Standardised(t, widened(t, x), axes, 1e-18)
    return [t.cast(own.cotangent(t.cast(g, own.value.dtype)), x.dtype)]


@vjp("LpNormalization")
def lp_normalization(t: Builder, g: Value, y: Value, x: Value, *, axis: int = -1, p: int = 2) -> Sequence[Cotangent]:
    """The slope of the norm is sign(x) or y; where the norm is zero, so is the cotangent."""
    wide, slope = widened(t, x), t.op("Sign", x) if p == 1 else y
    norm = t.reduce("ReduceL1" if p == 1 else "ReduceL2", wide, [axis])
    along = t.cast(t.sum(g * y, [axis]) * slope, wide.dtype)
    zero = t.op("Equal", norm, 0.0)
    dx = t.op("Where", zero, 0.0, (t.cast(g, wide.dtype) - along) / t.op("Where", zero, 1.0, norm))
    return [t.cast(dx, x.dtype)]


@vjp("LRN")
def local_response_normalization(
    t: Builder, g: Value, y: Value, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Sequence[Cotangent]:
    """Division by `(bias + alpha mean(x^2))^beta` over a window of channels (Krizhevsky et al. 2012, section 3.3).

    An even window reaches one channel further up than down, so the cotangents go through the mirrored window.
    """
    before, after = (size - 1) // 2, size // 2

    wide = widened(t, x)
    s = channel_means(t, wide * wide, before, after) * alpha + bias
    direct = t.cast(g, wide.dtype) * (s**-beta)
    through = channel_means(t, direct * wide / s, after, before)
    return [t.cast(direct - wide * (2.0 * alpha * beta) * through, x.dtype)]


def channel_means(t: Builder, v: Value, before: int, after: int) -> Value:
    """Means over windows of channels, which reach `before` and `after` each channel; zeros lie beyond the last ones."""
    spatial = v.rank - 2
    pooled = t.op(
        "AveragePool",
        t.op("Unsqueeze", v, t.ints(1)),
        kernel_shape=[before + 1 + after, *[1] * spatial],
        pads=[before, *[0] * spatial, after, *[0] * spatial],
        count_include_pad=1,
    )
    return t.op("Squeeze", pooled, t.ints(1))
