"""Pooling of regions."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model, quiet_session

from onnx_gradcam.autodiff.check import gradient_model
from onnx_gradcam.errors import UnsupportedError

REGIONS = np.array([[0, 0, 9, 9], [3.3, 1.2, 8.7, 5.1], [-4, 2, 3, 14], [5, 5, 5.2, 5.1]], np.float32)
OWNERS = np.array([0, 1, 0, 1])


def image() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_roi_align(mode, ratio):
    check_node(
        "RoiAlign",
        {"x": image(), "rois": REGIONS, "owners": OWNERS},
        wrt=["x"],
        coordinate_transformation_mode=mode,
        sampling_ratio=ratio,
        output_height=3,
        output_width=2,
        spatial_scale=0.5,
    )


def test_roi_align_of_maxima_is_refused():
    model = node_model("RoiAlign", {"x": image(), "rois": REGIONS, "owners": OWNERS}, mode="max")
    with pytest.raises(UnsupportedError, match="mode 'avg'"):
        gradient_model(model, ["x"])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("pooled", "scale"), [((2, 3), 1.0), ((1, 1), 0.5), ((4, 2), 0.6)])
def test_max_roi_pool(pooled, scale, dynamic):
    """The evaluator has no MaxRoiPool; the operator is linear around values that all differ."""
    rng = np.random.default_rng(4)
    x = rng.permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).astype(np.float32)
    regions = np.array([[0, 0, 0, 4, 5], [1, 1, 2, 3, 4], [0, 3, 3, 9, 9], [1, 8, 8, 9, 9]], np.float32)
    options = {"pooled_shape": pooled, "spatial_scale": scale}
    forward = quiet_session(node_model("MaxRoiPool", {"x": x, "rois": regions}, **options))
    (y,) = forward.run(None, {"x": x, "rois": regions})
    g = rng.standard_normal(y.shape).astype(np.float32)
    u = rng.uniform(-0.2, 0.2, x.shape).astype(np.float32)
    (moved,) = forward.run(None, {"x": x + u, "rois": regions})
    model = gradient_model(node_model("MaxRoiPool", {"x": x, "rois": regions}, dynamic=dynamic, **options), ["x"])
    session = quiet_session(model.to_proto())
    feeds = {"x": x, "rois": regions, "cotangent": g}
    (gradient,) = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
    np.testing.assert_allclose(np.vdot(gradient, u), np.vdot(g, moved - y), rtol=2e-3)
    np.testing.assert_allclose(np.vdot(gradient, x), np.vdot(g, y), rtol=1e-4)


def test_max_roi_pool_gives_ties_to_the_first():
    x = np.zeros((1, 1, 4, 4), np.float32)
    regions = np.array([[0, 0, 0, 3, 3]], np.float32)
    model = gradient_model(node_model("MaxRoiPool", {"x": x, "rois": regions}, pooled_shape=[2, 2]), ["x"])
    g = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)
    (gradient,) = quiet_session(model.to_proto()).run(None, {"x": x, "rois": regions, "cotangent": g})
    assert {tuple(map(int, p)): gradient[0, 0][tuple(p)] for p in np.argwhere(gradient[0, 0])} == {
        (0, 0): 1,
        (0, 2): 2,
        (2, 0): 3,
        (2, 2): 4,
    }
