"""Constant folding for shape inference.

Exporters compute paddings and target shapes with operators that ONNX's own inference does not follow (Where, Equal,
Transpose, Range ...). Here each node is inferred by itself, in order, and small tensors that follow from shapes and
constants are computed on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

__all__ = ["Completion", "complete_shapes", "computed", "evaluate_node"]

_LARGEST = 1000
_COUNTABLE = 2**60  # NumPy counts the elements of an array in 64 bits.
"""Elements of the largest tensor to compute."""

_READS_SHAPE = {"Shape", "Size"}
_ARITHMETIC = {
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum", "Div", "Equal"),
    *("Expand", "Flatten", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less"),
    *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND"),
    *("Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where"),
}


class Completion(NamedTuple):
    """Shapes by name, and whether the inputs of a node contradict each other."""

    shapes: dict[str, tuple[int, ...]]
    contradiction: bool


def complete_shapes(inferred: onnx.ModelProto) -> Completion:
    """The shapes that ONNX's inference left incomplete in a model whose inputs have fixed sizes."""
    graph, imports = inferred.graph, list(inferred.opset_import)
    types = {i.name: i.type for i in (*graph.input, *graph.value_info, *graph.output)}
    types |= {t.name: helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}
    if all(_dims(types.get(o)) is not None for node in graph.node for o in node.output if o):
        return Completion({}, contradiction=False)
    data = {t.name: numpy_helper.to_array(t) for t in graph.initializer if math.prod(t.dims) <= _LARGEST}
    shapes: dict[str, tuple[int, ...]] = {}
    contradiction = False
    for node in graph.node:
        missing = [o for o in node.output if o and _dims(types.get(o)) is None]
        outputs: Mapping[str, onnx.TypeProto] = {}
        try:
            outputs = _infer(node, types, data, imports) if missing else {}
        except onnx.shape_inference.InferenceError:
            contradiction = True
        for name in missing:
            dims = _dims(outputs.get(name))
            if dims is not None:
                types[name], shapes[name] = outputs[name], dims
        data.update(_evaluate(node, types, data, imports))
    return Completion(shapes, contradiction)


def _dims(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """The shape, if all of it is known."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


def _infer(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    data: Mapping[str, npt.NDArray[Any]],
    imports: list[onnx.OperatorSetIdProto],
) -> dict[str, onnx.TypeProto]:
    """Types of the node's outputs; none for an unknown operator, an error for inputs that do not fit."""
    if any(i and i not in types for i in node.input):
        return {}
    version = next((o.version for o in imports if o.domain == node.domain), 0)
    arguments = {i: types[i] for i in node.input if i in types}
    constants = {i: numpy_helper.from_array(data[i], i) for i in node.input if i in data}
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        return onnx.shape_inference.infer_node_outputs(schema, node, arguments, constants, opset_imports=imports)
    except (onnx.defs.SchemaError, onnx.checker.ValidationError):
        return {}


def _evaluate(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    data: Mapping[str, npt.NDArray[Any]],
    imports: list[onnx.OperatorSetIdProto],
) -> dict[str, npt.NDArray[Any]]:
    """The node's outputs, if they are small and follow from shapes and constants."""
    sizes = [_dims(types.get(o)) for o in node.output if o]
    if node.domain or any(s is None or math.prod(s) > _LARGEST for s in sizes):
        return {}
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return {node.output[0]: numpy_helper.to_array(node.attribute[0].t)}
    feeds: dict[str, npt.NDArray[Any]] = {}
    if node.op_type in _READS_SHAPE:
        dims = _dims(types.get(node.input[0]))
        if dims is None or math.prod(dims) > _COUNTABLE:
            return {}
        feeds = {node.input[0]: np.broadcast_to(np.float32(0), dims)}
    elif node.op_type in _ARITHMETIC and all(i in data for i in node.input if i):
        feeds = {i: data[i] for i in node.input if i}
    else:
        return {}
    results = evaluate_node(node, feeds, {o.domain: o.version for o in imports})
    return {} if results is None else dict(zip(node.output, results, strict=True))


def computed(
    value: ir.Value, shape_of: Callable[[ir.Value], Sequence[int | str | None] | None], opsets: Mapping[str, int]
) -> npt.NDArray[Any] | None:
    """The content of a small tensor that follows from constants and from shapes without free sizes; else `None`."""
    known: dict[ir.Value, npt.NDArray[Any] | None] = {}
    todo = [value]
    while todo:
        one = todo[-1]
        node, constant = one.producer(), ir.convenience.get_const_tensor(one)
        sizes = shape_of(one)
        if one in known:
            todo.pop()
        elif constant is not None and constant.size <= _LARGEST:
            known[one] = constant.numpy()
        elif node is None or node.domain or sizes is None or any(not isinstance(d, int) for d in sizes):
            known[one] = None
        elif node.op_type in _READS_SHAPE:
            known.update(_outputs(node, _shaped(node.inputs[0], shape_of), opsets))
        elif node.op_type not in _ARITHMETIC or math.prod(d for d in sizes if isinstance(d, int)) > _LARGEST:
            known[one] = None
        elif missing := [i for i in node.inputs if i is not None and i not in known]:
            todo += missing
        else:
            arrays = {str(i.name): known[i] for i in node.inputs if i is not None}
            feeds = {name: array for name, array in arrays.items() if array is not None}
            known.update(_outputs(node, feeds if len(feeds) == len(arrays) else None, opsets))
    return known[value]


def _shaped(
    value: ir.Value | None, shape_of: Callable[[ir.Value], Sequence[int | str | None] | None]
) -> dict[str, npt.NDArray[Any]] | None:
    """Zeros of the shape of a tensor, by its name; `None` if a size is free."""
    dims = None if value is None else shape_of(value)
    sizes = tuple(d for d in dims or () if isinstance(d, int))
    if value is None or dims is None or len(sizes) < len(dims) or math.prod(sizes) > _COUNTABLE:
        return None
    return {str(value.name): np.broadcast_to(np.float32(0), sizes)}


def _outputs(
    node: ir.Node, feeds: Mapping[str, npt.NDArray[Any]] | None, opsets: Mapping[str, int]
) -> dict[ir.Value, npt.NDArray[Any] | None]:
    results = None if feeds is None else evaluate_node(ir.to_proto(node), feeds, opsets)
    if results is None:
        return dict.fromkeys(node.outputs)
    return dict(zip(node.outputs, results, strict=True))


def evaluate_node(
    node: onnx.NodeProto, feeds: Mapping[str, npt.NDArray[Any]], opsets: Mapping[str, int]
) -> list[npt.NDArray[Any]] | None:
    """The outputs of a single node; `None` if ONNX's reference evaluator cannot compute them."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - most models need none of this

    evaluator = ReferenceEvaluator(node, opsets=dict(opsets))
    try:
        with np.errstate(all="ignore"):
            results = evaluator.run(None, dict(feeds))
    except Exception:  # noqa: BLE001 - what cannot be computed stays unknown
        return None
    return [np.asarray(r) for r in results]
