"""Layout and convolutions by what CoreML computes: images of two dimensions, with constant weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import attributes
from onnx_gradcam.autodiff.rules._sizes import Size, reshape, sizes
from onnx_gradcam.graph.builder import Builder, Value

from .lowerings import is_zero, lowering, volume
from .provider import Lowering

__all__ = ["PLANES", "pool"]

PLANES: dict[str, Lowering] = {}
"""What CoreML computes on images of two dimensions, or not at all, by what it does compute."""


@lowering(PLANES, "Expand")
def expand(t: Builder, x: Value, shape: Value) -> Value | None:
    """A Tile, of a tensor that is given the dimensions in front first."""
    (rank,) = shape.dims("Expand")
    wide = x if x.rank >= rank else reshape(t, x, [1] * (rank - x.rank) + list(sizes(t, x)))
    target = shape.array()
    if target is None:
        if wide.rank > rank:
            return None
        # One of the two sizes is one, or they are equal.
        each = t.op("Max", t.op("Shape", wide), t.ints(1))
        return t.op("Tile", wide, t.op("Max", t.op("Div", shape, each), t.ints(1)))
    repeats = []
    for have, want in zip(wide.shape, [1] * (wide.rank - rank) + [int(d) for d in target], strict=True):
        if have != 1 and want not in {1, have}:
            return None
        repeats.append(want if have == 1 else 1)
    return t.op("Tile", wide, t.ints(*repeats))


@lowering(PLANES, "Pad")
def pad(
    t: Builder, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value | None:
    """Zeros, which a convolution with a single one adds to two dimensions at a time."""
    amounts = pads.array()
    if mode != "constant" or amounts is None or axes is not None or (fill is not None and not is_zero(fill)):
        return None
    before, after = ([int(p) for p in part] for part in np.split(amounts, 2))
    if min(*before, *after) < 0:
        return None
    for i in range(x.rank):
        if not (before[i] or after[i]):
            continue
        dims, lead, tail = sizes(t, x), volume(x.shape[:i]), volume(x.shape[i + 1 :])
        if dims[i].known is None or 0 in x.shape or lead is tail is None:
            return None
        plane = reshape(t, x, [-1 if lead is None else lead, 1, dims[i], -1 if tail is None else tail])
        wider = t.op("Conv", plane, t.const(np.ones((1, 1, 1, 1)), x.dtype), pads=[before[i], 0, after[i], 0])
        wanted: list[Size | int] = [*dims[:i], dims[i] + before[i] + after[i], *dims[i + 1 :]]
        free = [j for j, d in enumerate(x.shape) if not isinstance(d, int)]
        x = reshape(t, wider, [-1 if [j] == free else d for j, d in enumerate(wanted)])
    return x


@lowering(PLANES, "Gather")
def gather(t: Builder, x: Value, indices: Value, *, axis: int = 0) -> Value | None:
    """GatherND along the first dimension."""
    picked, axis = indices.array(), axis % x.rank
    size = x.shape[axis]
    if picked is None or picked.ndim != 1 or not isinstance(size, int):
        return None
    order = [axis, *(i for i in range(x.rank) if i != axis)]
    rows = t.op("GatherND", t.transpose(x, order), t.const((picked % size).reshape(-1, 1).astype(np.int64)))
    return t.transpose(rows, [int(i) for i in np.argsort(order)])


@lowering(PLANES, "Gemm")
def gemm(
    t: Builder,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    """MatMul, which also takes a second matrix that is computed."""
    product = (t.transpose(a, [1, 0]) if transA else a) @ (t.transpose(b, [1, 0]) if transB else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


def pool(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> Value | None:
    """A pool in one or three dimensions as one in two: over a row, or over planes that are one dimension."""
    x, options = inputs[0], attributes(node)
    if x is None or len(node.outputs) != 1 or x.rank not in {3, 5}:
        return None
    whole = t.wrap(node.outputs[0])
    wide = _flat(t, x, options) if x.rank == 5 else _row(t, x, options)
    return None if wide is None else t.reshape_like(t.op(node.op_type, wide, **options), whole)


def _row(t: Builder, x: Value, options: dict[str, Any]) -> Value:
    for name, one in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in options:
            given = list(options[name])
            options[name] = [one, given[0]] if name != "pads" else [0, given[0], 0, given[1]]
    return t.op("Unsqueeze", x, t.ints(2))


def _flat(t: Builder, x: Value, options: dict[str, Any]) -> Value | None:
    plain = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
    for name, one in plain.items():
        if name in options:
            given = list(options[name])
            begin, end = given[:3], given[3:]
            if set(begin[1:] + end[1:]) != {one}:
                return None
            options[name] = [begin[0], one] + ([end[0], one] if end else [])
    n, c, d, h, w = sizes(t, x)
    return reshape(t, x, [n, c, d, h * w]) if options.get("auto_pad", "NOTSET") == "NOTSET" else None


PLANES["AveragePool"] = PLANES["MaxPool"] = pool


@lowering(PLANES, "ConvTranspose")
def conv_transpose(t: Builder, x: Value, w: Value, b: Value | None = None, **options: Any) -> Value | None:
    """Without `output_padding`: rows that no window reaches are zeros, added at the end."""
    extra = list(options.pop("output_padding", ()))
    if not extra or b is not None or w.array() is None or "output_shape" in options:
        return None
    n = len(extra)
    pads = list(options.get("pads") or [0] * (2 * n))
    late = [max(e - p, 0) for e, p in zip(extra, pads[n:], strict=True)]
    options["pads"] = pads[:n] + [max(p - e, 0) for e, p in zip(extra, pads[n:], strict=True)]
    full = t.op("ConvTranspose", x, w, **options)
    return t.op("Pad", full, t.ints(*[0] * (n + 2), 0, 0, *late)) if any(late) else full
