"""Every rule has the signature of its operator: ONNX's inputs, ONNX's attributes, ONNX's defaults."""

from __future__ import annotations

import inspect

import numpy as np
import onnx
import pytest
from onnx import defs

from onnx_gradcam.autodiff.registry import RULES, ZERO, rules

OLDEST, NEWEST = 18, 28


def schemas(domain, op_type):
    """The schemas of an operator from the oldest opset that rules see to the newest, newest first."""
    floor = OLDEST if domain == "" else 1
    found = {}
    for version in range(NEWEST, floor - 1, -1):
        try:
            schema = defs.get_schema(op_type, version, domain)
        except defs.SchemaError:
            continue
        found[schema.since_version] = schema
    return list(found.values())


def default(attribute):
    value = onnx.helper.get_attribute_value(attribute.default_value) if attribute.default_value.name else None
    if isinstance(value, list):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value.decode() if isinstance(value, bytes) else value


def same(left, right):
    if isinstance(left, float):
        return np.float32(left) == np.float32(right)
    return (list(left) if isinstance(left, tuple) else left) == (list(right) if isinstance(right, tuple) else right)


STANDARD = [key for key in sorted(rules()) if key[0] == ""]


@pytest.mark.parametrize("key", STANDARD, ids=lambda k: k[1])
def test_attributes_are_the_keywords(key):
    parameters = inspect.signature(RULES[key].function).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    keywords = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    versions = schemas(*key)
    assert versions, f"{key[1]} is no operator"
    known = {name for schema in versions for name in schema.attributes}
    # What the backward pass adds for the rule of an operator with subgraphs.
    added = {"captured", "table", "dtype"} if RULES[key].subgraphs else set()
    assert set(keywords) == known | added
    for name, attribute in versions[0].attributes.items():
        given = keywords[name].default
        if attribute.required:
            assert given is inspect.Parameter.empty, name
        else:
            assert same(given, default(attribute)), f"{name}: {given} is not {default(attribute)}"


@pytest.mark.parametrize("key", STANDARD, ids=lambda k: k[1])
def test_inputs_are_the_positions(key):
    parameters = list(inspect.signature(RULES[key].function).parameters.values())[3:]
    inputs = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    schema = schemas(*key)[0]
    if any(p.kind is p.VAR_POSITIONAL for p in inputs):
        assert any(i.option is defs.OpSchema.FormalParameterOption.Variadic for i in schema.inputs)
        return
    assert len(inputs) == len(schema.inputs)
    for parameter, formal in zip(inputs, schema.inputs, strict=True):
        if formal.option is defs.OpSchema.FormalParameterOption.Optional:
            assert parameter.default is None, formal.name


@pytest.mark.parametrize("key", [k for k in sorted(ZERO) if k[0] == ""], ids=lambda k: k[1])
def test_operators_of_zero_derivative_exist(key):
    assert schemas(*key)
    assert key not in RULES
