"""Resize in all of its modes against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.load import load

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def check(x, *, scales=None, lengths=None, roi=None, opset=19, constants=("roi", "scales", "sizes"), **options):
    inputs = {
        "x": x,
        "roi": None if roi is None else np.array(roi, np.float32),
        "scales": None if scales is None else np.array(scales, np.float32),
        "sizes": None if lengths is None else np.array(lengths, np.int64),
    }
    check_node("Resize", inputs, wrt=["x"], opset=opset, constants=constants, **options)


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest(coordinates, rounding):
    options = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    check(floats(1, 2, 3, 4), scales=[1, 1, 2, 3], **options)
    # Exact in binary, so that every arithmetic agrees on which samples lie half-way.
    check(floats(1, 2, 4, 4), scales=[1, 1, 0.5, 1.5], **options)
    check(floats(1, 1, 4, 2), scales=[1, 1, 1.5, 2], **options)


@pytest.mark.parametrize("scales", [[1, 1, 2, 3], [1, 1, 0.55, 1.45]])
@pytest.mark.parametrize("rounding", NEAREST)
def test_nearest_as_tensorflow_once_did(rounding, scales):
    """A mode of opset 11 that ONNX Runtime kept and the evaluator did not: <g, F(x)> is <gradient, x>."""
    inputs = {"x": floats(1, 2, 5, 4), "roi": None, "scales": np.array(scales, np.float32)}
    options = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": rounding}
    model = node_model("Resize", inputs, constants=["scales"], **options)
    y = quiet_session(model).run(None, {"x": inputs["x"]})[0]
    g = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    (gradient,) = quiet_session(gradient_model(model, ["x"]).to_proto()).run(None, {"x": inputs["x"], "cotangent": g})
    np.testing.assert_allclose(np.vdot(gradient, inputs["x"]), np.vdot(g, y), rtol=1e-5)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(mode, coordinates):
    options = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check(floats(1, 2, 3, 4), scales=[1, 1, 2, 1.5], **options)
    check(floats(1, 2, 5, 4), lengths=[1, 2, 3, 7], **options)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("outside", [0, 1])
def test_antialias(mode, outside):
    options = {"mode": mode, "antialias": 1, "exclude_outside": outside if mode == "cubic" else 0}
    check(floats(1, 2, 6, 7), scales=[1, 1, 0.5, 0.6], **options)
    check(floats(1, 2, 6, 7), lengths=[1, 2, 4, 9], **options)


def test_cubic_without_the_outside():
    check(floats(1, 1, 4, 4), scales=[1, 1, 1.5, 0.8], mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("roi", [[0, 0, 0.2, 0.31, 1, 1, 0.7, 0.92], [0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7]])
def test_crop_and_resize(mode, roi):
    """What lies beyond the image is a constant, and has no gradient."""
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0, "mode": mode}
    check(floats(1, 2, 5, 6), roi=roi, lengths=[1, 2, 4, 3], **options)
    # ONNX Runtime leaves the region out of account where the size stays.
    check(floats(1, 2, 5, 6), roi=roi, lengths=[1, 2, 5, 6], runtime=False, **options)
    # With scales it rounds the size that positions are taken from, the evaluator does not.
    check(floats(1, 2, 5, 6), roi=roi, scales=[1, 1, 0.8, 1.2], runtime=False, **options)


def test_crop_and_resize_to_a_computed_region():
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    roi = [0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7]
    check(floats(2, 2, 5, 6), roi=roi, lengths=[2, 2, 4, 3], constants=["sizes"], **options)


@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [3]])
def test_axes(axes):
    x = floats(1, 2, 4, 5)
    check(x, lengths=[3, 7][: len(axes)], axes=axes, mode="linear")
    check(x, scales=[1.5, 0.7][: len(axes)], axes=axes, mode="linear")


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(("lengths", "axes"), [([7, 8], [2, 3]), ([3, 2], [3, 2]), ([9, 4], [2, 3])])
def test_aspect_ratio(policy, mode, lengths, axes):
    options = {"keep_aspect_ratio_policy": policy, "mode": mode, "axes": axes, "dynamic": False}
    check(floats(1, 2, 5, 6), lengths=lengths, **options)


def test_aspect_ratio_that_bends_an_axis_without_changing_its_size():
    x = floats(1, 1, 10, 20)
    options = {"keep_aspect_ratio_policy": "not_larger", "axes": [2, 3], "dynamic": False}
    check(x, lengths=[10, 19], mode="linear", **options)


def test_aspect_ratio_of_unknown_sizes_is_refused():
    inputs = {"x": floats(1, 1, 4, 4), "roi": None, "scales": None, "sizes": np.array([3, 5])}
    model = node_model(
        "Resize", inputs, constants=["sizes"], dynamic=True, keep_aspect_ratio_policy="not_larger", axes=[2, 3]
    )
    with pytest.raises(UnsupportedError, match="keep_aspect_ratio_policy"):
        gradient_model(model, ["x"])


def test_computed_targets():
    check(floats(2, 2, 3, 4), scales=[1, 1, 2, 1.5], mode="linear", constants=[], dynamic=False)
    check(floats(2, 2, 3, 4), lengths=[2, 2, 5, 3], mode="linear", constants=[], dynamic=False)


def test_other_ranks():
    check(floats(2, 3, 6), scales=[1, 1, 2])
    check(floats(4, 6), lengths=[3, 9], mode="linear")
    check(floats(2, 3, 3, 4, 2), scales=[1, 1, 2, 1.5, 2], mode="linear")
    check(floats(1, 2, 3, 2, 2), scales=[1, 1, 2, 3, 2])


def test_batch_and_channels_may_be_resized():
    check(floats(2, 3, 4), scales=[2, 1.5, 1])


@pytest.mark.parametrize("options", [{}, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}])
def test_whole_factors_are_a_pool(options):
    inputs = {"x": floats(1, 2, 3, 4), "roi": None, "scales": np.array([1, 1, 2, 3], np.float32)}
    for dynamic in (False, True):
        model = node_model("Resize", inputs, constants=["scales"], dynamic=dynamic, **options)
        emitted = [n.op_type for n in gradient_model(model, ["x"]).to_proto().graph.node]
        assert emitted == ["AveragePool", "Mul"]


@pytest.mark.real
def test_upsample_of_an_old_model_becomes_resize(real_data):
    model = load(real_data / "models" / "onnx_native" / "deeplabv3_mnv2_dm05_voc21.onnx")
    kinds = {n.op_type for n in model.core.graph}
    assert "Resize" in kinds
    assert "Upsample" not in kinds


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_whole_factor_repeats_elements_in_nearest_mode_alone(mode):
    check(floats(1, 2, 3, 4), scales=[1, 1, 2, 3], mode=mode)
    check(floats(1, 2, 3, 4), lengths=[1, 2, 6, 8], mode=mode)
