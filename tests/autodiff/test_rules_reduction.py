"""VJP rules of reductions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import OLD_RUNTIME, check_model, check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator

REDUCTIONS = [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
]


def sample(op_type, *shape):
    x = np.random.default_rng(5).uniform(0.3, 2, shape)
    if op_type != "ReduceLogSum":
        x = x * np.random.default_rng(6).choice([-1, 1], shape)
    return x.astype(np.float32)


def int64(*numbers):
    return np.array(numbers, np.int64)


def gradient(op_type, x, axes=None, g=None, **attributes):
    inputs = {"x": x, "axes": axes}
    graph = gradient_model(
        node_model(op_type, inputs, constants=[] if axes is None else ["axes"], **attributes), ["x"]
    ).to_proto()
    (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.asarray(g, np.float32)})
    return dx


@pytest.mark.parametrize("keepdims", [None, 0, 1])
@pytest.mark.parametrize(
    "axes", [None, int64(), int64(1), int64(-1), int64(2, 0), int64(-3, 1), int64(0, 1, 2)], ids=str
)
@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_constant_axes(op_type, axes, keepdims):
    inputs = {"x": sample(op_type, 2, 3, 4), "axes": axes}
    check_node(op_type, inputs, constants=[] if axes is None else ["axes"], keepdims=keepdims)


@pytest.mark.skipif(OLD_RUNTIME, reason="this ONNX Runtime fails on reductions over nothing")
@pytest.mark.parametrize("axes", [None, int64()], ids=["omitted", "empty"])
@pytest.mark.parametrize("op_type", [r for r in REDUCTIONS if r != "ReduceSumSquare"])
def test_axes_that_reduce_nothing(op_type, axes):
    # The reference evaluator's ReduceSumSquare ignores noop_with_empty_axes.
    inputs = {"x": sample(op_type, 2, 3), "axes": axes}
    check_node(op_type, inputs, constants=[] if axes is None else ["axes"], noop_with_empty_axes=1, keepdims=0)


def test_sum_square_that_reduces_nothing():
    x = np.array([[1, -2, 3]], np.float32)
    np.testing.assert_allclose(gradient("ReduceSumSquare", x, g=[[1, 2, 3]], noop_with_empty_axes=1), [[2, -8, 18]])


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("sizes", ["2,3,4", "a,b,c"])
@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_axes_computed_by_the_graph(op_type, sizes, keepdims):
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 18]>
        m (float[{sizes}] x, int64[2] axes) => (float[{"p,q,r" if keepdims else "p"}] y) {{
            y = {op_type}<keepdims={keepdims}>(x, axes)
        }}""")
    check_model(model, {"x": sample(op_type, 2, 3, 4), "axes": int64(-1, 0)}, ["x"])


@pytest.mark.parametrize("op_type", ["ReduceMax", "ReduceMin"])
def test_ties_split_evenly(op_type):
    sign = 1 if op_type == "ReduceMax" else -1
    x = sign * np.array([[1, 3, 3], [2, 2, 2], [5, 4, 0]], np.float32)
    expected = [[0, 3, 3], [1, 1, 1], [9, 0, 0]]
    np.testing.assert_allclose(gradient(op_type, x, int64(1), [[6], [3], [9]]), expected, rtol=1e-6)


def test_product_with_zeros():
    x = np.array([[2, 0, 3, 4], [0, 5, 0, 2], [1, 2, 3, 4]], np.float32)
    expected = [[0, 24, 0, 0], [0, 0, 0, 0], [24, 12, 8, 6]]
    np.testing.assert_allclose(gradient("ReduceProd", x, int64(1), [1, 1, 1], keepdims=0), expected)


def test_product_with_zeros_against_differences():
    x = sample("ReduceProd", 3, 4)
    x[0, 1] = x[1, 0] = x[1, 2] = 0
    check_node("ReduceProd", {"x": x, "axes": int64(1)}, constants=["axes"])


def test_norms_of_zero_vectors():
    x = np.array([[0, 0], [3, 4]], np.float32)
    np.testing.assert_allclose(gradient("ReduceL2", x, int64(1), [[5], [5]]), [[0, 0], [3, 4]])
    np.testing.assert_allclose(gradient("ReduceL1", x, int64(1), [[5], [5]]), [[0, 0], [5, 5]])


def test_log_sum_exp_of_large_numbers():
    x = np.array([[1000.0, 1000.0, 0.0]], np.float32)
    graph = gradient_model(node_model("ReduceLogSumExp", {"x": x}), ["x"]).to_proto()
    (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.ones((1, 1), np.float32)})
    np.testing.assert_allclose(dx, [[0.5, 0.5, 0]], atol=1e-4)


def test_mean_of_more_elements_than_float16_can_count():
    x = np.zeros((1, 1, 400, 400), np.float16)
    for dynamic in (False, True):
        model = node_model("ReduceMean", {"x": x, "axes": int64(2, 3)}, constants=["axes"], dynamic=dynamic)
        graph = gradient_model(model, ["x"]).to_proto()
        (dx,) = evaluate(evaluator(graph), {"x": x, "cotangent": np.full((1, 1, 1, 1), 16000, np.float16)})
        assert dx.dtype == np.float16
        np.testing.assert_allclose(dx, 0.1, rtol=1e-2)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean"])
def test_no_elements(op_type):
    check_node(op_type, {"x": np.zeros((0, 3), np.float32), "axes": int64(1)}, constants=["axes"])


@pytest.mark.parametrize("op_type", [r for r in REDUCTIONS if r != "ReduceLogSumExp"])
def test_scalar(op_type):
    # The reference evaluator's ReduceLogSumExp takes no scalar.
    check_node(op_type, {"x": np.array(1.3, np.float32)})
