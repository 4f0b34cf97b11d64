"""Sampling on grids against central differences, by the image and by the grid."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model, quiet_session

from onnx_gradcam.autodiff.reference import evaluate, evaluator


def inputs_of(*shape: int, points: tuple[int, ...], reach: float = 1.6) -> dict[str, np.ndarray]:
    """An image, and positions of which some lie well outside of it."""
    rng = np.random.default_rng(2)
    grid = rng.uniform(-reach, reach, (shape[0], *points, len(shape) - 2))
    return {"x": rng.standard_normal(shape).astype(np.float32), "grid": grid.astype(np.float32)}


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_grid_sample(mode, padding, align):
    """The evaluator's GridSample is this project's own, so it is held against ONNX Runtime first."""
    inputs = inputs_of(2, 2, 4, 5, points=(3, 4))
    options = {"mode": mode, "padding_mode": padding, "align_corners": align, "opset": 20}
    model = node_model("GridSample", inputs, **options)
    expected = quiet_session(model).run(None, inputs)[0]
    np.testing.assert_allclose(evaluate(evaluator(model), inputs)[0], expected, atol=1e-5)
    check_node("GridSample", inputs, step=2e-5, **options)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_grid_sample_of_volumes(mode, padding):
    inputs = inputs_of(1, 2, 3, 4, 2, points=(2, 3, 2))
    check_node("GridSample", inputs, mode=mode, padding_mode=padding, opset=20)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_grid_sample_by_its_older_names(mode):
    check_node("GridSample", inputs_of(1, 2, 3, 4, points=(2, 3)), mode=mode, opset=18)


def test_grid_sample_far_outside():
    """Several reflections away."""
    inputs = inputs_of(1, 1, 3, 4, points=(3, 3), reach=6)
    check_node("GridSample", inputs, padding_mode="reflection", mode="linear", opset=20)


@pytest.mark.parametrize("align", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 1, 2, 3, 4)])
def test_affine_grid(size, align):
    n = len(size) - 2
    inputs = {
        "theta": np.random.default_rng(0).standard_normal((size[0], n, n + 1)).astype(np.float32),
        "size": np.array(size),
    }
    model = node_model("AffineGrid", inputs, align_corners=align, opset=20)
    expected = quiet_session(model).run(None, inputs)[0]
    np.testing.assert_allclose(evaluate(evaluator(model), inputs)[0], expected, atol=1e-5)
    check_node("AffineGrid", inputs, constants=["size"], align_corners=align, opset=20)
