"""From the raw map to the heatmap: re-derived slowly, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import graph, run

from onnx_gradcam.editor.methods.maps import finish
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load


def heatmap(cam: np.ndarray, height: int, width: int, *, fixed: bool = False) -> np.ndarray:
    shape = ",".join(map(str, cam.shape)) if fixed else "N,h,w"
    model = graph("same = Identity(cam)", inputs=f"float[{shape}] cam", outputs="float[N,h,w] same")
    t = Builder(load(model))
    source = t.find("cam")
    assert source is not None
    t.output(finish(t, [source], t.ints(height, width)), "heatmap")
    t.finish()
    t.model.check()
    return run(t.model.to_proto(), cam=cam)["heatmap"]


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres, the edge repeated."""
    rows, columns = (
        np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        for size, old in ((height, image.shape[0]), (width, image.shape[1]))
    )
    top, left = (
        np.minimum(at.astype(int), size - 1) for at, size in ((rows, image.shape[0]), (columns, image.shape[1]))
    )
    below, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    y, x = (rows - top)[:, None], (columns - left)[None]
    upper = image[top][:, left] * (1 - x) + image[top][:, right] * x
    lower = image[below][:, left] * (1 - x) + image[below][:, right] * x
    return upper * (1 - y) + lower * y


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("h", "w", "height", "width"), [(3, 4, 8, 8), (7, 7, 32, 48), (5, 3, 5, 3), (8, 8, 4, 6), (1, 2, 3, 5)]
)
def test_relu_scale_and_resize(h, w, height, width, fixed):
    cam = np.random.default_rng(0).standard_normal((3, h, w)).astype(np.float32) * [[[1e-6]], [[1]], [[1e6]]]
    cam = cam.astype(np.float32)
    got = heatmap(cam, height, width, fixed=fixed)
    for row, raw in zip(got, cam, strict=True):
        positive = np.maximum(raw.astype(np.float64), 0)
        np.testing.assert_allclose(row, bilinear(positive / positive.max(), height, width), atol=1e-6)
    assert got.dtype == np.float32
    assert (got >= 0).all()
    assert (got <= 1).all()


def test_the_largest_value_is_one_where_the_map_is_not_resized():
    cam = np.random.default_rng(1).standard_normal((4, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(heatmap(cam, 6, 5).max(axis=(1, 2)), np.ones(4, np.float32))


def test_a_map_without_a_positive_value_is_blank_and_leaves_the_other_samples_alone():
    cam = np.random.default_rng(2).standard_normal((3, 4, 4)).astype(np.float32)
    cam[1] = -np.abs(cam[1])
    got = heatmap(cam, 8, 8)
    np.testing.assert_array_equal(got[1], np.zeros((8, 8), np.float32))
    np.testing.assert_array_equal(got[[0, 2]], heatmap(cam[[0, 2]], 8, 8))


@pytest.mark.parametrize("tiny", [1e-30, 1e-38])
def test_maps_near_the_smallest_numbers_are_scaled_like_any_other(tiny):
    cam = np.array([[[1, 2], [4, -1]]], np.float32)
    np.testing.assert_allclose(heatmap(cam * np.float32(tiny), 2, 2), [[[0.25, 0.5], [1, 0]]], rtol=1e-5)


def test_a_map_of_one_place():
    np.testing.assert_array_equal(heatmap(np.full((1, 1, 1), 3, np.float32), 4, 5), np.ones((1, 4, 5), np.float32))
