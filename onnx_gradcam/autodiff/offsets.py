"""What nodes add: the part of their output that is left where the inputs from the image are zero.

Of an affine node `y = L x + b` that is b: a bias, a class token, a table of positions, the bound that a Clip holds on
to. With the cotangent g of the output, `<g, b>` is the share of the score that is no input's (FullGrad, Srinivas and
Fleuret 2019, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder, Value

from .registry import attributes
from .rules._chords import CHORDS
from .rules.normalization import per_channel

__all__ = ["offset"]


@dataclass(frozen=True, eq=False)
class _Node:
    """A node whose offset is asked for: its output, its inputs, and which of these depend on the image."""

    t: Builder
    core: ir.Node
    y: Value
    inputs: Sequence[Value | None]
    live: Collection[int]

    def constant(self, index: int) -> Value | None:
        """An input that does not depend on the image; `None` if it does, is missing or is zero."""
        value = self.inputs[index] if len(self.inputs) > index else None
        return None if index in self.live or _nothing(value) else value


_Offset = Callable[[_Node], Value | None]
"""What broadcasts to the output; `None` for nothing."""


def offset(t: Builder, node: ir.Node, moving: Collection[ir.Value], *, chords: bool = False) -> Value | None:
    """What a node adds, broadcasting to its output, in the output's type; `None` for nothing.

    Args:
        t: the builder.
        node: a node on the path from the image to the score.
        moving: the tensors that depend on the image.
        chords: whether activations are passed along their chords, which start at `phi(0)`.
    """
    y = t.wrap(node.outputs[0])
    if node.domain or not y.is_float:
        return None
    if node.op_type in CHORDS:
        start = CHORDS[node.op_type].start if chords else 0.0
        return t.const(start, y.dtype) if start else None
    find = _OFFSETS.get(node.op_type)
    live = {i for i, v in enumerate(node.inputs) if v is not None and v in moving}
    inputs = [None if v is None else t.wrap(v) for v in node.inputs]
    return None if find is None else find(_Node(t, node, y, inputs, live))


def _nothing(value: Value | None) -> bool:
    """Whether a tensor is missing or a constant of zeros."""
    array = None if value is None else value.array()
    return value is None or (array is not None and not array.any())


def _sum(node: _Node) -> Value | None:
    parts = [part for i in range(len(node.inputs)) if (part := node.constant(i)) is not None]
    if not parts:
        return None
    total = parts[0] if len(parts) == 1 else node.t.op("Sum", *parts)
    return -total if node.core.op_type == "Sub" and 0 in node.live else total


def _channels(node: _Node) -> Value | None:
    bias = node.constant(2)
    return None if bias is None else per_channel(node.t, bias, node.y.rank, node.y.dtype)


def _batch(node: _Node) -> Value | None:
    """The shift of a batch normalization less its scaled mean: a constant in double precision where it can be."""
    t, parameters = node.t, [v for v in node.inputs[1:5] if v is not None]
    if node.core.attributes.get_int("training_mode", 0) != 0:
        return None
    epsilon = node.core.attributes.get_float("epsilon", 1e-5)
    arrays = [v.array() for v in parameters]
    known = [np.asarray(array, np.float64) for array in arrays if array is not None]
    if len(known) == len(arrays):
        scale, shift, mean, variance = known
        total = t.const((shift - mean * scale / np.sqrt(variance + epsilon)).astype(np.float32))
    else:
        a, b, m, v = (t.cast(one, np.float32) for one in parameters)
        total = b - m * a / t.op("Sqrt", v + epsilon)
    return per_channel(t, total, node.y.rank, node.y.dtype)


def _gemm(node: _Node) -> Value | None:
    c, beta = node.constant(2), node.core.attributes.get_float("beta", 1.0)
    return c if c is None or beta == 1.0 else c * beta


def _layer(node: _Node) -> Value | None:
    bias = node.constant(2)
    return None if bias is None else node.t.cast(bias, node.y.dtype)


def _clip(node: _Node) -> Value | None:
    """The bound, where the output has reached it; one of zero adds nothing."""
    t, y = node.t, node.y
    low, high = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    inside = [y > low] if low is not None and not _nothing(low) else []
    inside += [y < high] if high is not None and not _nothing(high) else []
    if not inside:
        return None
    return t.op("Where", inside[0] if len(inside) == 1 else t.op("And", *inside), 0.0, y)


def _hard_sigmoid(node: _Node) -> Value | None:
    t, y = node.t, node.y
    beta = t.const(node.core.attributes.get_float("beta", 0.5), y.dtype)
    return t.op("Where", t.op("And", y > 0.0, y < 1.0), beta, y)


def _extremum(node: _Node) -> Value | None:
    """The output, where it is a constant; ties are shared, as the rule of Max and Min does."""
    t, y = node.t, node.y
    constants = [i for i in range(len(node.inputs)) if node.constant(i) is not None]
    if not constants:
        return None
    hits = [t.cast(t.op("Equal", v, y), y.dtype) for v in node.inputs if v is not None]
    own = [hits[i] for i in constants]
    return y * (own[0] if len(own) == 1 else t.op("Sum", *own)) / t.op("Sum", *hits)


def _at_zero(node: _Node) -> Value | None:
    """The node once more, with zeros for what depends on the image."""
    t = node.t
    constants = [node.constant(i) for i, v in enumerate(node.inputs) if v is not None and v.is_float]
    if all(v is None for v in constants):
        return None
    zeroed = [t.full_like(v, 0.0) if v is not None and i in node.live else v for i, v in enumerate(node.inputs)]
    return t.op(node.core.op_type, *zeroed, shape=node.y.known_shape, **attributes(node.core))


_OFFSETS: dict[str, _Offset] = {
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization"), _channels),
    **dict.fromkeys(("Concat", "Mean", "Pad", "ScatterElements", "ScatterND", "Where"), _at_zero),
    **dict.fromkeys(("Max", "Min"), _extremum),
    "BatchNormalization": _batch,
    "Clip": _clip,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer,
}
"""What operators add, by their names; the others add nothing."""
