"""Pools against central differences, and the tie rule of MaxPool against a slow copy of its definition."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import helper
from support.helpers import check_node, node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model

WINDOWS = {
    "two by two": ((2, 3, 6, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "dropped rows": ((2, 3, 7, 9), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "overlapping": ((2, 2, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "stride one": ((1, 2, 5, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "stride one, large": ((1, 2, 7, 8), {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}),
    "unequal strides": ((1, 2, 8, 9), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1]}),
    "stride beyond the kernel": ((1, 2, 9, 8), {"kernel_shape": [2, 1], "strides": [3, 2]}),
    "asymmetric pads": ((1, 2, 7, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 1]}),
    "one dimension": ((2, 2, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    "three dimensions": (
        (1, 2, 5, 4, 5),
        {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [0, 1, 0, 1, 1, 0]},
    ),
    "one window": ((2, 3, 4, 5), {"kernel_shape": [4, 5]}),
    "same upper": ((1, 2, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same upper, stride one": ((1, 2, 5, 6), {"kernel_shape": [2, 4], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "valid": ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
}
CEIL = {
    "ceil": ((1, 2, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "ceil and pads": ((1, 2, 8, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    "ceil, last window in the padding": (
        (1, 2, 5, 7),
        {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    ),
    "ceil, whole window in the padding": (
        (1, 1, 4, 5),
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [0, 0, 2, 2]},
    ),
}
DILATED = {
    "dilated": ((1, 2, 9, 9), {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated, strided": ((1, 2, 10, 9), {"kernel_shape": [3, 2], "dilations": [3, 3], "strides": [2, 2]}),
    "dilated, ceil": (
        (1, 2, 10, 9),
        {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
}
ALL = {**WINDOWS, **CEIL, **DILATED}


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values that all differ by far more than the checker's step."""
    count = int(np.prod(shape))
    return (rng.permutation(count) / count * 4 - 2 + 0.3 / count).reshape(shape).astype(np.float32)


def shapes(case: str) -> dict[str, bool]:
    """ONNX's shape inference does not know that a window behind the image is dropped."""
    return {"dynamic": True} if "window in the padding" in case else {}


@pytest.mark.parametrize("case", ALL)
def test_max_pool(case):
    shape, attributes = ALL[case]
    check_node("MaxPool", {"x": distinct(np.random.default_rng(0), *shape)}, **shapes(case), **attributes)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(case, include):
    shape, attributes = ALL[case]
    x = distinct(np.random.default_rng(0), *shape)
    check_node("AveragePool", {"x": x}, opset=19, count_include_pad=include, **shapes(case), **attributes)


@pytest.mark.parametrize("case", [*WINDOWS, "dilated", "dilated, strided"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(case, p):
    shape, attributes = ALL[case]
    check_node("LpPool", {"x": distinct(np.random.default_rng(0), *shape)}, p=p, **attributes)


def test_lp_pool_of_zeros():
    x = np.zeros((1, 1, 2, 4), np.float32)
    x[..., 2:] = 1
    (gradient,) = _gradient("LpPool", x, np.ones((1, 1, 1, 2), np.float32), kernel_shape=[2, 2], strides=[2, 2])
    np.testing.assert_allclose(gradient[0, 0], [[0, 0, 0.5, 0.5]] * 2)


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 2, 3, 4)])
def test_global_pools(op_type, shape):
    check_node(op_type, {"x": distinct(np.random.default_rng(0), *shape)})


@pytest.mark.parametrize("p", [1, 3])
def test_global_lp_pool(p):
    check_node("GlobalLpPool", {"x": distinct(np.random.default_rng(0), 2, 3, 4, 5)}, p=p)


def test_global_max_pool_shares_among_ties():
    x = np.array([[[1, 3, 3], [3, 0, 2]], [[0, 0, 0], [0, 0, 0]]], np.float32)[None]
    (gradient,) = _gradient("GlobalMaxPool", x, np.array([6, 12], np.float32).reshape(1, 2, 1, 1))
    np.testing.assert_array_equal(gradient[0], [[[0, 2, 2], [2, 0, 0]], np.full((2, 3), 2)])


def _gradient(op_type, x, cotangent, *, dynamic=False, outputs=1, **attributes):
    model = node_model(op_type, {"x": x}, dynamic=dynamic, outputs=outputs, **attributes)
    session = quiet_session(gradient_model(model, ["x"]).to_proto())
    return session.run(None, {"x": x, "cotangent": cotangent})


def _first_maximum(x, g, kernel, strides, dilations, begin):
    """MaxPool's gradient, one window at a time: the first maximum in scan order takes the window's cotangent."""
    result = np.zeros_like(x)
    for index in np.ndindex(*g.shape):
        best, where = -np.inf, None
        for tap in itertools.product(*map(range, kernel)):
            place = tuple(
                i * s + o * d - p for i, s, o, d, p in zip(index[2:], strides, tap, dilations, begin, strict=True)
            )
            inside = all(0 <= i < n for i, n in zip(place, x.shape[2:], strict=True))
            if inside and x[index[:2] + place] > best:
                best, where = x[index[:2] + place], place
        result[index[:2] + where] += g[index]
    return result


TIES = {
    "two by two": ((2, 2, 6, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "overlapping": ((1, 2, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "axis by axis": ((1, 2, 7, 8), {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}),
    "axis by axis, strided": (
        (1, 1, 12, 13),
        {"kernel_shape": [7, 7], "strides": [2, 2], "pads": [3, 3, 3, 3], "ceil_mode": 1},
    ),
    "dilated": ((1, 2, 9, 9), {"kernel_shape": [2, 3], "dilations": [3, 2], "strides": [1, 2]}),
    "odd lower padding": ((1, 2, 7, 8), {"kernel_shape": [4, 4], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "odd lower padding, axis by axis": ((1, 1, 7, 8), {"kernel_shape": [6, 6], "auto_pad": "SAME_LOWER"}),
    "three dimensions": ((1, 1, 6, 5, 6), {"kernel_shape": [4, 4, 4], "strides": [1, 1, 1]}),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", TIES)
def test_max_pool_gives_ties_to_the_first(case, dynamic):
    """Windows full of a rectifier's zeros are the rule in real networks."""
    rng = np.random.default_rng(3)
    shape, attributes = TIES[case]
    x = np.maximum(rng.integers(-4, 3, shape), 0).astype(np.float32)
    y = quiet_session(node_model("MaxPool", {"x": x}, **attributes)).run(None, {"x": x})[0]
    g = rng.standard_normal(y.shape).astype(np.float32)
    kernel = attributes["kernel_shape"]
    ones = [1] * len(kernel)
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    begin = attributes.get("pads", [0] * len(kernel))[: len(kernel)]
    if "auto_pad" in attributes:
        begin = [-(-((-(-n // s) - 1) * s + k - n) // 2) for n, s, k in zip(shape[2:], strides, kernel, strict=True)]
    (gradient,) = _gradient("MaxPool", x, g, dynamic=dynamic, **attributes)
    np.testing.assert_allclose(gradient, _first_maximum(x, g, kernel, strides, dilations, begin), atol=1e-6)


def test_max_pool_with_indices():
    """The indices carry no gradient, whatever their layout."""
    x = distinct(np.random.default_rng(0), 1, 2, 6, 6)
    check_node("MaxPool", {"x": x}, outputs=2, kernel_shape=[2, 2], strides=[2, 2], storage_order=1, runtime=False)


def test_max_pool_of_an_empty_batch():
    x = np.zeros((0, 2, 6, 6), np.float32)
    (gradient,) = _gradient("MaxPool", x, np.zeros((0, 2, 3, 3), np.float32), kernel_shape=[2, 2], strides=[2, 2])
    assert gradient.shape == x.shape


def test_a_large_window_is_done_axis_by_axis():
    """The pyramids of detectors pool 13 x 13 elements at stride one: 24 comparisons, not 168."""
    model = node_model("MaxPool", {"x": np.zeros((1, 2, 20, 20), np.float32)}, kernel_shape=[13, 13], pads=[6] * 4)
    nodes = gradient_model(model, ["x"]).to_proto().graph.node
    assert sum(n.op_type == "Equal" for n in nodes) == 24


def test_max_pool_emits_no_indices_and_no_scatter():
    model = node_model("MaxPool", {"x": np.zeros((1, 2, 8, 8), np.float32)}, kernel_shape=[3, 3], strides=[2, 2])
    nodes = gradient_model(model, ["x"]).to_proto().graph.node
    assert all(len(n.output) == 1 and "Scatter" not in n.op_type for n in nodes)


def test_max_unpool():
    inputs = {
        "x": distinct(np.random.default_rng(0), 1, 2, 2, 2),
        "indices": np.array([5, 7, 8, 15, 16, 22, 29, 31]).reshape(1, 2, 2, 2),
    }
    check_node("MaxUnpool", inputs, kernel_shape=[2, 2], strides=[2, 2])


def test_max_unpool_to_a_shape():
    """The evaluator and ONNX Runtime count the indices differently; the gradient follows whichever runs it."""
    x = distinct(np.random.default_rng(0), 1, 1, 2, 2)
    inputs = {"x": x, "indices": np.array([[[[5, 7], [13, 15]]]]), "shape": np.array([1, 1, 5, 5])}
    options = {"kernel_shape": [2, 2], "strides": [2, 2]}
    model = node_model("MaxUnpool", inputs, constants=["shape"], **options)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 5, 5]))
    feeds = {k: v for k, v in inputs.items() if k != "shape"}
    y = quiet_session(model).run(None, feeds)[0]
    g = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    (gradient,) = quiet_session(gradient_model(model, ["x"]).to_proto()).run(None, feeds | {"cotangent": g})
    for value, back in zip(x.ravel(), gradient.ravel(), strict=True):
        assert back == g[y == value]
