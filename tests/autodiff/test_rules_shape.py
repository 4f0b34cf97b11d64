"""Operators that move elements, against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser
from support.helpers import check_model, check_node

from onnx_gradcam.autodiff.check import gradient_model

MAX = np.iinfo(np.int64).max
MIN = np.iinfo(np.int64).min


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_flatten(axis):
    check_node("Flatten", {"x": floats(2, 3, 4)}, axis=axis)


@pytest.mark.parametrize(
    ("target", "attributes"),
    [((0, -1), {}), ((3, 0, 2, 2), {}), ((-1,), {}), ((4, 6), {"allowzero": 1}), ((1, 2, 3, 4), {})],
)
def test_reshape(target, attributes):
    shape = (2, 2, 6) if target == (3, 0, 2, 2) else (2, 3, 4)
    check_node("Reshape", {"x": floats(*shape), "shape": ints(*target)}, constants=["shape"], **attributes)


def test_reshape_of_an_empty_tensor():
    inputs = {"x": floats(0, 4), "shape": ints(2, 0, 3)}
    check_node("Reshape", inputs, constants=["shape"], allowzero=1)


def test_reshape_to_a_computed_shape():
    check_node("Reshape", {"x": floats(2, 3, 4), "shape": ints(4, -1)}, dynamic=False)


@pytest.mark.parametrize("axes", [None, ints(1), ints(-1, 1)])
def test_squeeze(axes):
    check_node("Squeeze", {"x": floats(2, 1, 3, 1), "axes": axes}, constants=["axes"], dynamic=False)


def test_squeeze_of_symbolic_dimensions():
    check_node("Squeeze", {"x": floats(2, 1, 3, 1), "axes": ints(1, 3)}, constants=["axes"])


@pytest.mark.parametrize("axes", [ints(0), ints(-1, 1)])
def test_unsqueeze(axes):
    check_node("Unsqueeze", {"x": floats(2, 3), "axes": axes}, constants=["axes"])


@pytest.mark.parametrize("attributes", [{}, {"perm": [1, 2, 0]}, {"perm": [2, 0, 1]}])
def test_transpose(attributes):
    check_node("Transpose", {"x": floats(2, 3, 4)}, **attributes)


@pytest.mark.parametrize("axis", [1, -2])
def test_concat(axis):
    inputs = {"a": floats(2, 3, 2), "b": floats(2, 1, 2), "c": floats(2, 4, 2)}
    check_node("Concat", inputs, axis=axis)
    check_node("Concat", inputs, wrt=["b"], axis=axis)


def test_concat_of_one_tensor_twice():
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[n, k] x) => (float[n, m] y) { y = Concat <axis = 1> (x, x) }
    """)
    check_model(model, {"x": floats(2, 3)}, ["x"])


def test_split():
    inputs = {"x": floats(2, 7), "split": ints(2, 4, 1)}
    for output in ("y", "y1", "y2"):
        check_node("Split", inputs, outputs=3, output=output, constants=["split"], axis=-1)


def test_split_into_uneven_parts():
    check_node("Split", {"x": floats(7, 2)}, outputs=3, output="y2", num_outputs=3)


def test_split_of_which_two_parts_are_used():
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[n, 6] x) => (float[n, 2] y) {
            a, b, c = Split <axis = 1, num_outputs = 3> (x)
            y = Mul (a, c)
        }
    """)
    check_model(model, {"x": floats(3, 6)}, ["x"])


SLICES = {
    "inner block": ((4, 6), ints(1, 2), ints(3, 5), ints(0, 1), None),
    "axes and steps left out": ((4, 6), ints(1, 2), ints(3, 5), None, None),
    "from the end": ((4, 6), ints(-3), ints(-1), ints(-1), None),
    "ends clamped": ((4, 6), ints(-100, 2), ints(100, MAX), ints(1, 0), None),
    "steps": ((7, 6), ints(1, 0), ints(7, 6), ints(0, 1), ints(3, 2)),
    "reversed": ((4, 6), ints(-1), ints(MIN), ints(1), ints(-1)),
    "reversed from beyond the end": ((4, 6), ints(MAX), ints(-7), ints(1), ints(-1)),
    "reversed with steps": ((3, 8), ints(6), ints(0), ints(1), ints(-2)),
    "reversed with steps on two axes": ((7, 8), ints(-2, 5), ints(MIN, 1), ints(1, 0), ints(-3, -2)),
    "nothing": ((3, 4), ints(3), ints(2), ints(1), None),
    "nothing, with steps": ((3, 4), ints(4), ints(9), ints(1), ints(2)),
    "nothing, reversed": ((3, 4), ints(1), ints(2), ints(1), ints(-2)),
}


@pytest.mark.parametrize("case", SLICES)
def test_slice(case):
    shape, *bounds = SLICES[case]
    inputs = dict(zip(["x", "starts", "ends", "axes", "steps"], [floats(*shape), *bounds], strict=True))
    # Shape inference takes a symbolic dimension to be that of an image: larger than these bounds.
    small = case in {"ends clamped", "nothing, with steps"}
    check_node("Slice", inputs, constants=["starts", "ends", "axes", "steps"], dynamic=False if small else None)


@pytest.mark.parametrize("case", [c for c in SLICES if "left out" not in c])
def test_slice_with_computed_starts(case):
    shape, *bounds = SLICES[case]
    inputs = dict(zip(["x", "starts", "ends", "axes", "steps"], [floats(*shape), *bounds], strict=True))
    check_node("Slice", inputs, constants=["axes", "steps"])


PADS = {
    "constant": ((3, 4), (1, 2, 0, 3), None),
    "negative": ((5, 6), (-1, 2, 1, -3), None),
    "cut away": ((3, 4), (-2, 0, -1, 0), None),
    "some axes": ((2, 3, 4), (1, 2, 0, 1), (-1, 0)),
}


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("case", PADS)
def test_pad_with_a_constant(case, computed):
    shape, amounts, axes = PADS[case]
    inputs = {
        "x": floats(*shape),
        "pads": ints(*amounts),
        "value": np.array(2, np.float32),
        "axes": None if axes is None else ints(*axes),
    }
    check_node("Pad", inputs, wrt=["x"], constants=["axes", "value"] + ([] if computed else ["pads"]))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("shape", "amounts"), [((4, 5), (1, 3, 2, 0)), ((2, 3, 4, 5), (0, 0, 2, 1, 0, 0, 3, 4)), ((6, 3), (-1, 1, 2, 2))]
)
def test_pad_with_copies(mode, shape, amounts):
    # ONNX Runtime wraps the uncut image where an amount is negative.
    runs = min(amounts) >= 0
    inputs = {"x": floats(*shape), "pads": ints(*amounts)}
    check_node("Pad", inputs, mode=mode, opset=19, constants=["pads"], runtime=runs)


def test_pad_with_copies_along_some_axes():
    inputs = {"x": floats(2, 3, 4, 5), "pads": ints(2, 1, 0, 1), "value": None, "axes": ints(-1, 1)}
    check_node("Pad", inputs, mode="reflect", constants=["pads", "axes"])


@pytest.mark.parametrize(
    ("shape", "target"), [((3, 1), (2, 3, 4)), ((1, 3, 1), (1, 3, 5)), ((2, 1), (1, 4)), ((2, 3), (2, 3))]
)
def test_expand(shape, target):
    check_node("Expand", {"x": floats(*shape), "shape": ints(*target)}, constants=["shape"])


def test_expand_to_a_computed_shape():
    check_node("Expand", {"x": floats(3, 1), "shape": ints(2, 3, 4)}, dynamic=False)


@pytest.mark.parametrize("repeats", [(1, 1), (1, 3), (2, 3)])
def test_tile(repeats):
    inputs = {"x": floats(2, 3), "repeats": ints(*repeats)}
    check_node("Tile", inputs, constants=["repeats"])
    check_node("Tile", inputs)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode):
    check_node("DepthToSpace", {"x": floats(2, 12, 2, 3)}, blocksize=2, mode=mode)


def test_space_to_depth():
    check_node("SpaceToDepth", {"x": floats(2, 3, 4, 6)}, blocksize=2)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_trilu(upper, k):
    inputs = {"x": floats(2, 3, 4), "k": None if k is None else np.array(k, np.int64)}
    check_node("Trilu", inputs, upper=upper)


@pytest.mark.parametrize(
    ("shape", "target", "attributes"),
    [
        ((5, 6), (2, 3), {}),
        ((2, 3), (5, 6), {}),
        ((5, 2, 3), (2, 6), {"axes": [0, -1]}),
        ((4, 3, 3), (7, 2), {"axes": [2, 0]}),
    ],
)
def test_center_crop_pad(shape, target, attributes):
    check_node("CenterCropPad", {"x": floats(*shape), "shape": ints(*target)}, constants=["shape"], **attributes)


def test_flatten_of_a_batch_needs_no_shape_arithmetic():
    """A symbolic batch alone is a constant Reshape."""
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[batch, 3, 4, 4] x) => (float[batch, 48] y) { y = Flatten (x) }
    """)
    nodes = gradient_model(model, ["x"]).to_proto().graph.node
    assert [n.op_type for n in nodes] == ["Reshape"]
