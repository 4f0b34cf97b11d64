"""What is known of small tensors without running the model: conditions, trip counts and the arithmetic before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .builder import Builder, Value
from .fold import evaluate_node
from .shapes import Shape

__all__ = ["Array", "constant"]

Array = npt.NDArray[Any]

_LARGEST = 100
"""Elements of the largest tensor that is read or computed."""

_ARITHMETIC = {
    *("Add", "And", "Cast", "Concat", "Div", "Equal", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where", "Xor"),
}
"""Operators whose outputs are about as small as their inputs."""


def constant(t: Builder, wanted: ir.Value, known: Mapping[ir.Value, Array] | None = None) -> Array | None:
    """The content of a small tensor that follows from constants and fixed sizes alone, else `None`.

    Args:
        t: builder of the main graph, which knows the shapes.
        wanted: a tensor of the main graph, or of a subgraph.
        known: contents known from elsewhere: of the inputs of a subgraph.
    """
    found = dict(known or {})
    sizes: dict[ir.Value, Shape] = {}
    for value in _ancestors(wanted):
        node, content = value.producer(), None if value in found else _small(t.wrap(value))
        if content is not None:
            found[value] = content
        if value in found or node is None:
            continue
        x = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and x is not None:
            shape = t.wrap(x).known_shape
            if shape is not None:
                sizes[value] = shape[_limit(node, "start") : _limit(node, "end")]
                _pick(found, value, sizes[value], np.arange(len(sizes[value])))
        elif node.op_type == "Gather" and x in sizes and node.inputs[1] in found:
            # Other dimensions may be free.
            _pick(found, value, sizes[x], found[node.inputs[1]])
        elif all(i is None or i in found for i in node.inputs):
            found.update(_evaluated(t, node, found))
    return found.get(wanted)


def _ancestors(value: ir.Value) -> list[ir.Value]:
    """The tensors that `value` is computed from by arithmetic, itself last, in topological order."""
    order: list[ir.Value] = []
    seen: set[ir.Value] = set()
    stack = [(value, False)]
    while stack:
        v, finished = stack.pop()
        if finished:
            order.append(v)
        elif v not in seen:
            seen.add(v)
            stack.append((v, True))
            node = v.producer()
            if node is not None and not node.domain and node.op_type in _ARITHMETIC:
                stack.extend((i, False) for i in node.inputs if i is not None)
    return order


def _small(value: Value) -> Array | None:
    """The content of a small constant of the graph."""
    try:
        tensor = ir.convenience.get_const_tensor(value.core)
    except ValueError:  # a sparse one
        return None
    return tensor.numpy() if tensor is not None and tensor.size <= _LARGEST else None


def _limit(node: ir.Node, name: str) -> int | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def _pick(found: dict[ir.Value, Array], y: ir.Value, shape: Shape, indices: Array) -> None:
    if all(-len(shape) <= i < len(shape) for i in indices.flat):
        picked = [shape[int(i)] for i in indices.flat]
        if all(isinstance(d, int) for d in picked):
            found[y] = np.array(picked, np.int64).reshape(indices.shape)


def _evaluated(t: Builder, node: ir.Node, known: Mapping[ir.Value, Array]) -> dict[ir.Value, Array]:
    if node.domain or node.op_type not in _ARITHMETIC:
        return {}
    feeds = {str(i.name): known[i] for i in node.inputs if i is not None}
    results = evaluate_node(ir.to_proto(node), feeds, {"": t.opset})
    if results is None:
        return {}
    return {o: array for o, array in zip(node.outputs, results, strict=True) if array.size <= _LARGEST}
