"""Rules of quantised tensors, by the straight-through estimator.

Rounding is a step function, whose derivative is zero almost everywhere. As in quantisation-aware training (Bengio et
al. 2013; Jacob et al. 2018), it counts as the identity where the quantised number is not saturated, and as a constant
where it is. The result is a surrogate gradient, and the metadata of an explained model says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value


@vjp("DequantizeLinear", stops=(1, 2))
def dequantize(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, zero: Value | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangent times the scale, as if the quantised numbers were real."""
    _whole(y, block_size)
    return [g * t.cast(_along(t, scale, x, axis), g.dtype), None, None]


@vjp("QuantizeLinear", stops=(1, 2))
def quantize(
    t: Builder, g: Value, y: Value, x: Value, scale: Value, zero: Value | None = None,
    *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, saturate: int = 1, precision: int = 0,
) -> Sequence[Cotangent]:  # fmt: skip
    """The cotangent over the scale; zero where the number is beyond the range of the type and clipped."""
    _whole(y, block_size)
    if y.dtype is None or y.dtype.kind not in "iu":
        raise UnsupportedError(f"no straight-through estimator for {y.dtype} ({y.name!r}); choose a later layer")
    step = t.cast(_along(t, scale, x, axis), g.dtype)
    steps = t.cast(x, g.dtype) / step
    low, high = float(np.iinfo(y.dtype).min), float(np.iinfo(y.dtype).max)
    if zero is not None:
        steps = steps + t.cast(_along(t, zero, x, axis), g.dtype)
    # Up to half a step beyond the last number rounds to it.
    inside = t.op("And", steps >= low - 0.5, steps <= high + 0.5)
    return [t.op("Where", inside, g / step, 0.0), None, None]


def _along(t: Builder, scale: Value, x: Value, axis: int) -> Value:
    """A scale or zero point, per tensor or per slice along `axis`, reshaped to broadcast against `x`."""
    if scale.rank == 0 or x.rank == 1 or scale.shape == (1,):
        return scale
    shape = [1] * x.rank
    shape[axis % x.rank] = -1
    return t.op("Reshape", scale, t.ints(*shape))


def _whole(y: Value, block_size: int) -> None:
    """Refuse blocked quantisation."""
    if block_size:
        raise UnsupportedError(f"blocked quantisation of {y.name!r} has no VJP rule; choose a later layer")


@vjp("DynamicQuantizeLinear", all_outputs=True)
def dynamic_quantize(t: Builder, gs: Sequence[Value | None], ys: Sequence[Value], x: Value) -> Sequence[Cotangent]:
    """The cotangent over the scale, which counts as a constant; the scale fits the tensor, so nothing is clipped."""
    return [None if gs[0] is None else gs[0] / ys[1]]
