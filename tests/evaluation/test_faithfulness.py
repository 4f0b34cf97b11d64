"""The metrics: against closed forms on linear scores, and against pytorch-grad-cam's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.graphs import graph, run

from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.faithfulness import PERCENTILES, Trial, blurred, impute
from onnx_gradcam.evaluation.metrics import DEFAULT, METRICS, measure

ORACLE = dict(np.load(Path(__file__).parents[1] / "oracles" / "pytorch_grad_cam_metrics.npz"))


def linear(weights, image, **options):
    """A score that is the sum of the weighed values."""

    def scores(images):
        assert images.dtype == np.float32
        assert len(images) <= options.get("batch_size", 8)
        return (images * weights).sum((1, 2, 3))

    return Trial(image=image, scores=scores, score=float((image * weights).sum()), **options)


def metric(name, trial, heatmap):
    return measure(trial, np.asarray(heatmap, np.float32), [name])[name]


def distinct(height, width, seed=0):
    """A heatmap without equal values."""
    return np.random.default_rng(seed).permutation(height * width).reshape(height, width) / (height * width)


class TestDeletionAndInsertion:
    def test_a_map_that_knows_where_the_score_is(self):
        """The score lies in the left half alone: it falls to zero over the first half of the pixels, or the second."""
        weights = np.zeros((1, 8, 8))
        weights[:, :, :4] = 1 / 32
        trial = linear(weights, np.ones((1, 8, 8), np.float32), steps=64)
        left = np.zeros((8, 8))
        left[:, :4] = 1
        assert metric("deletion", trial, left) == pytest.approx(1 / 4)
        assert metric("deletion", trial, 1 - left) == pytest.approx(3 / 4)

    @pytest.mark.parametrize("steps", [1, 7, 40])
    def test_areas_by_hand(self, steps):
        rng = np.random.default_rng(1)
        image, weights = rng.standard_normal((2, 3, 6, 7)).astype(np.float32)
        heatmap = distinct(6, 7)
        order = np.argsort(-heatmap.ravel())
        for name, before, after in (("deletion", image, 0 * image), ("insertion", blurred(image), image)):
            curve = []
            for step in range(steps + 1):
                state = before.copy()
                for pixel in order[: round(step * 42 / steps)]:
                    state[:, pixel // 7, pixel % 7] = after[:, pixel // 7, pixel % 7]
                curve.append((state * weights).sum())
            area = sum((a + b) / 2 for a, b in pairwise(curve)) / steps
            assert metric(name, linear(weights, image, steps=steps), heatmap) == pytest.approx(area, rel=1e-4)

    def test_equal_pixels_go_in_no_order_of_the_image(self):
        """All of the score lies in the upper half; in reading order the area would be a quarter."""
        weights = np.zeros((1, 32, 32))
        weights[:, :16] = 1 / 512
        trial = linear(weights, np.ones((1, 32, 32), np.float32))
        area = metric("deletion", trial, np.zeros((32, 32)))
        assert area == pytest.approx(0.5, abs=0.03)
        assert area == metric("deletion", trial, np.ones((32, 32)))

    def test_blur(self):
        flat = np.full((2, 9, 300), 3, np.float32)
        np.testing.assert_allclose(blurred(flat), flat, rtol=1e-6)
        point = np.zeros((1, 41, 41), np.float32)
        point[0, 20, 20] = 1
        soft = blurred(point)
        assert soft.sum() == pytest.approx(1, rel=1e-5)
        # a Gaussian of deviation 5, cut at 5 pixels
        assert soft[0, 20, 25] / soft[0, 20, 20] == pytest.approx(np.exp(-0.5), rel=1e-5)
        assert soft[0, 20, 26] == 0
        assert blurred(np.ones((1, 1, 2), np.float32)).shape == (1, 1, 2)


class TestOfTheHeatmapTimesTheImage:
    def test_drop_and_increase(self):
        weights = np.array([[[1.0, 1.0, -1.0, 0.0]]])
        trial = linear(weights, np.array([[[3, 1, 2, 5]]], np.float32))  # score 2
        assert metric("average_drop", trial, [[0.5, 0, 0, 1]]) == pytest.approx(0.25)
        assert metric("increase", trial, [[0.5, 0, 0, 1]]) == 0
        assert metric("deletion_drop", trial, [[1, 0, 0, 0]]) == 1.5
        assert metric("average_drop", trial, [[1, 1, 0, 0]]) == 0
        assert metric("increase", trial, [[1, 1, 0, 0]]) == 1
        assert metric("increase", trial, [[1, 1, 1, 0]]) == 0

    def test_a_score_of_zero_has_nothing_to_lose(self):
        trial = linear(np.zeros((1, 2, 2)), np.ones((1, 2, 2), np.float32))
        assert metric("average_drop", trial, np.zeros((2, 2))) == 0


class TestSparsity:
    def test_by_the_definition(self):
        """The mean absolute difference of two values over twice their mean."""
        heatmap = np.random.default_rng(2).random((5, 6))
        differences = np.abs(heatmap.reshape(-1, 1) - heatmap.reshape(1, -1)).mean()
        found = metric("sparsity", linear(0, np.zeros((1, 5, 6), np.float32)), heatmap)
        assert found == pytest.approx(differences / (2 * heatmap.mean()), rel=1e-5)

    def test_the_two_ends(self):
        trial = linear(0, np.zeros((1, 10, 10), np.float32))
        one = np.zeros((10, 10))
        one[3, 4] = 0.5
        assert metric("sparsity", trial, np.full((10, 10), 0.3)) == pytest.approx(0, abs=1e-6)
        assert metric("sparsity", trial, one) == pytest.approx(0.99)
        assert metric("sparsity", trial, np.zeros((10, 10))) == 0


class TestImputation:
    def test_a_plane_is_filled_in_exactly(self):
        """Means of neighbours on both sides leave what is linear as it is."""
        plane = (np.arange(12)[:, None] * 0.5 + np.arange(15) - 3).astype(np.float32)[None]
        kept = np.ones((12, 15), bool)
        kept[3:9, 4:11] = False
        np.testing.assert_allclose(impute(plane, kept), plane, atol=1e-3)

    def test_what_is_there_stays_and_holes_are_means(self):
        rng = np.random.default_rng(0)
        image = rng.standard_normal((2, 9, 8)).astype(np.float32)
        kept = rng.random((9, 8)) < 0.4
        filled = impute(image, kept)
        np.testing.assert_array_equal(filled[:, kept], image[:, kept])
        weights = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
        for y, x in np.argwhere(~kept):
            total, present = np.zeros(2), 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < 9 and 0 <= x + dx < 8:
                        total += weights[dy + 1, dx + 1] * filled[:, y + dy, x + dx]
                        present += weights[dy + 1, dx + 1]
            np.testing.assert_allclose(filled[:, y, x], total / present, atol=1e-4)

    def test_one_pixel_left_fills_the_whole(self):
        image = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)
        kept = np.zeros((6, 5), bool)
        kept[2, 3] = True
        np.testing.assert_allclose(impute(image, kept), np.broadcast_to(image[:, 2:3, 3:4], (3, 6, 5)), atol=1e-3)

    def test_pixels_of_any_range(self):
        """Accuracy is relative: pixels up to 255 are not computed forever."""
        image = np.random.default_rng(0).standard_normal((3, 40, 30)).astype(np.float32)
        kept = np.random.default_rng(1).random((40, 30)) < 0.2
        np.testing.assert_allclose(impute(1000 * image, kept), 1000 * impute(image, kept), atol=0.5)
        np.testing.assert_array_equal(impute(0 * image, kept), 0 * image)

    def test_a_guess_changes_nothing_but_the_work(self):
        image = np.random.default_rng(0).standard_normal((1, 20, 20)).astype(np.float32)
        kept = np.random.default_rng(1).random((20, 20)) < 0.3
        guess = np.full_like(image, 7)
        np.testing.assert_allclose(impute(image, kept, guess), impute(image, kept), atol=1e-3)

    def test_pytorch_grad_cams(self):
        for x, heatmap, expected in zip(ORACLE["x"], ORACLE["heatmap"], ORACLE["imputed"], strict=True):
            kept = heatmap < np.percentile(heatmap, 60)
            np.testing.assert_allclose(impute(x, kept), expected, atol=3e-4)


@pytest.fixture(scope="module")
def network():
    weights = {name.removeprefix("weight/"): value for name, value in ORACLE.items() if name.startswith("weight/")}
    return graph(
        "a = Conv<strides=[2,2]>(x, K, k) b = Relu(a) c = Flatten(b) l = Gemm<transB=1>(c, W, w) y = Softmax(l)",
        inputs="float[N,3,24,20] x",
        outputs="float[N,4] y",
        K=weights["0.weight"],
        k=weights["0.bias"],
        W=weights["3.weight"],
        w=weights["3.bias"],
    )


@pytest.mark.parametrize("row", [0, 1, 2])
def test_pytorch_grad_cams_metrics(network, monkeypatch, row):
    """That library's drop is of the score, not a part of it; its road adds noise, which is left out on both sides."""
    monkeypatch.setattr("onnx_gradcam.evaluation.faithfulness._NOISE", 0)
    x, heatmap, c = ORACLE["x"][row], ORACLE["heatmap"][row], int(ORACLE["classes"][row])
    score = float(ORACLE["scores"][row, c])
    trial = Trial(image=x, scores=lambda images: run(network, x=images)["y"][:, c], score=score)
    found = measure(trial, heatmap, ["road", "average_drop", "increase"])
    assert found["road"] == pytest.approx(ORACLE["road"][row], abs=1e-4)
    assert found["average_drop"] * score == pytest.approx(ORACLE["drop"][row], abs=1e-5)
    assert found["increase"] == ORACLE["increase"][row]


def test_road_of_a_map_that_knows_where_the_score_is(network):
    """A bright square on a plane: without it, and it alone, is filled in from the plane."""
    image = np.zeros((1, 20, 20), np.float32)
    image[:, 5:10, 5:10] = 1
    weights = image / 25
    trial = linear(weights, image)
    assert metric("road", trial, image[0]) > 0.25
    assert metric("road", trial, 1 - image[0]) < -0.25
    assert abs(metric("road", trial, distinct(20, 20))) < 0.15


def test_a_large_image_is_never_held_many_times():
    """No more than a batch is asked for at once, and everything is asked for."""
    asked = []
    image = np.random.default_rng(0).standard_normal((1, 30, 30)).astype(np.float32)
    trial = Trial(
        image=image, scores=lambda p: asked.append(len(p)) or np.zeros(len(p)), score=1.0, steps=20, batch_size=4
    )
    measure(trial, distinct(30, 30).astype(np.float32), DEFAULT)
    assert max(asked) == 4
    assert sum(asked) == 2 * 21 + 2 * len(PERCENTILES) + 3
    measure(trial, distinct(30, 30).astype(np.float32), list(METRICS))
    assert max(asked) == 4


def test_a_heatmap_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"heatmap is \[3, 4\] and the model's input \[4, 4\]"):
        measure(linear(1, np.zeros((1, 4, 4), np.float32)), np.zeros((3, 4)), ["road"])
