"""Reading and writing at computed places, against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, needs_opset, node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*shape: int, bound: int, low: int = 0) -> np.ndarray:
    return np.random.default_rng(5).integers(low, bound, shape)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis):
    """Indices repeat and count from the end."""
    indices = ints(3, 4, bound=3, low=-3)
    check_node("GatherElements", {"x": floats(3, 4), "indices": indices[:, :2] if axis == 1 else indices}, axis=axis)


@pytest.mark.parametrize(
    ("shape", "indices", "batch"),
    [
        ((3, 4), [[0, 1], [2, 3], [0, 1]], 0),
        ((3, 4, 2), [[[0, -1]], [[2, 3]]], 0),
        ((3, 4), [[2], [0], [2]], 0),
        ((2, 3, 4), [[1], [0]], 1),
        ((2, 3, 4), [[[1], [1]], [[0], [-1]]], 1),
        ((2, 2, 3), [[[1], [0]], [[2], [2]]], 2),
    ],
)
def test_gather_nd(shape, indices, batch):
    inputs = {"x": floats(*shape), "indices": np.array(indices)}
    check_node("GatherND", inputs, batch_dims=batch, constants=["indices"])
    check_node("GatherND", inputs, batch_dims=batch, dynamic=False)


REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, -1])
def test_scatter_elements(reduction, axis):
    rows = [[0, 2, 1, 3], [1, 3, 0, 2]] if reduction == "none" else [[0, 2, 2, 3], [2, 2, -1, 1]]
    indices = np.array(rows) if axis == -1 else np.array(rows).T
    shape = (2, 5) if axis == -1 else (5, 2)
    inputs = {"data": floats(*shape), "indices": indices, "updates": floats(*indices.shape, seed=1)}
    check_node("ScatterElements", inputs, axis=axis, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_nd(reduction):
    rows = [[0], [2]] if reduction == "none" else [[0], [2], [0], [-2]]
    inputs = {"data": floats(3, 4), "indices": np.array(rows), "updates": floats(len(rows), 4, seed=1)}
    check_node("ScatterND", inputs, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_nd_of_single_elements(reduction):
    rows = [[0, 1], [2, 3], [1, 0]] if reduction == "none" else [[0, 1], [2, 3], [0, 1]]
    inputs = {"data": floats(3, 4), "indices": np.array(rows), "updates": floats(3, seed=1)}
    check_node("ScatterND", inputs, reduction=reduction)


@pytest.mark.parametrize("updates", [[2, 0, 3], [0, 0, 3], [2, 5, 0]])
def test_products_with_zeros(updates):
    inputs = {
        "data": np.array([1.5, -2, 3], np.float32),
        "indices": np.array([1, 1, 2]),
        "updates": np.array(updates, np.float32),
    }
    check_node("ScatterElements", inputs, reduction="mul")


def test_extremes_share_among_ties():
    inputs = {
        "data": np.array([1, 4, 0], np.float32),
        "indices": np.array([1, 1, 2]),
        "updates": np.array([4, 3, 5], np.float32),
    }
    model = node_model("ScatterElements", inputs, reduction="max")
    session = quiet_session(gradient_model(model, ["data", "updates"]).to_proto())
    data, updates = session.run(None, inputs | {"cotangent": np.array([1, 8, 3], np.float32)})
    np.testing.assert_array_equal(data, [1, 4, 0])
    np.testing.assert_array_equal(updates, [4, 0, 3])


@needs_opset(24)
@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("indexed", [False, True])
def test_tensor_scatter(mode, indexed):
    start = [1, 3] if mode == "circular" else [1, 2]
    inputs = {
        "cache": floats(2, 2, 4, 3),
        "update": floats(2, 2, 2, 3, seed=1),
        "at": np.array(start) if indexed else None,
    }
    check_node("TensorScatter", inputs, mode=mode, opset=24)
    if indexed:
        inputs = {"cache": floats(2, 4, 3), "update": floats(2, 2, 3, seed=1), "at": np.array(start)}
        check_node("TensorScatter", inputs, mode=mode, opset=24, axis=1)


@pytest.mark.parametrize("attributes", [{}, {"axis": 0, "largest": 0}, {"axis": 1, "sorted": 0}])
def test_top_k(attributes):
    # ONNX Runtime promises no order of what is not sorted.
    runs = attributes.get("sorted", 1) == 1
    inputs = {"x": floats(3, 4, 2), "k": np.array([2])}
    check_node("TopK", inputs, outputs=2, constants=["k"], runtime=runs, **attributes)


@pytest.mark.parametrize(
    ("axis", "chosen"),
    [(None, [0, 1, 1, 0, 0, 1]), (0, [1, 0, 1]), (1, [0, 1]), (-1, [1, 0, 1, 1]), (1, [0, 0, 0, 0])],
)
def test_compress(axis, chosen):
    attributes = {} if axis is None else {"axis": axis}
    check_node("Compress", {"x": floats(3, 4), "condition": np.array(chosen, bool)}, **attributes)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis):
    inputs = {"indices": np.array([[0, 2], [-1, 7]]), "depth": np.array(4), "values": floats(2)}
    check_node("OneHot", inputs, constants=["depth"], axis=axis, dynamic=False)


@pytest.mark.parametrize("attributes", [{}, {"batch_axis": 0, "time_axis": 1}])
def test_reverse_sequence(attributes):
    lengths = np.array([1, 4, 3]) if attributes else np.array([2, 1, 3, 3])
    check_node("ReverseSequence", {"x": floats(3, 4, 2), "lengths": lengths}, **attributes)
