"""VJP rules of cumulative sums and products."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator

X = np.random.default_rng(31).uniform(0.5, 1.5, (2, 3, 4)).astype(np.float32) * np.float32([1, -1, 1, -1])
FLAGS = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("exclusive", "reverse"), FLAGS)
@pytest.mark.parametrize("constants", [["axis"], []], ids=["constant", "computed"])
def test_cum_sum(axis, exclusive, reverse, constants):
    inputs = {"x": X, "axis": np.array(axis, np.int64)}
    check_node("CumSum", inputs, constants=constants, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(("exclusive", "reverse"), FLAGS)
def test_cum_prod(axis, exclusive, reverse):
    # ONNX Runtime 1.31 has no kernel of CumProd.
    inputs = {"x": X, "axis": np.array(axis, np.int64)}
    check_node("CumProd", inputs, opset=26, runtime=False, constants=["axis"], exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("zeros", [[0], [2], [4], [1, 3], [0, 4], [2, 3], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize(("exclusive", "reverse"), FLAGS)
def test_cum_prod_with_zeros(zeros, exclusive, reverse):
    x = np.array([1.5, -0.7, 2.0, 0.4, -1.2], np.float32)
    x[zeros] = 0
    inputs = {"x": x, "axis": np.array(0, np.int64)}
    check_node("CumProd", inputs, opset=26, runtime=False, constants=["axis"], exclusive=exclusive, reverse=reverse)


def test_cum_prod_of_zeros_is_exact():
    x, axis = np.array([2, 0, 3, 0, 5], np.float32), np.array(0, np.int64)
    model = node_model("CumProd", {"x": x, "axis": axis}, opset=26, constants=["axis"])
    graph = gradient_model(model, ["x"]).to_proto()
    (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.ones(5, np.float32)})
    np.testing.assert_array_equal(dx, [1, 2 + 6, 0, 0, 0])
