"""Guided backpropagation and the deconvolutional network, re-derived for one layer of each rectifier."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import needs_opset, node_model, quiet_session

from onnx_gradcam.autodiff.modifiers import MODIFIERS, RECTIFIERS
from onnx_gradcam.autodiff.providers import PROFILES, differentiate
from onnx_gradcam.autodiff.registry import rules
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

X = np.array([[-3.0, -0.5, 0.5, 3.0], [-3.0, -0.5, 0.5, 3.0]], np.float32)
COTANGENT = np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]], np.float32)
OPSETS = {"Gelu": 20, "Swish": 24}
EVERY_RECTIFIER = pytest.mark.parametrize(
    "op_type", [pytest.param(kind, marks=needs_opset(OPSETS.get(kind, 18))) for kind in RECTIFIERS]
)


def gradient(op_type, modifier=None, profile="portable"):
    inputs = {"x": X}
    if op_type == "PRelu":
        inputs["slope"] = np.full((1, 4), 0.1, np.float32)
    if op_type == "Clip":
        inputs |= {"min": np.float32(0).reshape(()), "max": np.float32(6).reshape(())}
    model = load(node_model(op_type, inputs, opset=OPSETS.get(op_type, 18), constants=[k for k in inputs if k != "x"]))
    t = Builder(model)
    y, x = t.wrap(model.core.graph.outputs[0]), t.wrap(model.core.graph.inputs[0])
    seed = t.input("cotangent", np.float32, y.shape)
    (g,) = differentiate(t, {y: seed}, [x], profile, MODIFIERS.get(modifier))
    t.output(g, "gradient")
    t.finish()
    return quiet_session(model.to_proto()).run(["gradient"], {"x": X, "cotangent": COTANGENT})[0]


@EVERY_RECTIFIER
def test_guided_passes_positive_cotangents_through_the_own_derivative(op_type):
    if ("", op_type) not in rules():
        pytest.fail(f"{op_type} is a rectifier without a rule")
    plain = gradient(op_type)
    expected = np.where(COTANGENT > 0, plain, 0)
    np.testing.assert_allclose(gradient(op_type, "guided"), expected, rtol=1e-6)


@EVERY_RECTIFIER
def test_deconvnet_looks_at_the_cotangent_alone(op_type):
    got = gradient(op_type, "deconvnet")
    np.testing.assert_array_equal(got, np.maximum(COTANGENT, 0))


def test_guided_relu_is_both_masks():
    got = gradient("Relu", "guided")
    np.testing.assert_array_equal(got, np.maximum(COTANGENT, 0) * (X > 0))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize("op_type", ["Relu", "Clip", "PRelu", "HardSwish"])
def test_modifiers_go_with_every_profile(op_type, modifier, profile):
    expected = gradient(op_type, modifier)
    assert np.count_nonzero(expected) < np.count_nonzero(gradient(op_type, None, profile)) or modifier != "guided"
    np.testing.assert_allclose(gradient(op_type, modifier, profile), expected, rtol=1e-6)


def test_a_modifier_leaves_the_table_as_it_was():
    table = PROFILES["cpu"].rules()
    before = dict(table)
    modified = MODIFIERS["guided"](table)
    assert table == before
    assert {key for key in table if modified[key] is not table[key]} == {("", kind) for kind in RECTIFIERS}
