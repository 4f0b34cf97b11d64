"""The table of metrics: against Quantus' stored numbers, against hand-made cases, and its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import run

from onnx_gradcam import attach
from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation import boxes, flipping, robustness
from onnx_gradcam.evaluation.faithfulness import Trial
from onnx_gradcam.evaluation.metrics import METRICS, localize, measure, named
from onnx_gradcam.evaluation.statistics import kendall_w, paired, told_apart

ORACLE = dict(np.load(Path(__file__).parents[1] / "oracles" / "quantus.npz"))
X, A, INSIDE = ORACLE["x"], ORACLE["a"][:, 0].astype(np.float64), ORACLE["s"][:, 0]
LARGEST = np.abs(A).max()
"""The largest value of all images. Quantus divides by it, so its figures depend on the other images; ours do not."""
SIDE = X.shape[-1]
ROWS = range(4)


def agrees(found, name, row, rel=1e-5):
    assert found == pytest.approx(ORACLE[name][row], rel=rel, abs=1e-5)


@pytest.fixture(scope="module")
def network():
    return onnx.load_from_string(ORACLE["model"].tobytes())


@pytest.fixture(scope="module")
def explain(network):
    """The explainer of the oracle, by this project: input x gradient summed over channels."""
    model = attach(network, method="input-x-gradient", output="logits").to_proto()

    def maps(images, index):
        found = run(model, x=images.astype(np.float32), target_class=np.full(len(images), index))
        return found["attribution"].sum(1)

    return maps


def trial(network, row, *, values=False, explain=None):
    """The image and its score; with `values`, every value of a channel is a pixel of its own, as in Quantus."""
    index, shape = int(ORACLE["y"][row]), X.shape[1:]

    def scores(images):
        return run(network, x=images.reshape(-1, *shape).astype(np.float32))["logits"][:, index]

    image = X[row].reshape(1, -1, SIDE) if values else X[row]
    kwargs = (
        {} if explain is None else {"explain": lambda images, other: explain(images, index if other is None else other)}
    )
    return Trial(image=image, scores=scores, score=float(scores(X[row])[0]), steps=48, batch_size=64, **kwargs)


def wide(row):
    return np.concatenate([A[row] / LARGEST] * 3)


@pytest.mark.parametrize("row", ROWS)
def test_quantus_of_the_map_alone(row):
    heatmap, inside = A[row] / LARGEST, INSIDE[row]
    none = Trial(image=X[row], scores=len, score=0.0)
    agrees(robustness.gini(none, np.abs(heatmap)), "sparseness", row)
    agrees(robustness.entropy(heatmap), "complexity", row)
    agrees(np.count_nonzero(np.abs(heatmap) > 0.01), "effective_complexity", row)
    agrees(boxes.rank_inside(heatmap, inside), "relevance_rank", row)
    agrees(heatmap[inside].sum() / heatmap.sum(), "relevance_mass", row)
    agrees(boxes.energy_inside(np.abs(heatmap), inside), "attribution_localisation", row)
    agrees(boxes.area_under_roc(heatmap, inside), "auc", row)
    agrees(boxes.top_inside(heatmap, inside, 100), "top_k_100", row)
    agrees(boxes.points_inside(heatmap, inside), "pointing_game", row)
    share = robustness.effective_complexity(none, heatmap)
    assert share == np.mean(np.abs(heatmap) > 0.01 * np.abs(heatmap).max())


@pytest.mark.parametrize("row", ROWS)
def test_quantus_of_changed_images(network, row):
    one = trial(network, row, values=True)
    agrees(measure(one, wide(row), ["faithfulness_estimate"])["faithfulness_estimate"], "faithfulness_estimate", row)
    agrees(48 * measure(one, wide(row), ["pixel_flipping"])["pixel_flipping"], "pixel_flipping_auc", row)
    agrees(flipping.correlation_of_parts(one, wide(row), subsets()[:, row]), "faithfulness_correlation", row, rel=1e-4)
    plain = trial(network, row)
    curve = flipping.region_curve(plain, A[row] / LARGEST, 8, 10)
    np.testing.assert_allclose(curve, ORACLE["region_perturbation"][row], atol=1e-5)
    told, lost = flipping.infidelity_terms(plain, A[row], blackening(X[row]))
    agrees(np.mean((lost - told) ** 2), "infidelity_black", row)


def subsets():
    """The draws of Quantus, run by run and image by image; between runs it draws numbers that it does not use."""
    rng, drawn = np.random.RandomState(0), []
    for _ in range(100):
        drawn.append([rng.choice(3 * SIDE * SIDE, 224, replace=False) for _ in ROWS])
        rng.uniform(size=4)
    return np.array(drawn)


def blackening(image):
    """Cells of eight pixels that become black one after another and stay so, as in Quantus."""
    state = image.copy()
    for top in range(0, SIDE, 8):
        for left in range(0, SIDE, 8):
            state[:, top : top + 8, left : left + 8] = state.min()
            yield state.copy()


@pytest.mark.parametrize("row", ROWS)
def test_quantus_of_noisy_images(network, explain, row):
    one = trial(network, row, explain=explain)
    np.testing.assert_allclose(explain(X[row : row + 1], int(ORACLE["y"][row]))[0], A[row], atol=1e-5)
    drawn = np.random.RandomState(0)
    noises = [drawn.uniform(-0.2, 0.2, (4, *X.shape[1:]))[row] for _ in range(10)]
    relative = robustness.changes(one, A[row], noises)
    agrees(max(relative), "max_sensitivity", row, rel=1e-4)
    agrees(np.mean(relative), "avg_sensitivity", row, rel=1e-4)


def test_infidelity_has_the_best_scale_and_one_is_no_better_than_blank(network):
    one, row = trial(network, 0), 0
    found = [measure(one, scale * np.abs(A[row]), ["infidelity"])["infidelity"] for scale in (1, 7)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert 0 < found[0] <= 1
    assert measure(one, np.zeros((SIDE, SIDE)), ["infidelity"])["infidelity"] == 1
    # A score that is the sum of the image: each cell's loss is foretold by a constant heatmap exactly.
    image = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)
    linear = Trial(image=image, scores=lambda images: images.sum((1, 2, 3)), score=float(image.sum()))
    assert measure(linear, np.ones((16, 16)), ["infidelity"])["infidelity"] == pytest.approx(0, abs=1e-6)


def test_superpixels_go_from_the_hottest():
    """Two flat halves, one of which carries the score: it is lost at the first half of the segments, or the second."""
    image = np.zeros((1, 40, 40), np.float32)
    image[:, :, :20] = 1
    one = Trial(image=image, scores=lambda images: images[:, 0, :, :20].mean((1, 2)), score=1.0)
    left = image[0].astype(np.float32)
    assert measure(one, left, ["irof"])["irof"] > 0.35
    assert measure(one, 1 - left, ["irof"])["irof"] < 0.15
    segments = np.repeat([[0] * 20 + [1] * 20], 40, 0)
    np.testing.assert_allclose(flipping.removal_of_segments(one, left, segments, 0.5), [0.5, 0.5])


def test_metrics_that_explain_again():
    image = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    heatmap = np.eye(8, dtype=np.float32)

    def explain(images, other):
        return np.repeat((heatmap if other is None else heatmap[::-1])[None], len(images), 0)

    half = np.zeros((8, 8), bool)
    half[:4] = True
    one = Trial(
        image=image, scores=lambda images: images.mean((1, 2, 3)), score=float(image.mean()), explain=explain,
        others=[1], gap=(3.0, 2.0), mosaic=(image, half),
    )  # fmt: skip
    found = measure(one, heatmap, list(METRICS))
    assert found["sensitivity"] == found["avg_sensitivity"] == found["lipschitz"] == found["relative_stability"] == 0
    assert found["random_logit"] < 0.5
    assert found["completeness"] == pytest.approx(0.5)
    assert found["focus"] == pytest.approx(0.5)
    drop = found["average_drop"]
    assert found["adcc"] == pytest.approx(3 / (1 + 1 / (1 - 1 / 8) + 1 / (1 - drop)))
    assert "road_accuracy" not in found
    none = Trial(image=image, scores=one.scores, score=one.score)
    assert not {"sensitivity", "random_logit", "completeness", "focus", "adcc"} & set(
        measure(none, heatmap, ["adcc", "focus"])
    )


def test_a_mosaic_has_each_image_at_half_its_size():
    values = [np.full((2, 5, 6), value, np.float32) for value in (1, 2, 3, 4)]
    whole, own = robustness.mosaic(values[0], values[1:2], values[2:], np.random.default_rng(0))
    assert sorted(whole[0][own]) == [1] * 6 + [2] * 6
    assert sorted(whole[0, :4][~own[:4]]) == [3] * 6 + [4] * 6
    mirrored, own = robustness.mosaic(values[0], [], values[2:3], np.random.default_rng(1))
    assert set(mirrored[0][own]) == {1}


def test_ties_count_in_part_wherever_they_are():
    heatmap = np.ones((4, 4))
    inside = np.zeros((4, 4), bool)
    inside[:2] = True
    assert boxes.rank_inside(heatmap, inside) == 0.5
    assert boxes.area_under_roc(heatmap, inside) == 0.5
    assert boxes.rank_inside(0 * heatmap, inside) == 0
    assert boxes.area_under_roc(heatmap, np.ones((4, 4), bool)) is None
    assert "roc_auc" not in localize(heatmap, np.ones((4, 4), bool), ["roc_auc", "top_k"])


def test_names_and_the_table():
    assert named(["all"]) == list(METRICS)
    assert named(["road", "deletion"]) == ["deletion", "road"]
    assert {"relevance_rank", "random_logit", "complexity", "completeness", "sensitivity"} < set(named(None))
    with pytest.raises(InputError, match="did you mean 'focus'"):
        named(["focuss"])
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    for name, metric in METRICS.items():
        assert f"| `{name}`" in page
        assert metric.meaning in page
        assert (metric.function is None) is metric.of_boxes


def test_paired_differences_and_the_sign_test():
    pair = paired([3, 2, 5, 1, 1], [1, 1, 1, 1, 2])
    assert (pair.better, pair.worse) == (3, 1)
    assert pair.difference == pytest.approx(1.2)
    assert pair.error == pytest.approx(np.std([2, 1, 4, 0, -1], ddof=1) / np.sqrt(5))
    assert pair.p == pytest.approx(2 * 5 / 16)
    assert paired([1] * 10, [0] * 10).p == pytest.approx(2 / 1024)
    assert paired([1.0], [1.0]).p == 1


def test_kendalls_w():
    assert kendall_w({"a": [1, 2, 3], "b": [10, 20, 30]}) == pytest.approx(1)
    assert kendall_w({"a": [1, 2, 3], "b": [3, 2, 1]}) == pytest.approx(0)
    # Ranks 1 2.5 2.5 4 and 2 1 3 4: Friedman's chi-squared over m (n - 1), corrected for one tie of two.
    sums = np.array([3, 3.5, 5.5, 8])
    expected = 12 * ((sums - 5) ** 2).sum() / (4 * 60 - 2 * 6)
    assert kendall_w({"a": [9, 5, 5, 1], "b": [7, 8, 6, 5]}) == pytest.approx(expected)
    assert kendall_w({"a": [1, 2], "b": [1, 2]}) is None
    assert kendall_w({"a": [1, 2, 3]}) is None


def test_methods_that_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(20)
    assert told_apart({"a": noise, "b": noise + 1 + 0.1 * rng.standard_normal(20)})
    assert not told_apart({"a": noise, "b": rng.standard_normal(20)})
    assert not told_apart({"a": [1.0], "b": [2.0]})
