"""VJP rules of the softmax family."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator
from onnx_gradcam.errors import UnsupportedError

X = np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("axis", [None, -1, 0, 1, 2, -2])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_every_axis(op_type, axis):
    check_node(op_type, {"x": X}, axis=axis)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_a_class_that_is_certain_gives_no_nan(op_type):
    x = np.array([[200.0, -200.0, 0.0]], np.float32)
    graph = gradient_model(node_model(op_type, {"x": x}), ["x"]).to_proto()
    (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.array([[1, 2, 4]], np.float32)})
    expected = [[0, 0, 0]] if op_type == "Softmax" else [[-6, 2, 4]]
    np.testing.assert_allclose(dx, expected, atol=1e-6)


def test_hardmax_is_a_step_and_cuts_the_path():
    with pytest.raises(UnsupportedError, match="does not depend on"):
        gradient_model(node_model("Hardmax", {"x": X}), ["x"])
