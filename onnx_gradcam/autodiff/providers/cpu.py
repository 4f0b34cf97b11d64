"""The rules of the profile `cpu`, for speed on ONNX Runtime's CPU provider.

They keep the gradient in the provider's blocked channel layout (NCHWc). Convolutions, pools, Add, Mul, HardSigmoid and
nearest Resize stay in that layout; Greater, Where and ConvTranspose leave it, and every change of layout costs a pass
over the tensor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.autodiff.registry import Cotangent, RuleFunction, Table, rules
from onnx_gradcam.graph.builder import Builder, Value

from .lowerings import NEARLY_ZERO

__all__ = ["blocked_rules"]

Array = npt.NDArray[Any]

_STEEP = 3e38
"""A slope that takes every normal float32 number to one or more."""

_BLOCK = 16
"""Channels in the widest block; ONNX Runtime keeps other numbers of channels in the plain layout."""


def blocked_rules() -> Table:
    """The rules that ONNX Runtime's CPU provider computes fastest; other types than float32 keep the portable rules.

    Gradients equal the portable ones up to rounding, for finite cotangents and activations that are not subnormal.
    Mirrored weights are stored beside the model's own, so the file grows by up to the size of the weights.
    """
    table = dict(rules())
    lowerings = {"Relu": _relu, "Clip": _clip, "Conv": _conv, "GlobalAveragePool": _global_average_pool}
    for op_type, lower in lowerings.items():
        rule = table["", op_type]
        table["", op_type] = replace(rule, function=lower(rule.function))
    return table


def _relu(portable: RuleFunction) -> RuleFunction:
    """A mask by a steep ramp, clipped to [0, 1]: one where the output is positive."""

    @functools.wraps(portable)
    def relu(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
        if x.dtype != np.float32:
            return portable(t, g, y, x)
        return [g * t.op("HardSigmoid", y, alpha=_STEEP, beta=NEARLY_ZERO)]

    return relu


def _clip(portable: RuleFunction) -> RuleFunction:
    """ReLU6 and similar: a mask that is one strictly between the bounds."""

    @functools.wraps(portable)
    def clip(
        t: Builder, g: Value, y: Value, x: Value, low: Value | None = None, high: Value | None = None
    ) -> Sequence[Cotangent]:
        bottom, top = (None if bound is None else bound.array() for bound in (low, high))
        usual = bottom is not None and top is not None and bottom.item() == 0 and 2.0**-64 < top.item() < 2.0**64
        if x.dtype != np.float32 or top is None or not usual:
            return portable(t, g, y, x, low, high)
        return [g * _between(t, y, np.float32(top.item())), None, None]

    return clip


def _between(t: Builder, y: Value, high: np.float32) -> Value:
    """One where `0 < y < high`, else zero; `y` is in [0, high].

    Numbers are scaled by powers of two and subtracted near the bound, so nothing is rounded where the sign changes.
    """
    scale = 2.0 ** -math.ceil(math.log2(high))
    steep = 2.0 ** math.ceil(-math.log2(float(high - np.nextafter(high, np.float32(0))) * scale))
    above = t.op("HardSigmoid", y, alpha=_STEEP, beta=NEARLY_ZERO)
    channels = y.shape[1] if y.rank == 4 else None
    if not isinstance(channels, int) or channels % _BLOCK:
        return above * t.op("HardSigmoid", y, alpha=-steep * scale, beta=float(high) * scale * steep)
    # ONNX Runtime fuses the sum and the ramp into the convolution before them: one pass over the tensor instead of two.
    weight, bias = np.full((channels, 1, 1, 1), -scale), np.full(channels, float(high) * scale - 1.0)
    scaled = t.op("Conv", y, t.const(weight, y.dtype), t.const(bias, y.dtype), group=channels, shape=y.shape)
    return t.op("HardSigmoid", scaled + above, alpha=steep, beta=NEARLY_ZERO)


def _conv(portable: RuleFunction) -> RuleFunction:
    """At stride one, a convolution with the mirrored weight, which includes the scale of a batch normalisation."""

    @functools.wraps(portable)
    def conv(
        t: Builder, g: Value, y: Value, x: Value, w: Value, b: Value | None = None, **geometry: Any
    ) -> Sequence[Cotangent]:
        others = portable(t, g, y, x, w, b, **geometry)
        weight = w.array() if x.dtype == np.float32 else None
        if weight is None:
            return others
        return [lambda: _image(t, portable, g, y, x, w, weight, geometry), *others[1:]]

    return conv


def _image(
    t: Builder, portable: RuleFunction, g: Value, y: Value, x: Value, w: Value, weight: Array, geometry: dict[str, Any]
) -> Value:
    """The cotangent of the image."""
    g, scale = _unscaled(t, g, len(weight))
    if scale is not None:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    pads = _mirrored_pads(weight.shape[2:], **geometry)
    if pads is None:
        cotangent = portable(t, g, y, x, w if scale is None else t.const(weight), **geometry)[0]
        return _blocked(t, cotangent() if callable(cotangent) else cotangent)
    group, dilations = geometry.get("group", 1), geometry.get("dilations")
    mirrored = t.const(_mirrored(weight, group))
    return t.op("Conv", g, mirrored, pads=pads, group=group, dilations=dilations, shape=x.shape)


def _unscaled(t: Builder, g: Value, channels: int) -> tuple[Value, Array | None]:
    """`g` before its multiplication with a constant a channel, as in a batch normalisation, and that constant."""
    node = g.core.producer()
    if node is None or node.op_type != "Mul" or None in node.inputs:
        return g, None
    plain, factor = (t.wrap(i) for i in node.inputs if i is not None)
    scale = factor.array()
    fits = scale is not None and scale.shape == (channels, *[1] * (g.rank - 2))
    return (plain, scale) if fits and plain.rank == g.rank and plain.shape[1] == channels else (g, None)


def _mirrored_pads(
    kernel: Sequence[int],
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    **_: Any,
) -> list[int] | None:
    """The padding of the convolution that is the adjoint of one of stride one; `None` where none is."""
    n = len(kernel)
    if any(s != 1 for s in strides or ()):
        return None
    reach = [(k - 1) * d for k, d in zip(kernel, dilations or [1] * n, strict=True)]
    small, large = [r // 2 for r in reach], [r - r // 2 for r in reach]
    forward = {
        "NOTSET": list(pads or [0] * 2 * n),
        "VALID": [0] * 2 * n,
        "SAME_UPPER": small + large,
        "SAME_LOWER": large + small,
    }[auto_pad]
    mirrored = [r - p for r, p in zip(reach * 2, forward, strict=True)]
    return mirrored if min(mirrored) >= 0 else None


def _mirrored(weight: Array, group: int) -> Array:
    """The weight with its taps in reverse order, and input and output channels swapped within each group."""
    outputs, inputs, *kernel = weight.shape
    split = weight.reshape(group, outputs // group, inputs, *kernel)
    turned: Array = np.flip(split, tuple(range(3, split.ndim))).swapaxes(1, 2)
    return turned.reshape(group * inputs, outputs // group, *kernel)


def _global_average_pool(portable: RuleFunction) -> RuleFunction:
    """The portable rule, followed by a change to the blocked layout."""

    @functools.wraps(portable)
    def global_average_pool(t: Builder, g: Value, y: Value, x: Value) -> Sequence[Cotangent]:
        (cotangent,) = portable(t, g, y, x)
        return [lambda: _blocked(t, cotangent() if callable(cotangent) else cotangent)]

    return global_average_pool


def _blocked(t: Builder, g: Value | None) -> Value:
    """`g` times one in every channel, by a convolution: from there on ONNX Runtime stays in the blocked layout."""
    assert g is not None  # noqa: S101 - the rules for images always have a cotangent
    channels = g.shape[1]
    if g.dtype != np.float32 or g.rank != 4 or not isinstance(channels, int) or channels % _BLOCK:
        return g
    return t.op("Conv", g, t.const(np.ones((channels, 1, 1, 1)), g.dtype), group=channels, shape=g.known_shape)
