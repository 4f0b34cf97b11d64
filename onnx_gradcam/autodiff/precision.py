"""The type a gradient is computed in, and how float16 cotangents are kept within its range.

float16 holds numbers from 6e-8 (6e-5 with all its digits) to 65504, and the derivatives of a score lie at its lower
end: an average over 112 x 112 places alone divides by 12544. A backward pass is linear in its cotangents (and with
modified rules still homogeneous), so they may be multiplied by any positive factor that the result is divided by again,
which is done in float32. As powers of two the factors cost no digit. bfloat16 has the range of float32 and needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import Carries, between, dominators

from .backward import backward, carries_gradient
from .registry import Table

__all__ = ["GradType", "float32_cotangents"]

GradType = Literal["model", "float32"]

_SIZE = 1
"""The exponent of the seed, and that which the largest cotangent is brought back to.

It is the middle of the normal numbers, 2^-14 to 2^16: up to the next rescaling the largest cotangent may grow or shrink
30000-fold without losing a digit.
"""

_SPAN = 3
"""At least so many nodes lie between two rescalings: each is another pass over a tensor."""


def float32_cotangents(
    t: Builder, score: Value, seed: Value, wrt: Sequence[Value], table: Table, grad_dtype: GradType
) -> list[Value]:
    """The cotangents of `wrt` from that of the score, as `backward` computes them, in float32.

    Args:
        t: the builder.
        score: what is differentiated.
        seed: its cotangent, ones and zeros.
        wrt: the tensors whose cotangents are wanted.
        table: the rules.
        grad_dtype: `float32` computes in it whatever the model's type is. `model` computes in the type of each tensor,
            where that is float16 with factors that keep the cotangents within its range.

    Raises:
        UnsupportedError: a node on the path has no rule, or the score does not depend on a tensor of `wrt`.
    """
    if grad_dtype == "float32":
        return backward(t, {score: t.cast(seed, np.float32)}, wrt, table, np.float32)
    carries = carries_gradient(t, table)
    path, alive = between(t.nodes, [v.core for v in wrt], [score.core], carries)
    if not any(t.wrap(v).dtype == np.float16 for v in alive):
        return [t.cast(g, np.float32) for g in backward(t, {score: seed}, wrt, table)]
    places = {output: i for i, node in enumerate(path) for output in node.outputs}
    cuts = _cuts(t, score, wrt, carries, places)
    rows = _by_row(score, [score, *cuts, *wrt])
    here, g = score, seed * 2.0**_SIZE
    factor = t.const(2.0**_SIZE, np.float32)
    for cut in cuts:
        # What lies before a tensor that everything flows through comes before it in order.
        segment = path[places[cut.core] + 1 : places[here.core] + 1]
        (g,) = backward(t, {here: g}, [cut], table, nodes=segment)
        g, more = _rescaled(t, g, rows=rows)
        here, factor = cut, factor * more
    cotangents = [t.cast(v, np.float32) for v in backward(t, {here: g}, wrt, table, nodes=path)]
    if rows:
        return [v / t.op("Reshape", factor, t.ints(-1, *[1] * (v.rank - 1))) for v in cotangents]
    return [v / factor for v in cotangents]


def _cuts(
    t: Builder, score: Value, wrt: Sequence[Value], carries: Carries, places: Mapping[ir.Value, int]
) -> list[Value]:
    """float16 tensors that everything flows through, from the score on, `_SPAN` nodes or more apart."""
    ways = [dominators(t.nodes, v.core, score.core, carries) for v in wrt]
    common = set.intersection(*map(set, ways)) - {score.core, *(v.core for v in wrt)}
    cuts: list[Value] = []
    last = 1 + max(places.values(), default=0)
    for value in reversed(ways[0]):
        tensor = t.wrap(value)
        fits = tensor.dtype == np.float16 and tensor.known_shape is not None
        if fits and value in common and last - places[value] >= _SPAN:
            cuts.append(tensor)
            last = places[value]
    return cuts


def _by_row(score: Value, values: Sequence[Value]) -> bool:
    """Whether the first dimension of every tensor is the free batch size, so that each sample has its own factor."""
    batch = next(iter(score.shape), None)
    return isinstance(batch, str) and all(v.shape[:1] == (batch,) and v.shape.count(batch) == 1 for v in values)


def _rescaled(t: Builder, g: Value, *, rows: bool) -> tuple[Value, Value]:
    """`g` times a power of two that brings its largest element to `_SIZE`, and that in float32: one, or one a row."""
    top = t.cast(t.reduce("ReduceMax", t.op("Abs", g), range(int(rows), g.rank)), np.float32)
    exponent = _SIZE - t.op("Floor", t.op("Log", top) * (1 / math.log(2)))
    # Zero gives infinity, which is cut off; what is no number compares as false, and stays what it is.
    limited = t.op("Clip", exponent, t.const(-14.0, np.float32), t.const(15.0, np.float32))
    power = t.cast(t.op("Where", top >= 0.0, t.const(2.0, np.float32) ** limited, 1.0), np.float16)
    return g * power, t.op("Reshape", t.cast(power, np.float32), t.ints(-1) if rows else t.ints())
