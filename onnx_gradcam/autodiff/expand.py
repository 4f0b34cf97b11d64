"""Function-body expansion: replace an operator without a rule by the function body in its ONNX schema.

Only nodes on the path to differentiate are expanded, and only if a body exists at the model's own opset. The other
nodes stay, because runtimes compute an operator faster than its body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_gradcam.errors import TargetError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.inline import unroll
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import between
from onnx_gradcam.graph.shapes import TensorInfo

from .backward import carries_gradient
from .registry import ZERO, Table, rules

__all__ = ["expand_missing", "has_body", "newest_body"]

Schema = Any
"""An `onnx.defs.OpSchema`; onnx's type stubs omit its function bodies."""

_DOMAIN = "onnx_gradcam.expanded"


def has_body(op_type: str, opset: int, domain: str = "") -> bool:
    """Whether the schema has a function body at `opset`; some bodies depend on the node as well."""
    try:
        schema: Schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return False
    if any(a.type == onnx.defs.OpSchema.AttrType.GRAPH for a in schema.attributes.values()):
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def expand_missing(model: Model, scores: Sequence[str], wrt: Sequence[str], table: Table | None = None) -> list[str]:
    """Expand, in place, every node without a rule between `wrt` and `scores`; tensors keep their names and values.

    Nodes with a body at the model's opset are expanded repeatedly, because bodies can contain operators with bodies,
    and a Loop of known length is unrolled. Call this before making a `Builder` for the model.

    Returns:
        One line for each expanded node, such as `LpNormalization 'norm_3'`, in the order of expansion.

    Raises:
        TargetError: a name is not in the model.
    """
    table = rules() if table is None else table
    expanded: list[str] = []
    while True:
        bodies, loops = {}, []
        t = Builder(model)
        for node in _without_rule(t, scores, wrt, table):
            body = _body(model, node)
            if body is not None:
                bodies[node] = body
            elif _unrolled(t, node):
                loops.append(f"Loop {node.outputs[0].name!r}")
        t.finish()
        expanded += loops
        if not bodies and not loops:
            return expanded
        for i, (node, body) in enumerate(bodies.items()):
            expanded.append(f"{node.op_type} {node.outputs[0].name!r}")
            _call(model, node, body, f"{node.op_type}_{i}")
        InlinePass()(model.core)
        model.core.opset_imports.pop(_DOMAIN, None)
        model.infer()


def _unrolled(t: Builder, node: ir.Node) -> bool:
    """Unroll a Loop of known length, and say whether that was done."""
    if (node.domain, node.op_type) != ("", "Loop"):
        return False
    try:
        unroll(t, node)
    except UnsupportedError:
        return False  # `backward` tells the reason
    return True


def _without_rule(t: Builder, scores: Sequence[str], wrt: Sequence[str], table: Table) -> list[ir.Node]:
    """The nodes on the path that have no rule and whose derivative is not zero."""
    values = {name: t.find(name) for name in (*scores, *wrt)}
    ends = {name: value.core for name, value in values.items() if value is not None}
    missing = [name for name in values if name not in ends]
    if missing:
        raise TargetError(f"the model has no tensor {missing[0]!r}")
    path, _ = between(t.nodes, [ends[n] for n in wrt], [ends[n] for n in scores], carries_gradient(t, table))
    return [n for n in path if (n.domain, n.op_type) not in table and (n.domain, n.op_type) not in ZERO]


def _body(model: Model, node: ir.Node) -> onnx.FunctionProto | None:
    """The function body for this node, whose default attributes are set; `None` where there is no body."""
    opset = model.core.opset_imports.get(node.domain)
    if opset is None or not has_body(node.op_type, opset, node.domain):
        return None
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
    for i, output in enumerate(node.outputs):
        # An omitted output has no name, but the body can read its value.
        output.name = output.name or f"{node.outputs[0].name}/unused_{i}"
    types = [_type(value) for value in node.inputs]
    body = newest_body(schema, opset, ir.to_proto(node), types)
    if body is None:
        return None
    del body.output[len(node.outputs) :]
    return body if _valid(body, model) else None


def newest_body(
    schema: Schema, opset: int, node: onnx.NodeProto, types: Sequence[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The newest function body of `schema` for `opset` or an older one; `None` where there is none."""
    versions = schema.function_opset_versions or schema.context_dependent_function_opset_versions
    # For `opset` itself, onnx returns an empty body if an operator in it has gained types since the body was written.
    version = max((v for v in versions if v <= opset), default=0)
    if not version:
        return None
    if schema.has_function:
        serialized = schema.get_function_with_opset_version(version)
    else:
        raw = [t.SerializeToString() for t in types]
        serialized = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), raw)
    body = onnx.FunctionProto.FromString(serialized)
    return body if body.node else None


def _valid(body: onnx.FunctionProto, model: Model) -> bool:
    """Whether the body is valid at the model's opset, which it then imports."""
    del body.opset_import[:]
    body.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.core.opset_imports.items())
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.core.ir_version
    context.opset_imports = dict(model.core.opset_imports)
    try:
        onnx.checker.check_function(body, context)
    except onnx.checker.ValidationError:
        return False
    return True


def _type(value: ir.Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    info = TensorInfo.of(value)
    return onnx.helper.make_tensor_type_proto(info.elem_type, info.shape)


def _call(model: Model, node: ir.Node, body: onnx.FunctionProto, name: str) -> None:
    """Make `node` a call of a new function with this body."""
    stem = node.outputs[0].name
    body.domain, body.name = _DOMAIN, name
    function = ir.serde.deserialize_function(body)
    for inner in function:
        inner.name = f"{stem}/{inner.name or inner.op_type}"
        for output in inner.outputs:
            output.name = f"{stem}/{output.name}"
    node.domain, node.op_type = _DOMAIN, name
    model.core.functions[function.identifier()] = function
