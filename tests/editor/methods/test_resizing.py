"""Resizing in the graph against what SciPy, Pillow, TensorFlow and PyTorch make of the same cells."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import graph, run

from onnx_gradcam.editor.methods.maps import bicubic, bilinear, corner_bilinear, nearest, spline, table_bicubic
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

WEIGHTS = {
    # scipy 1.17.1: scipy.ndimage.zoom(np.eye(4), (9 / 4, 1)), the upper half and the middle
    (spline, 4, 9): [
        [1, 0, 0, 0],
        [0.75390625, 0.29882813, -0.0703125, 0.01757812],
        [0.26875, 0.815625, -0.1125, 0.028125],
        [-0.07929688, 0.98710938, 0.12226562, -0.03007812],
        [-0.125, 0.625, 0.625, -0.125],
    ],
    (spline, 2, 5): [[1, 0], [0.84375, 0.15625], [0.5, 0.5]],
    # the same with order=1
    (corner_bilinear, 4, 7): [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0]],
    # Pillow 13.0.0: Image.fromarray(np.eye(4, dtype="f"), mode="F").resize((4, 7), Image.BICUBIC)
    (bicubic, 4, 7): [
        [1.0793269, -0.07932692, 0, 0],
        [0.6979467, 0.3402342, -0.03818089, 0],
        [0.0452645, 0.9854572, -0.03072169, 0],
        [-0.0625, 0.5625, 0.5625, -0.0625],
    ],
    # tensorflow 2.21: tf.image.resize(np.eye(4)[..., None], (7, 4), method="bicubic")
    (table_bicubic, 4, 7): [
        [1.0792164, -0.0792164, 0, 0],
        [0.697636, 0.34058824, -0.03822421, 0],
        [0.04515877, 0.98551244, -0.03067117, 0],
        [-0.0625, 0.5625, 0.5625, -0.0625],
    ],
    # torch 2.13: torch.nn.functional.interpolate(torch.eye(3)[None], 4)
    (nearest, 3, 4): [[1, 0, 0], [1, 0, 0]],
    # cv2 5.0: cv2.resize(np.eye(2), (2, 5))
    (bilinear, 2, 5): [[1, 0], [0.9, 0.1], [0.5, 0.5]],
}
"""What the first half of the pixels are made of."""


def resized(how, maps, height, width, *, fixed=True):
    shape = ",".join(map(str, maps.shape)) if fixed else "N,h,w"
    t = Builder(load(graph("same = Identity(maps)", inputs=f"float[{shape}] maps", outputs="float[N,h,w] same")))
    t.output(how(t, t.find("maps"), t.ints(height, width)), "found")
    t.finish()
    t.model.check()
    return run(t.model.to_proto(), maps=maps)["found"]


def maps(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width)).astype(np.float32)


@pytest.mark.parametrize(("how", "cells", "pixels"), WEIGHTS, ids=lambda v: getattr(v, "__name__", v))
class TestWeights:
    def test_along_both_axes(self, how, cells, pixels):
        half = np.array(WEIGHTS[how, cells, pixels])
        across = resized(how, np.eye(cells, dtype=np.float32)[None], pixels, cells)[0]
        along = resized(how, np.eye(cells, dtype=np.float32)[None], cells, pixels)[0]
        np.testing.assert_allclose(across[: len(half)], half, atol=1e-6)
        np.testing.assert_allclose(along.T, across, atol=1e-6)
        if how is not nearest:
            np.testing.assert_allclose(across[::-1, ::-1], across, atol=1e-6)

    def test_of_each_pixel_sum_to_one(self, how, cells, pixels):
        flat = resized(how, np.full((1, cells, cells), 3, np.float32), 3 * pixels, 2 * pixels + 1)
        np.testing.assert_allclose(flat, 3, rtol=1e-6)


@pytest.mark.parametrize("how", [bilinear, corner_bilinear, nearest, bicubic, table_bicubic])
@pytest.mark.parametrize("size", [(7, 14), (20, 31), (4, 5), (7, 5), (1, 1)])
def test_a_node_where_sizes_are_free_does_the_same(how, size):
    cells = maps(7, 5)
    atol = 4e-3 if how is table_bicubic else 1e-5  # its table is only had where sizes are fixed
    np.testing.assert_allclose(resized(how, cells, *size, fixed=False), resized(how, cells, *size), atol=atol)


@pytest.mark.parametrize("how", [bilinear, corner_bilinear, nearest, bicubic, table_bicubic, spline])
def test_a_map_of_the_right_size_is_left_alone(how):
    cells = maps(6, 5)
    np.testing.assert_array_equal(resized(how, cells, 6, 5), cells)


@pytest.mark.parametrize("how", [bilinear, corner_bilinear, nearest, bicubic, table_bicubic, spline])
def test_a_map_of_one_place(how):
    np.testing.assert_allclose(resized(how, np.full((1, 1, 1), 2, np.float32), 3, 4), np.full((1, 3, 4), 2))


def test_a_spline_runs_through_the_cells_and_below_what_is_zero_beside_them():
    cells = np.zeros((1, 5, 5), np.float32)
    cells[0, 2, 2] = 1
    found = resized(spline, cells, 17, 17)[0]
    np.testing.assert_allclose(found[::4, ::4], cells[0], atol=1e-6)
    assert -0.2 < found.min() < -0.1


def test_a_spline_with_free_sizes_is_refused():
    with pytest.raises(UnsupportedError, match="export the model with a fixed size, or choose another preset"):
        resized(spline, maps(3, 3), 9, 9, fixed=False)


@pytest.mark.torch
def test_nearest_cells_are_those_of_pytorch():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    for cells, pixels in [(1, 41), (7, 224), (14, 83), (7, 287), (8, 82), (2, 164)]:
        row = np.arange(cells, dtype=np.float32)[None, None]
        expected = torch.nn.functional.interpolate(torch.from_numpy(row), pixels).numpy()
        np.testing.assert_array_equal(resized(nearest, row, 1, pixels), expected)
