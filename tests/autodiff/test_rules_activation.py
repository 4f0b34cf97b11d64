"""VJP rules of activations."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator

# Both sides of every kink at 0, +-0.5, +-1, +-3, none of the kinks themselves.
X = np.array([[-4.1, -2.7, -1.4, -0.7, -0.3, -0.05], [0.05, 0.3, 0.7, 1.4, 2.7, 4.1]], np.float32).reshape(2, 3, 2)

CASES = {
    "relu": ("Relu", {}, 18),
    "leaky": ("LeakyRelu", {}, 18),
    "leaky alpha": ("LeakyRelu", {"alpha": 0.3}, 18),
    "leaky zero": ("LeakyRelu", {"alpha": 0.0}, 18),
    "leaky negative": ("LeakyRelu", {"alpha": -0.4}, 18),
    "elu": ("Elu", {}, 18),
    "elu alpha": ("Elu", {"alpha": 1.7}, 18),
    "elu zero": ("Elu", {"alpha": 0.0}, 18),
    "elu negative": ("Elu", {"alpha": -0.5}, 18),
    "selu": ("Selu", {}, 18),
    "selu other": ("Selu", {"alpha": 0.6, "gamma": 1.9}, 18),
    "selu negative alpha": ("Selu", {"alpha": -0.6, "gamma": 1.9}, 18),
    "selu negative gamma": ("Selu", {"alpha": 0.6, "gamma": -1.9}, 18),
    "celu": ("Celu", {}, 18),
    "celu alpha": ("Celu", {"alpha": 1.8}, 18),
    "sigmoid": ("Sigmoid", {}, 18),
    "tanh": ("Tanh", {}, 18),
    "hard sigmoid": ("HardSigmoid", {}, 18),
    "hard sigmoid steep": ("HardSigmoid", {"alpha": 0.37, "beta": 0.61}, 18),
    "hard sigmoid falling": ("HardSigmoid", {"alpha": -0.37, "beta": 0.61}, 18),
    "hard swish": ("HardSwish", {}, 18),
    "softplus": ("Softplus", {}, 18),
    "softsign": ("Softsign", {}, 18),
    "gelu": ("Gelu", {}, 20),
    "gelu tanh": ("Gelu", {"approximate": "tanh"}, 20),
    "mish": ("Mish", {}, 18),
    "swish": ("Swish", {}, 24),
    "swish alpha": ("Swish", {"alpha": 1.6}, 24),
    "thresholded": ("ThresholdedRelu", {}, 18),
    "thresholded alpha": ("ThresholdedRelu", {"alpha": 0.5}, 18),
    "thresholded negative": ("ThresholdedRelu", {"alpha": -0.5}, 18),
    "shrink": ("Shrink", {}, 18),
    "shrink bias": ("Shrink", {"lambd": 1.2, "bias": 0.4}, 18),
}


@pytest.mark.parametrize("case", CASES)
def test_activation(case):
    op_type, attributes, opset = CASES[case]
    check_node(op_type, {"x": X}, opset=opset, **attributes)


def test_celu_of_a_negative_alpha():
    check_node("Celu", {"x": X / 4}, alpha=-1.3)


def test_swiglu():
    check_node("SwiGLU", {"a": X, "b": X[::-1] - 0.4}, opset=28, runtime=False, alpha=1.3)


def test_mask_of_the_rectifiers_at_zero():
    zero = np.zeros((1, 2), np.float32)
    for op_type, expected in {"Relu": 0.0, "LeakyRelu": 0.01, "Elu": 1.0}.items():
        graph = gradient_model(node_model(op_type, {"x": zero}), ["x"]).to_proto()
        feeds = {"x": zero, "cotangent": np.ones((1, 2), np.float32)}
        np.testing.assert_allclose(evaluate(evaluator(graph), feeds)[0], [[expected] * 2], rtol=1e-6)


def test_a_rectifier_passes_no_infinity_where_it_is_off():
    x, g = np.array([-1, 1], np.float32), np.array([np.inf, 3], np.float32)
    graph = gradient_model(node_model("Relu", {"x": x}), ["x"]).to_proto()
    np.testing.assert_array_equal(evaluate(evaluator(graph), {"x": x, "cotangent": g})[0], [0, 3])


SLOPES = [np.array(s, np.float32) for s in ([0.3], [[0.2], [-0.4], [1.7]], [0.1, 0.6], 0.25)]


class TestPRelu:
    @pytest.mark.parametrize("slope", SLOPES, ids=lambda s: str(s.shape))
    def test_slope_broadcasts(self, slope):
        check_node("PRelu", {"x": X, "slope": slope})

    @pytest.mark.parametrize("slope", [*SLOPES, np.float32([0.0])], ids=lambda s: str(s.shape))
    def test_constant_slope(self, slope):
        check_node("PRelu", {"x": X, "slope": slope}, constants=["slope"])


LOW, HIGH = np.array(-1.0, np.float32), np.array(2.0, np.float32)


class TestClip:
    @pytest.mark.parametrize("low", [None, LOW], ids=["no min", "min"])
    @pytest.mark.parametrize("high", [None, HIGH], ids=["no max", "max"])
    @pytest.mark.parametrize("constant", [False, True], ids=["computed", "constant"])
    def test_bounds(self, low, high, constant):
        inputs = {"x": X, "low": low, "high": high}
        check_node(
            "Clip", inputs, wrt=["x"], constants=[k for k in ("low", "high") if constant and inputs[k] is not None]
        )

    def test_crossed_bounds_pass_nothing(self):
        inputs = {"x": X, "low": HIGH, "high": LOW}
        graph = gradient_model(node_model("Clip", inputs), ["x"]).to_proto()
        (dx,) = evaluate(evaluator(graph), {**inputs, "cotangent": np.ones_like(X)})
        np.testing.assert_array_equal(dx, np.zeros_like(X))


@pytest.mark.parametrize("op_type", ["Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Gelu", "Mish", "HardSwish"])
def test_far_out_the_gradient_stays_finite(op_type):
    x = np.array([-90, -30, 30, 80], np.float32)
    opset = 20 if op_type == "Gelu" else 18
    graph = gradient_model(node_model(op_type, {"x": x}, opset=opset), ["x"]).to_proto()
    (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.ones(4, np.float32)})
    limits = {"Sigmoid": (0, 0), "Tanh": (0, 0), "Softsign": (31.0**-2, 31.0**-2)}.get(op_type, (0, 1))
    np.testing.assert_allclose(dx[1:3], limits, atol=1e-6)
    assert np.isfinite(dx).all()


def test_no_elements():
    check_node("PRelu", {"x": np.zeros((0, 3), np.float32), "slope": np.ones(3, np.float32)})
