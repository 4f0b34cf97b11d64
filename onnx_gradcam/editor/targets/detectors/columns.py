"""What the numbers of a table of boxes are: scores, parts of a box, class numbers, or anything else.

Nothing is concluded from names or sizes. An axis is followed back through the operators that move, join or choose
numbers to those that compute them: behind a Sigmoid or Softmax are scores, behind arithmetic are boxes, behind a Cast
of integers are class numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnx_gradcam.editor.targets.axes import window
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import QUANTISATION, RESHAPES

__all__ = ["Kind", "Part", "columns", "kind_of", "merged", "moved_axis", "producer_of", "source_of"]
__all__ += ["start_of"]

Kind = Literal["score", "box", "raw", "id", "constant", "mixed"]
"""Probabilities, arithmetic on boxes, the output of a linear layer, integers, constants, several of these."""

_ACTIVATIONS = {"Sigmoid", "Softmax", "HardSigmoid"}
_KEEPING = {"Identity", "Dropout", "Cast", *QUANTISATION}
_PASSED = {"Gather", "GatherElements", "GatherND", "Slice", "Split", "Expand", "Tile", "Pad", "Compress", "Where"}
_PASSED |= {"ReduceMax", "ReduceMin", "Max", "Min", "Clip", "Relu", "ScatterND", "Transpose", "TopK"}
_PASSED |= _KEEPING | RESHAPES
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Exp", "Sqrt", "Neg", "Tanh", "Softplus", "Log", "Atan", "Sin", "Cos"}
_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "Resize", "LayerNormalization"}


@dataclass(frozen=True)
class Part:
    """Neighbouring columns of one kind.

    Attributes:
        size: how many there are.
        kind: what they are.
        source: the tensor that computes them, or one of several alike (the levels of a pyramid).
    """

    size: int
    kind: Kind
    source: ir.Value


def columns(t: Builder, value: Value, axis: int) -> list[Part]:
    """The parts of a tensor along an axis, in order; a single part where it is not joined of several."""
    return merged(_columns(t, value, axis % len(value.probe_shape or (0,))))


def merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbours that the same tensor computes as one part."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if last is not None and last.kind == part.kind and last.source is part.source:
            result[-1] = Part(last.size + part.size, part.kind, part.source)
        else:
            result.append(part)
    return result


def _columns(t: Builder, value: Value, axis: int) -> list[Part]:
    shape, node = value.probe_shape, value.core.producer()
    if shape is None:
        return []
    whole = [Part(shape[axis], kind_of(t, value), value.core)]
    source = node.inputs[2] if node is not None and node.op_type == "ScatterND" else source_of(node)
    if node is None or source is None or (before := t.wrap(source)).probe_shape is None:
        return whole
    if node.op_type == "Concat":
        return _joined(t, node, axis, len(shape)) or whole
    if node.op_type in {"Split", "Slice"} and (start := start_of(t, node, value.core, axis)) is not None:
        return _cut(_columns(t, before, axis), start, start + shape[axis])
    there = moved_axis(value, before, axis)
    return whole if there is None or (node.op_type == "Cast" and not before.is_float) else _columns(t, before, there)


def _joined(t: Builder, node: ir.Node, axis: int, rank: int) -> list[Part]:
    """The columns of a Concat: one behind the other along its axis; along another one the inputs have to agree."""
    along = node.attributes["axis"].as_int() % rank == axis
    lists = [_columns(t, t.wrap(i), axis) for i in node.inputs if i is not None]
    if along:
        return [part for parts in lists for part in parts]
    lists = [merged(parts) for parts in lists]
    if len({tuple(part.size for part in parts) for parts in lists}) != 1:
        return []
    kinds = [{parts[i].kind for parts in lists} for i in range(len(lists[0]))]
    return [
        Part(part.size, part.kind if len(kind) == 1 else "mixed", part.source)
        for part, kind in zip(lists[0], kinds, strict=True)
    ]


def _cut(parts: Sequence[Part], start: int, end: int) -> list[Part]:
    result, at = [], 0
    for part in parts:
        size = min(at + part.size, end) - max(at, start)
        if size > 0:
            result.append(Part(size, part.kind, part.source))
        at += part.size
    return result


def start_of(t: Builder, node: ir.Node, output: ir.Value, axis: int) -> int | None:
    """Where along `axis` the numbers begin that a Split or Slice takes; `None` if it cannot be told."""
    source = source_of(node)
    size = None if source is None else t.wrap(source).probe_shape
    if size is None:
        return None
    if node.op_type == "Slice":
        kept = window(t, node, axis, size[axis])
        return None if kept is None else kept[0]
    if node.attributes.get_int("axis", 0) % len(size) != axis:
        return 0
    shapes = [t.wrap(o).probe_shape for o in node.outputs]
    before = shapes[: list(node.outputs).index(output)]
    return None if any(s is None for s in before) else sum(s[axis] for s in before if s is not None)


def source_of(node: ir.Node | None) -> ir.Value | None:
    """The first input of a node."""
    return node.inputs[0] if node is not None and node.inputs else None


def producer_of(value: Value) -> str:
    """The operator that computes a tensor; empty for an input or a constant."""
    node = value.core.producer()
    return "" if node is None else str(node.op_type)


def moved_axis(value: Value, before: Value, axis: int) -> int | None:
    """Which axis of the first input of its node becomes `axis` of a tensor; `None` if none does as it is."""
    node, after, shape = value.core.producer(), value.probe_shape, before.probe_shape
    if node is None or after is None or shape is None:
        return None
    if node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        return (attribute.as_ints() if attribute is not None else range(len(shape))[::-1])[axis]
    if node.op_type in RESHAPES:
        return _same_place(shape, after, axis)
    if node.op_type in {"Gather", "GatherElements", "GatherND"}:
        # The rows are chosen, the columns stay as they are.
        last = axis == len(after) - 1 and after[axis] == shape[-1]
        chosen = node.op_type != "GatherND" and node.attributes.get_int("axis", 0) % len(shape) == len(shape) - 1
        return len(shape) - 1 if last and not chosen else None
    kept = node.op_type in {*_KEEPING, "Slice", "Split", "Expand", "Pad", "ScatterND"}
    return axis if kept and len(after) == len(shape) and after[axis] == shape[axis] else None


def _same_place(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis of the same size with as many numbers in front of it."""
    if after[axis] == 1:
        return None
    front = math.prod(after[:axis])
    places = [i for i, size in enumerate(before) if size == after[axis] and math.prod(before[:i]) == front]
    return places[0] if places else None


def kind_of(t: Builder, value: Value) -> Kind:
    """What the numbers of a tensor are."""
    for _ in range(len(t.nodes) + 1):
        node = value.core.producer()
        if value.dtype is not None and not value.is_float and value.dtype.itemsize > 2:
            return "id"
        if node is None:
            return "raw" if value.array() is None else "constant"
        if node.op_type not in _PASSED:
            return _kind_by_operator(t, node)
        source = _passed_on(t, node)
        if source is None:
            return "constant"
        value = t.wrap(source)
    return "raw"


def _passed_on(t: Builder, node: ir.Node) -> ir.Value | None:
    """The input whose numbers a node moves, chooses or keeps."""
    if node.op_type == "ScatterND":
        return node.inputs[2]
    if node.op_type == "Where":
        return next((i for i in node.inputs[1:] if i is not None and t.wrap(i).array() is None), None)
    return source_of(node)


def _kind_by_operator(t: Builder, node: ir.Node) -> Kind:
    """What a node computes, by its operator."""
    if node.op_type in _ACTIVATIONS:
        return "score"
    if node.op_type == "Concat":
        kinds = {kind_of(t, t.wrap(i)) for i in node.inputs if i is not None}
        return kinds.pop() if len(kinds) == 1 else "mixed"
    return _kind_of_arithmetic(t, node) if node.op_type in _ARITHMETIC else "raw"


def _kind_of_arithmetic(t: Builder, node: ir.Node) -> Kind:
    operands = [t.wrap(i) for i in node.inputs if i is not None]
    computed = [value for value in operands if value.array() is None]
    if not computed:
        return "constant"
    if node.op_type == "Add" and len(computed) == 1:
        if producer_of(computed[0]) in _LINEAR:
            return "raw"
        return "id" if kind_of(t, computed[0]) == "id" else "box"
    if node.op_type in {"Mul", "Sqrt"} and len(computed) == len(operands):
        kinds = {kind_of(t, value) for value in computed}
        # A sigmoid times what it is the sigmoid of is an activation (SiLU) and no product of scores.
        return "score" if kinds == {"score"} else "raw" if kinds == {"score", "raw"} else "box"
    return "box"
