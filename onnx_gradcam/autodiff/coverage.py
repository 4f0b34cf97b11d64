"""Coverage: which operators a gradient can cross, by which inputs and how.

The table follows from the installed ONNX schemas and the registry of rules. The support of an input is `rule`;
`decomposition` (loading a model replaces the operator by standard ones; scales and zero points count as constants);
`expansion` (by the operator's function body; a Loop of known length is unrolled); `zero` (the derivative is zero, or
the rule declares that the input carries none); or `none` (a model that needs it is refused).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx.defs import OpSchema

from onnx_gradcam.graph.decompose import decomposition_table
from onnx_gradcam.graph.read import MIN_OPSET

from .expand import has_body, newest_body
from .registry import ZERO, Key, rules

__all__ = ["Row", "Support", "coverage"]

Support = Literal["rule", "decomposition", "expansion", "zero", "none"]

_DIFFERENTIABLE = OpSchema.DifferentiationCategory.Differentiable
_NO_GRADIENT_NEEDED = {"Constant", "Range"}
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"}


@dataclass(frozen=True)
class Row:
    """One input of one operator: a floating-point one, or any input of an operator that is decomposed.

    `since_version` is the opset of the operator's newest version; `index` counts a variadic input once;
    `differentiable` is what the schema says, `support` how the gradient by this input is computed.
    """

    domain: str
    operator: str
    since_version: int
    index: int
    input: str
    differentiable: bool
    support: Support


def coverage() -> list[Row]:
    """One row for every floating-point input of every operator, sorted by name, other domains last.

    Example:
        >>> [row.support for row in coverage() if row.operator == "Conv"]
        ['rule', 'rule', 'rule']
    """
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated]
    rows = [row for schema in sorted(schemas, key=lambda s: s.name) for row in _standard(schema)]
    return rows + [row for key in sorted({*rules(), *decomposition_table()}) if key[0] for row in _contrib(key)]


def _standard(schema: OpSchema) -> Iterator[Row]:
    decomposed = ("", schema.name) in decomposition_table()
    for index, parameter in enumerate(schema.inputs):
        if decomposed or parameter.types & _FLOATS:
            differentiable = parameter.differentiation_category == _DIFFERENTIABLE
            support = "decomposition" if decomposed else _support(schema.name, index)
            yield Row("", schema.name, schema.since_version, index, parameter.name, differentiable, support)


def _contrib(key: Key) -> Iterator[Row]:
    """The rows of an operator without a schema: the inputs are the parameters of its rule or decomposition."""
    rule = rules().get(key)
    function = decomposition_table()[key] if rule is None else rule.function
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL}]
    # The builder precedes the inputs of a decomposition; the cotangent and the output precede those of a rule, too.
    for index, name in enumerate(positional[1 if rule is None else 3 :]):
        support: Support = "decomposition" if rule is None else "zero" if index in rule.stops else "rule"
        yield Row(*key, 1, index, name, differentiable=False, support=support)


def _support(op_type: str, index: int) -> Support:
    rule = rules().get(("", op_type))
    if rule is not None:
        return "zero" if index in rule.stops else "rule"
    if ("", op_type) in ZERO:
        return "zero"
    return "expansion" if op_type == "Loop" or _expands(op_type) else "none"


def _expands(op_type: str) -> bool:
    """Whether the operator has a body at every opset that models can have, of operators that a gradient can cross."""
    first = min(
        s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op_type)
    )
    if not has_body(op_type, max(first, MIN_OPSET)):
        return False
    operators = _body_operators(op_type)
    return bool(operators) and all(_crossable(inner) for inner in operators)


def _crossable(op_type: str) -> bool:
    key = "", op_type
    return key in rules() or key in ZERO or op_type in _NO_GRADIENT_NEEDED or _expands(op_type)


def _body_operators(op_type: str) -> set[str]:
    """The operators in the function body of a node with default attributes; empty where it has no body."""
    schema = onnx.defs.get_schema(op_type)
    inputs = [i for i in schema.inputs if i.option != OpSchema.FormalParameterOption.Optional]
    node = onnx.helper.make_node(op_type, [i.name for i in inputs], [schema.outputs[0].name])
    for attribute in schema.attributes.values():
        if attribute.default_value.type:
            node.attribute.append(attribute.default_value)
        elif attribute.required:
            node.attribute.append(onnx.helper.make_attribute(attribute.name, 1))
    for rank in (3, 4):
        kinds = [onnx.TensorProto.FLOAT if i.types & _FLOATS else onnx.TensorProto.INT64 for i in inputs]
        types = [onnx.helper.make_tensor_type_proto(kind, [1] * rank) for kind in kinds]
        body = newest_body(schema, onnx.defs.onnx_opset_version(), node, types)
        if body is not None:
            return {inner.op_type for inner in body.node}
    return set()
