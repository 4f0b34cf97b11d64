"""Gather against central differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.helpers import check_node, node_model

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.autodiff.reference import evaluate, evaluator
from onnx_gradcam.runtime.session import Session

INDICES = {
    "scalar": (1, np.array(0)),
    "scalar from the end": (1, np.array(-1)),
    "one": (0, np.array([2])),
    "neighbours": (1, np.array([1, 2, 3])),
    "neighbours from the end": (1, np.array([-3, -2])),
    "around the end": (1, np.array([-1, 0])),
    "permutation": (-1, np.array([2, 0, 3, 1])),
    "distinct": (-1, np.array([3, 1])),
    "repeated": (1, np.array([2, 0, 2, -3])),
    "matrix": (1, np.array([[0, 1], [4, 1], [2, 2]])),
    "matrix along the first axis": (0, np.array([[0, 1], [-1, 1]])),
    "matrix along the last axis": (2, np.array([[0, 1, 1], [3, 2, -1]])),
    "none": (1, np.zeros(0, np.int64)),
}


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("case", INDICES)
def test_gather(case, computed, kind):
    axis, indices = INDICES[case]
    inputs = {"x": floats(3, 5, 4), "indices": indices.astype(kind)}
    # ONNX Runtime leaves a product over nothing unwritten.
    runs = indices.size > 0 or not computed
    check_node("Gather", inputs, axis=axis, constants=[] if computed else ["indices"], runtime=runs)


@pytest.mark.parametrize(
    ("indices", "emitted"), [(0, {"Pad", "Reshape"}), ([1, 2], {"Pad"}), ([2, 0], {"Pad", "Gather"})]
)
def test_gather_of_constants_is_no_product(indices, emitted):
    """The class token of a vision transformer costs a Pad."""
    inputs = {"x": floats(2, 4, 3), "indices": np.array(indices)}
    model = gradient_model(node_model("Gather", inputs, constants=["indices"], axis=1), ["x"])
    assert {n.op_type for n in model.to_proto().graph.node} == emitted


@pytest.mark.parametrize("axis", [0, -1])
def test_the_evaluator_gathers_along_axes_of_any_length(axis):
    shape = (100, 2) if axis == 0 else (2, 100)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    indices = np.array([[99, -1], [0, 70]])
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[A,B] x, int64[2,2] i) => (float[2,2] y) {{ y = GatherElements<axis={axis}>(x, i) }}"""
    )
    (found,) = evaluate(evaluator(model), {"x": x, "i": indices})
    np.testing.assert_array_equal(found, Session(model.SerializeToString()).run({"x": x, "i": indices})["y"])
