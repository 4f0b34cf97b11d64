"""Weights that the gradient reads in another order than the model does.

A gradient multiplies with the transposed weight. Engines that cache reordered weights may take the copy made for the
model's own node: OpenVINO's CPU plugin, up to 2026.4 at least, looks it up by the weight's address and by the layout
it is reordered to, which are equal where the weight is square. The maps are silently wrong then.
"""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from onnx_gradcam.graph.builder import Builder

__all__ = ["separate_weights"]

_VIEWS = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "DequantizeLinear"}
_PRODUCTS = {"MatMul", "Gemm"}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}


def separate_weights(t: Builder) -> int:
    """Negate both operands of every appended product with a square weight of the model; the number of such nodes.

    Two signs cancel exactly, so no result changes. The file keeps one copy of the weight; an engine that folds the
    negation when it loads the model has two.
    """
    appended = t.appended
    separated = [node for node in appended if _operand(t, node, set(appended)) is not None]
    for node in separated:
        for index in (0, 1):
            operand = node.inputs[index]
            assert operand is not None  # noqa: S101 - products and convolutions have both operands
            node.replace_input_with(index, t.op("Neg", t.wrap(operand)).core)
    if separated:
        t.graph.sort()
    return len(separated)


def _operand(t: Builder, node: ir.Node, appended: Container[ir.Node]) -> int | None:
    """Which of a node's two operands is a square weight that the model reads as well; `None` if it is not just one."""
    if node.op_type not in _PRODUCTS | _CONVOLUTIONS or node.domain:
        return None
    weights = [i for i in (0, 1) if (source := _source(node.inputs[i])) is not None and _read(source, appended)]
    if len(weights) != 1:
        return None
    weight = node.inputs[weights[0]]
    shape = None if weight is None else t.wrap(weight).known_shape
    if shape is None or len(shape) < 2:
        return None
    if node.op_type in _PRODUCTS:
        rows, columns = shape[-2:]
    else:
        rows, columns = shape[:2]
        group = node.attributes.get_int("group", 1)
        rows = rows // group if isinstance(rows, int) else None
    return weights[0] if isinstance(rows, int) and rows == columns and rows > 1 else None


def _source(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a value shows, perhaps in another shape or type; `None` if it is computed otherwise."""
    while value is not None and not value.is_initializer():
        node = value.producer()
        if node is None or node.op_type not in _VIEWS or any(v is not None and _source(v) is None for v in node.inputs):
            return None
        value = node.inputs[0]
    return None if value is None or value.is_graph_input() else value


def _read(source: ir.Value, appended: Container[ir.Node]) -> bool:
    """Whether the model itself reads a weight."""
    return any(node not in appended for node, _ in source.uses())
