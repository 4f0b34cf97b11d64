"""Every input that a schema calls differentiable has a rule, a body, a known zero or a reason: nothing is forgotten."""

from __future__ import annotations

import inspect

import onnx
import pytest
from autodiff.corpus import operators

from onnx_gradcam.autodiff.coverage import coverage
from onnx_gradcam.autodiff.registry import ZERO, rules
from onnx_gradcam.graph.decompose import decomposition_table

NOT_YET: dict[tuple[str, str], str] = {}
"""(operator, input) that the schema calls differentiable and that is not served, with the reason."""

KNOWN_ZERO = {
    ("Hardmax", "input"): "a one-hot of the largest entry: constant between ties",
}
"""(operator, input) that the schema calls differentiable although its derivative is zero wherever it exists."""


def tagged():
    return [row for row in coverage() if row.differentiable]


def test_the_schemas_are_read():
    rows = tagged()
    assert len(rows) >= 162
    assert {row.operator for row in rows} == set(operators())
    assert [(r.operator, r.input) for r in rows if r.operator == "Gemm"] == [
        ("Gemm", "A"),
        ("Gemm", "B"),
        ("Gemm", "C"),
    ]
    assert next(r for r in rows if r.operator == "Concat").input == "inputs"


def test_every_differentiable_input_is_served_or_has_a_reason():
    missing = {(r.operator, r.input) for r in tagged() if r.support == "none"}
    assert missing <= set(NOT_YET), f"neither served nor excused: {sorted(missing - set(NOT_YET))}"
    assert set(NOT_YET) <= missing, f"served by now, take it off the list: {sorted(set(NOT_YET) - missing)}"


def test_zeros_among_the_differentiable_inputs_are_deliberate():
    assert {(r.operator, r.input) for r in tagged() if r.support == "zero"} == set(KNOWN_ZERO)


def test_support_follows_the_registry():
    for row in coverage():
        rule = rules().get((row.domain, row.operator))
        if row.support == "decomposition":
            assert (row.domain, row.operator) in decomposition_table()
        elif row.support == "rule":
            assert rule is not None
            assert row.index not in rule.stops
        elif row.support == "expansion":
            assert rule is None
        elif row.support == "zero":
            assert (row.domain, row.operator) in ZERO or row.index in rule.stops


def test_operators_of_other_domains_have_rows():
    rows = [r for r in coverage() if r.domain == "com.microsoft"]
    served = {r.operator for r in rows}
    assert {"FusedConv", "Gelu", "SkipLayerNormalization", "QLinearAdd"} <= served
    assert [r.index for r in rows if r.operator == "Gelu"] == [0]
    assert {r.support for r in coverage() if (r.domain, r.operator) == ("", "QLinearConv")} == {"decomposition"}


def test_an_integer_input_has_no_row():
    inputs = {(r.operator, r.input) for r in coverage()}
    assert ("Gather", "data") in inputs
    assert ("Gather", "indices") not in inputs
    assert ("ReduceSum", "axes") not in inputs


def test_no_operator_is_both_zero_and_has_a_rule():
    rules()
    assert not ZERO & set(rules())


def plain(value):
    if isinstance(value, bytes):
        return value.decode()
    return [plain(v) for v in value] if isinstance(value, list) else value


STANDARD = sorted(op_type for domain, op_type in rules() if domain == "")

RENAMED = [("GridSample", "mode", "bilinear")]
"""(operator, attribute, default) that means the same under an older name; the rule's default is the newer one."""


@pytest.mark.parametrize("op_type", STANDARD)
def test_a_rule_has_the_attributes_and_defaults_of_every_schema_since_opset_18(op_type):
    parameters = inspect.signature(rules()["", op_type].function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for opset in range(18, onnx.defs.onnx_opset_version() + 1):
        try:
            schema = onnx.defs.get_schema(op_type, opset, "")
        except onnx.defs.SchemaError:
            continue
        for name, attribute in schema.attributes.items():
            assert name in keywords, f"{op_type} has the attribute {name!r} at opset {opset}"
            if attribute.default_value.type and not attribute.required:
                expected = plain(onnx.helper.get_attribute_value(attribute.default_value))
                if (op_type, name, expected) in RENAMED:
                    continue
                given = list(keywords[name]) if isinstance(keywords[name], tuple) else keywords[name]
                assert given == pytest.approx(expected) if isinstance(expected, float) else given == expected, (
                    f"{op_type}.{name} is {expected!r} by default at opset {opset}, not {given!r}"
                )


@pytest.mark.parametrize("op_type", STANDARD)
def test_a_rule_takes_the_inputs_of_its_operator(op_type):
    rule = rules()["", op_type]
    schema = onnx.defs.get_schema(op_type)
    parameters = list(inspect.signature(rule.function).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][3:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    assert len(positional) >= min(schema.max_input, len(schema.inputs)), [p.name for p in positional]
    required = [p for p in positional if p.default is p.empty]
    assert len(required) <= schema.min_input, "an input that may be left out has no default"
    assert all(i < len(schema.inputs) for i in rule.stops)
