"""The precision of gradients: the type to compute in, and scaling that keeps float16 cotangents in range.

float16 has numbers from 6e-8 (6e-5 with all digits) to 65504, and the derivatives of a score are near the lower end: an
average over 112 x 112 positions alone divides by 12544. The reverse pass is linear in its cotangents (and still
homogeneous with modified rules), so they can be multiplied by a positive factor if the result is divided by it, in
float32. Factors that are powers of two cost no digits. bfloat16 has the range of float32 and needs no factors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import Carries, between, dominators
from onnx_gradcam.options import GradDtype

from .backward import backward, carries_gradient
from .registry import Table

__all__ = ["float32_cotangents"]

_SIZE = 1
"""The exponent of the seed, and of the largest cotangent after each rescaling.

It is the middle of the normal numbers, 2^-14 to 2^16: until the next rescaling the largest cotangent can grow or shrink
30000-fold without losing digits.
"""

_SPAN = 3
"""The least number of nodes between two rescalings, each of which is another pass over a tensor."""


def float32_cotangents(
    t: Builder,
    score: Value,
    seed: Value,
    wrt: Sequence[Value],
    table: Table,
    grad_dtype: GradDtype,
    points: Collection[ir.Value] = (),
) -> list[Value]:
    """Append the cotangents of `wrt`, as `backward` does, and return them in float32.

    With `grad_dtype="float32"` everything is computed in float32; with `model` in the type of each tensor, and float16
    cotangents are scaled to stay in range. `seed` is the cotangent of `score`, ones and zeros; `points` are those of
    `backward`.

    Raises:
        UnsupportedError: a node on the path has no rule, or the score does not depend on a tensor of `wrt`.
    """
    if grad_dtype == "float32":
        return backward(t, {score: t.cast(seed, np.float32)}, wrt, table, np.float32, points=points)
    carries = carries_gradient(t, table)
    path, alive = between(t.nodes, [v.core for v in wrt], [score.core], carries)
    if not any(t.wrap(v).dtype == np.float16 for v in alive):
        return [t.cast(g, np.float32) for g in backward(t, {score: seed}, wrt, table, points=points)]
    positions = {output: i for i, node in enumerate(path) for output in node.outputs}
    cuts = _cuts(t, score, wrt, carries, positions)
    rows = _by_row(score, [score, *cuts, *wrt])
    here, g = score, seed * 2.0**_SIZE
    factor = t.const(2.0**_SIZE, np.float32)
    for cut in cuts:
        # Every path crosses `cut`: the nodes between it and `here` follow each other.
        segment = path[positions[cut.core] + 1 : positions[here.core] + 1]
        (g,) = backward(t, {here: g}, [cut], table, nodes=segment, points=points)
        g, more = _rescaled(t, g, rows=rows)
        here, factor = cut, factor * more
    cotangents = [t.cast(v, np.float32) for v in backward(t, {here: g}, wrt, table, nodes=path, points=points)]
    if rows:
        return [v / t.op("Reshape", factor, t.ints(-1, *[1] * (v.rank - 1))) for v in cotangents]
    return [v / factor for v in cotangents]


def _cuts(
    t: Builder, score: Value, wrt: Sequence[Value], carries: Carries, positions: Mapping[ir.Value, int]
) -> list[Value]:
    """float16 tensors that every path crosses, from the score on, at least `_SPAN` nodes apart."""
    crossed = [dominators(t.nodes, v.core, [score.core], carries) for v in wrt]
    common = set.intersection(*map(set, crossed)) - {score.core, *(v.core for v in wrt)}
    cuts: list[Value] = []
    last = 1 + max(positions.values(), default=0)
    for value in reversed(crossed[0]):
        tensor = t.wrap(value)
        fits = tensor.dtype == np.float16 and tensor.known_shape is not None
        if fits and value in common and last - positions[value] >= _SPAN:
            cuts.append(tensor)
            last = positions[value]
    return cuts


def _by_row(score: Value, values: Sequence[Value]) -> bool:
    """Whether the first dimension of every tensor is the free batch size: then each sample has its own factor."""
    batch = next(iter(score.shape), None)
    return isinstance(batch, str) and all(v.shape[:1] == (batch,) and v.shape.count(batch) == 1 for v in values)


def _rescaled(t: Builder, g: Value, *, rows: bool) -> tuple[Value, Value]:
    """`g` times a power of two that scales its largest element to `2^_SIZE`, and that power, one or one a row."""
    top = t.cast(t.reduce("ReduceMax", t.op("Abs", g), range(int(rows), g.rank)), np.float32)
    exponent = _SIZE - t.op("Floor", t.op("Log", top) * (1 / math.log(2)))
    # The exponent of zero is infinite and is clipped; NaN compares as false and stays NaN.
    limited = t.op("Clip", exponent, t.const(-14.0, np.float32), t.const(15.0, np.float32))
    # A base of full rank: OpenCV's Pow is wrong for a scalar base of several dimensions.
    two = t.const(np.full([1] * g.rank, 2.0), np.float32)
    power = t.cast(t.op("Where", top >= 0.0, two**limited, 1.0), np.float16)
    return g * power, t.op("Reshape", t.cast(power, np.float32), t.ints(-1) if rows else t.ints())
