"""Cumulative sums and products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value


@vjp("CumSum")
def cum_sum(
    t: Builder, g: Value, y: Value, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0
) -> Sequence[Cotangent]:
    """The cumulative sum from the other end."""
    return [t.op("CumSum", g, axis, exclusive=exclusive, reverse=1 - reverse), None]


@vjp("CumProd")
def cum_prod(
    t: Builder, g: Value, y: Value, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0
) -> Sequence[Cotangent]:
    """Products of the other elements, summed over the outputs that hold them; nothing is divided by zero.

    At the first zero it is `sum(g y')`, the products being those of the other elements. Elsewhere it is `sum(g y) / x`:
    behind that zero all products are zero.
    """

    def back(v: Value) -> Value:
        return t.op("CumSum", v, axis, exclusive=exclusive, reverse=1 - reverse)

    zero = t.op("Equal", x, 0.0)
    count = t.op("CumSum", t.cast(zero, np.int32), axis, reverse=reverse)
    first = t.op("And", zero, t.op("Equal", count, t.const(np.int32(1))))
    others = t.op("CumProd", t.op("Where", first, 1.0, x), axis, exclusive=exclusive, reverse=reverse)
    before = back(g * y) / t.op("Where", zero, 1.0, x)
    return [t.op("Where", first, back(g * others), before), None]
