"""Weights that an engine changes for the model's own node, and that the gradient reads too.

A gradient multiplies with the transposed weight. Two engines are silently wrong with it:

- OpenVINO's CPU plugin, up to 2026.4 at least, caches reordered weights, and finds them by the weight's address and by
  the layout it is reordered to, which are equal where the weight is square.
- OpenCV 5.0 folds a batch normalization into the weight of the convolution behind it, in place.
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
    """Negate both operands of every appended product with a weight that an engine changes; the number of such nodes.

    Two signs cancel exactly, so no result changes. The file keeps one copy of the weight; an engine that folds the
    negation when it loads the model has two.
    """
    appended = frozenset(t.appended)
    separated = [node for node in t.appended if _reads_changed_weight(t, node, appended)]
    for node in separated:
        for index in (0, 1):
            operand = node.inputs[index]
            assert operand is not None  # noqa: S101 - products and convolutions have both operands
            node.replace_input_with(index, t.op("Neg", t.wrap(operand)).core)
    if separated:
        t.graph.sort()
    return len(separated)


def _reads_changed_weight(t: Builder, node: ir.Node, appended: Container[ir.Node]) -> bool:
    """Whether just one operand of a product is a weight of the model, and an engine may have changed it."""
    if node.op_type not in _PRODUCTS | _CONVOLUTIONS or node.domain:
        return False
    weights = [v for v in node.inputs[:2] if (source := _source(v)) is not None and _read(source, appended)]
    if len(weights) != 1 or weights[0] is None:
        return False
    return _is_square(t, node, weights[0]) or _takes_a_normalization(weights[0], appended)


def _is_square(t: Builder, node: ir.Node, weight: ir.Value) -> bool:
    shape = t.wrap(weight).known_shape
    if shape is None or len(shape) < 2:
        return False
    if node.op_type in _PRODUCTS:
        rows, columns = shape[-2:]
    else:
        rows, columns = shape[:2]
        group = node.attributes.get_int("group", 1)
        rows = rows // group if isinstance(rows, int) else None
    return isinstance(rows, int) and rows == columns and rows > 1


def _takes_a_normalization(weight: ir.Value, appended: Container[ir.Node]) -> bool:
    """Whether a convolution of the model with this weight reads what a batch normalization wrote."""
    source = _source(weight)
    readers = [node for node, index in source.uses() if index == 1 and node not in appended] if source else []
    before = [node.inputs[0].producer() for node in readers if node.op_type == "Conv" and node.inputs[0] is not None]
    return any(node is not None and node.op_type == "BatchNormalization" for node in before)


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
