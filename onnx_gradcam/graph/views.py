"""Operators that show a tensor's numbers in another shape or type, and whether they keep their order."""

from __future__ import annotations

import onnx_ir as ir

from .builder import Builder
from .shapes import Shape

__all__ = ["QUANTISATION", "RESHAPES", "VIEWS", "keeps_order"]

RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
VIEWS = {*RESHAPES, "Identity", "Dropout", "Cast", "Transpose"}
QUANTISATION = {"QuantizeLinear", "DequantizeLinear"}


def keeps_order(t: Builder, node: ir.Node, index: int = 0) -> bool:
    """Whether the output of a node that works element by element or moves elements reads like its input `index`.

    Both have to be a vector a sample: one axis behind the batch that is not of size one, and of the same size. Then a
    Reshape or Transpose between them cannot have permuted anything. A Cast has to stay floating-point.
    """
    x, y = node.inputs[index], node.outputs[0]
    if x is None:
        return False
    before, after = t.wrap(x), t.wrap(y)
    if node.op_type == "Cast" and before.is_float and not after.is_float:
        return False
    if node.op_type in {"Identity", "Dropout", "Cast", *QUANTISATION}:
        return True
    if before.known_shape is None or after.known_shape is None:
        return False
    width = _vector(before.shape)
    return width is not None and width == _vector(after.shape) and before.shape[0] == after.shape[0]


def _vector(shape: Shape) -> int | str | None:
    """The size of the one axis behind the batch that is wide, one where none is, `None` where several are."""
    wide = [d for d in shape[1:] if d != 1]
    return None if not shape or len(wide) > 1 else wide[0] if wide else 1
