"""Methods that run the model many times, on models whose answers are known in closed form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods import averaged as sampling
from onnx_gradcam.editor.methods import perturbation, regions
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import ModelError, TargetError, UnsupportedError
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

BODY = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}
TAIL = BODY.removeprefix("c = Conv(x, K) ")
EVERY = [name for name, method in methods().items() if method.runs_often and not method.of_boxes]
LAYERLESS = {"smoothgrad", "smoothgrad-squared", "vargrad", "integrated-gradients", "blur-ig", "rise", "occlusion"}
LAYERLESS |= {"shapley", "sampled-shapley", "kernel-shap", "lime", "sobol", "hsic"}
LAYERLESS |= {"integrated-gradients-pair-saliency", "guided-ig", "expected-gradients", "xrai", "xrai-fast"}


@pytest.fixture(autouse=True)
def _fewer_masks(monkeypatch):
    monkeypatch.setattr(perturbation, "_MASKS", 200)
    monkeypatch.setattr(regions, "_SCALES", (250,))
    monkeypatch.setattr(regions, "_SIDE", 32)
    monkeypatch.setattr(regions, "_LEAST", 60)
    monkeypatch.setattr(regions, "_GAIN", 4)
    monkeypatch.setattr(regions, "_MARGIN", 1)


def model(**kwargs):
    return graph(BODY, **SIZES, **kwargs)


def model_of(body, inputs="float[N,3,8,8] x", classes=4):
    return graph(body, inputs=inputs, outputs=f"float[N,{classes}] y", **SIZES | {"W": (5, classes)})


def explained(method, x, classes, source=None, **choices):
    if "steps" in methods()[method].takes and method != "integrated-gradients":
        choices.setdefault("steps", 12)
    if "max_passes" in methods()[method].takes:
        choices.setdefault("max_passes", 200)
    if "players" in methods()[method].takes:
        choices.setdefault("players", "grid:2x4")
    runs = {k: choices.pop(k) for k in ("seed", "batch_size", "progress") if k in choices}
    prober = Prober(probed(source or model(), Options(method=method, **choices)), **runs)
    return prober.run(x, classes)


@pytest.mark.parametrize("method", EVERY)
def test_contract(method):
    x = images(2)
    results = explained(method, x, [1, -1], batch_size=7)
    assert results["heatmap"].shape == (2, 8, 8)
    assert results["heatmap"].dtype == np.float32
    assert all(np.isfinite(value).all() for value in results.values())
    assert 0 <= results["heatmap"].min() < results["heatmap"].max() <= 1 + 1e-6
    scores = run(model(), x=x)["y"]
    np.testing.assert_array_equal(results["y"], scores)
    np.testing.assert_array_equal(results["heatmap_class"], [1, scores[1].argmax()])
    other_chunks = explained(method, x[1:], [-1], batch_size=3)
    np.testing.assert_allclose(results["cam"][1:], other_chunks["cam"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in EVERY if methods()[name].inside is None])
def test_it_cannot_be_written_into_the_model(method):
    why = "takes the sign of NumPy" if method.endswith("-pytorch-grad-cam") else "runs the model many times"
    with pytest.raises(UnsupportedError, match=why):
        attach(model(), method=method)


@pytest.mark.parametrize("method", EVERY)
def test_models_of_one_batch_size(method):
    x = images(1)
    free = explained(method, x, [2])
    fixed = explained(
        method, np.repeat(x, 2, 0), [2, 2], source=model(inputs="float[2,3,8,8] x", outputs="float[2,4] y")
    )
    np.testing.assert_allclose(fixed["heatmap"][0], free["heatmap"][0], atol=1e-4)


@pytest.mark.parametrize("method", EVERY)
def test_channels_last(method):
    x = images(1)
    first = explained(method, x, [2])
    source = model_of(f"t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, K) {TAIL}", "float[N,8,8,3] x")
    last = explained(method, x.transpose(0, 2, 3, 1), [2], source=source)
    np.testing.assert_allclose(last["heatmap"], first["heatmap"], atol=1e-5)
    np.testing.assert_allclose(last["cam"], first["cam"], rtol=1e-4, atol=1e-5)
    if "attribution" in first:
        np.testing.assert_allclose(
            last["attribution"].transpose(0, 3, 1, 2), first["attribution"], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("method", EVERY)
def test_images_of_whole_numbers(method):
    # Far from both ends, where noise would be clipped.
    whole = (128 + 12 * images(1)).astype(np.uint8)
    source = model_of(f"r = Cast<to=1>(x) c = Conv(r, K) {TAIL}", "uint8[N,3,8,8] x")
    found = explained(method, whole, [2], source=source)
    same = explained(method, whole.astype(np.float32), [2])
    assert 0 <= found["heatmap"].min() < found["heatmap"].max() <= 1 + 1e-6
    # Images in between are rounded by half a level, and what the noisy masks of SS-CAM leave is cut off. The order in
    # which Guided IG moves values is another.
    if method not in {"sscam", "guided-ig"}:
        np.testing.assert_allclose(found["heatmap"], same["heatmap"], atol=0.1)
    scores = run(source, x=whole)["y"]
    np.testing.assert_array_equal(found["y"], scores)


@pytest.mark.parametrize("method", EVERY)
def test_a_single_logit_has_a_complement(method):
    x = images(1)
    source = model_of(BODY.replace("y = ", "l = ") + " y = Sigmoid(l)", "float[N,3,8,8] x", classes=1)
    yes, no = (explained(method, x, [index], source=source) for index in (1, 0))
    assert (yes["heatmap_class"][0], no["heatmap_class"][0]) == (1, 0)
    if method in {"smoothgrad", "integrated-gradients"}:
        np.testing.assert_allclose(no["attribution"], -yes["attribution"], rtol=1e-4, atol=1e-6)
    elif method in {"ablationcam", "smoothgrad-squared", "vargrad", "sobol", "hsic"}:
        np.testing.assert_allclose(no["cam"], yes["cam"], rtol=1e-4, atol=1e-6)
    elif method.startswith("eigen"):  # a component of the same maps, or of their opposites
        np.testing.assert_allclose(np.abs(no["cam"]), np.abs(yes["cam"]), rtol=1e-4, atol=1e-6)
    elif method == "occlusion":
        np.testing.assert_allclose(no["cam"], -yes["cam"], rtol=1e-4, atol=1e-5)
    elif method == "rise":
        np.testing.assert_allclose(no["cam"], yes["cam"].max() - yes["cam"], rtol=1e-3, atol=1e-5)
    else:
        assert not np.allclose(no["cam"], yes["cam"], rtol=1e-2)


@pytest.mark.parametrize("method", EVERY)
def test_which_look_at_a_layer(method):
    shape = explained(method, images(1), [2])["cam"].shape
    assert shape == ((1, 8, 8) if method in LAYERLESS else (1, 4, 4))


def test_no_more_rows_than_the_batch_size_at_once(monkeypatch):
    seen = []
    answers, behind = Prober.answers, Prober.behind
    monkeypatch.setattr(Prober, "answers", lambda self, rows, *a: seen.append(len(rows)) or answers(self, rows, *a))
    monkeypatch.setattr(Prober, "behind", lambda self, maps, *a: seen.append(len(maps)) or behind(self, maps, *a))
    for method in EVERY:
        explained(method, images(1), [2], batch_size=3)
    assert max(seen) == 3


@pytest.mark.parametrize("method", EVERY)
def test_the_cost_beside_its_name_is_what_was_counted(method, monkeypatch):
    """Rows of the model; one more is the answer that is explained."""
    monkeypatch.undo()
    # One region is enough: the rows are those of the attribution.
    monkeypatch.setattr(regions, "segments", lambda image: np.ones((1, *image.shape[1:]), bool))
    rows, answers = [], Prober.answers
    monkeypatch.setattr(Prober, "answers", lambda self, some, *a: rows.append(len(some)) or answers(self, some, *a))
    source = model_of(BODY, "float[N,3,16,16] x")
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    Prober(probed(source, Options(method=method)), batch_size=64).run(x, [1])
    assert sum(rows) - 1 == _passes(methods()[method])


@pytest.mark.parametrize("index", [0, 3])
def test_gscorecam_masks_with_the_strongest_channels_alone(index, monkeypatch):
    monkeypatch.setattr(perturbation, "_STRONGEST", 2)
    source, x = model(), images(1)
    source.graph.output.add().name = "b"
    maps = run(source, x=x)["b"][0].astype(np.float64)
    # Behind global average pooling the gradient of a channel is its weight, up to a factor of all.
    chosen = np.argsort(-weight("W", 5, 4)[:, index])[:2]
    cells = np.linspace(0, maps.shape[1] - 1, 8)
    scores = []
    for one in maps[chosen]:
        rows = np.stack([np.interp(cells, np.arange(len(one)), row) for row in one])
        large = np.stack([np.interp(cells, np.arange(len(one)), column) for column in rows.T]).T
        mask = (large - large.min()) / np.ptp(large)
        scores.append(run(model(), x=(x * mask).astype(np.float32))["y"][0, index])
    shares = np.exp(scores) / np.exp(scores).sum()
    found = explained("gscorecam", x, [index])["cam"][0]
    np.testing.assert_allclose(found, np.tensordot(shares, maps[chosen], 1), rtol=1e-4)
    assert not np.allclose(found, explained("scorecam", x, [index])["cam"][0], rtol=1e-2)


def _passes(method):
    """What the words of a method's cost come to, for 5 channels and 49 players."""
    cost = method.cost.partition(";")[0].replace("one", "1").replace("2^9", "512").removeprefix("about ")
    numbers = [int(word) for word in cost.split() if word.isdecimal()]
    if "strongest channels" in cost:
        return 1 + min(numbers[-1], 5)
    if "for each channel" in cost and "the head" not in cost:
        return numbers[0] + 5 * numbers[1]
    if "times the players" in cost:
        return numbers[0] * (49 + numbers[1])
    return numbers[0] * (len(method.takes["baseline"]) if "for each baseline" in cost else 1)


def test_rise_is_the_mean_probability_where_a_place_is_seen(monkeypatch):
    monkeypatch.setattr(perturbation, "_MASKS", 25)
    x = images(1)
    rng = np.random.default_rng(5)
    cells = rng.random((25, 7, 7)) < 0.5
    shifts = rng.integers(0, [2, 2], (25, 2))
    total, seen = np.zeros((8, 8)), np.zeros((8, 8))
    for grid, (top, left) in zip(cells, shifts, strict=True):
        mask = np.empty((8, 8))
        for row in range(8):
            for column in range(8):
                # The middle of a pixel of 16 among 7 cells.
                y, x_ = (np.clip((v + 0.5) * 7 / 16 - 0.5, 0, 6) for v in (row + top, column + left))
                i, j = min(int(y), 5), min(int(x_), 5)
                upper = grid[i, j] * (1 - (x_ - j)) + grid[i, j + 1] * (x_ - j)
                lower = grid[i + 1, j] * (1 - (x_ - j)) + grid[i + 1, j + 1] * (x_ - j)
                mask[row, column] = upper * (1 - (y - i)) + lower * (y - i)
        scores = run(model(), x=(x * mask).astype(np.float32))["y"][0].astype(np.float64)
        total += mask * np.exp(scores[1]) / np.exp(scores).sum()
        seen += mask
    expected = total / seen
    found = explained("rise", x, [1], seed=5, batch_size=4)["cam"][0]
    np.testing.assert_allclose(found, expected - expected.min(), atol=1e-5)


def test_smooth_grad_cam_plus_plus(monkeypatch):
    monkeypatch.setattr(sampling, "_SAMPLES", 6)
    x = images(1)
    source = graph(
        "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) f = Flatten(b) g = Gemm(f, V) h = Relu(g) "
        "y = Gemm(h, W)",
        **SIZES | {"V": (80, 5)},
    )
    exposed = attach(source, layer="b", expose_activation=True).to_proto()
    V, W = weight("V", 80, 5).astype(np.float64), weight("W", 5, 4).astype(np.float64)
    rng = np.random.default_rng(0)
    cotangents = []
    for _ in range(6):
        noisy = x + 0.15 * np.ptp(x) * rng.standard_normal((1, 3, 8, 8))
        flat = run(exposed, x=noisy.astype(np.float32))["b"].reshape(-1)
        cotangents.append((V @ (W[:, 2] * (flat @ V > 0))).reshape(5, 4, 4))
    first, second, third = (np.mean([g**power for g in cotangents], 0) for power in (1, 2, 3))
    maps = run(exposed, x=x)["b"][0]
    expected = np.zeros((4, 4))
    for k in range(5):
        alpha = second[k] / (2 * second[k] + (maps[k] * third[k]).sum() + 1e-8)
        expected += (alpha * np.maximum(first[k], 0)).sum() * maps[k]
    found = explained("smooth-gradcam++", x, [2], source=source, layer="b", batch_size=4)["cam"][0]
    np.testing.assert_allclose(found / expected.max(), expected / expected.max(), atol=1e-5)


def test_a_score_of_zero_has_no_parts():
    source = model_of("c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, zeros)")
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((6, 4), np.float32), "zeros"))
    with pytest.raises(ModelError, match=r"Ablation-CAM gives NaN or infinity for this image"):
        explained("ablationcam", images(1), [2], source=source)


def test_ablation_behind_a_linear_head_is_the_share_of_the_score():
    x = images(1)
    maps = run(attach(model(), expose_activation=True).to_proto(), x=x)["b"]
    part = weight("W", 5, 4)[:, 2] * maps.mean((2, 3))[0]
    expected = np.tensordot(part / part.sum(), maps[0], 1)
    np.testing.assert_allclose(explained("ablationcam", x, [2])["cam"][0], expected, rtol=1e-3, atol=1e-5)


def test_integrated_gradients_add_up_to_the_change_of_the_score():
    x = images(1)
    ends = [run(model(), x=x * s)["y"][0, 1] for s in (1, 0)]
    total = explained("integrated-gradients", x, [1])["attribution"].sum()
    assert total == pytest.approx(ends[0] - ends[1], rel=2e-2)


def test_the_seed_makes_random_numbers_repeatable():
    x = images(1)
    one, same, other = (explained("smoothgrad", x, [1], seed=seed)["cam"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_progress_reaches_its_end():
    seen = []
    explained("scorecam", images(1), [1], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_head_that_asks_the_image_for_its_batch():
    source = graph(
        f"{BODY.split(' f = ', maxsplit=1)[0]} s = Shape(x) n = Gather(s, zero) o = Unsqueeze(n, zeros) "
        "r = Concat<axis=0>(o, five) f = Reshape(p, r) y = Gemm(f, W)",
        **SIZES | {"zero": 0, "zeros": [0], "five": [5]},
    )
    x = images(2)
    found = explained("ablationcam", x, [2, 1], source=source, layer="b")
    np.testing.assert_allclose(found["cam"], explained("ablationcam", x, [2, 1], layer="b")["cam"], rtol=1e-5)


def test_a_head_that_reads_the_image_past_the_layer_is_refused():
    source = graph(
        "c = Conv(x, K) a = Relu(c) m = ReduceMean<keepdims=1>(x) b = Add(a, m) p = GlobalAveragePool(b) "
        "f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )
    with pytest.raises(UnsupportedError, match=r"also reads the input 'x', so it cannot be run again"):
        explained("ablationcam", images(1), [1], source=source, layer="a")


def test_a_network_without_convolutions_is_explained_by_methods_that_look_at_no_layer():
    source = graph("f = Flatten(x) g = Gemm(f, V) h = Relu(g) y = Gemm(h, W)", V=(3 * 8 * 8, 7), W=(7, 4))
    x = images(1)
    explained = attach(source, method="gradient")
    assert explained.metadata.layout == "NCHW"
    gradient = run(explained.to_proto(), x=x, target_class=np.array([2], np.int64))["attribution"]
    V, W = (onnx.numpy_helper.to_array(next(w for w in source.graph.initializer if w.name == name)) for name in "VW")
    expected = (V * (x.reshape(1, -1) @ V > 0)) @ W[:, 2]
    np.testing.assert_allclose(gradient.reshape(-1), expected, rtol=1e-4, atol=1e-6)
    assert probed(source, Options(method="occlusion")).metadata.layout == "NCHW"
    with pytest.raises(TargetError, match="tensor with spatial positions; choose a method that looks at no layer"):
        attach(source)


@pytest.mark.parametrize("name", ["ablationcam", "scorecam"])
def test_a_layer_that_is_an_output_of_the_model_changes_no_map(name):
    """Every exported model has its layer among its outputs."""
    exposed, x = model(outputs="float[N,4] y, float[N,5,4,4] b"), images(1)
    expected = Prober(probed(model(), Options(method=name))).run(x, [2])
    found = Prober(probed(exposed, Options(method=name))).run(x, [2])
    for output in ("cam", "heatmap"):
        np.testing.assert_allclose(found[output], expected[output], rtol=1e-6, atol=1e-7)
    assert np.abs(expected["cam"]).max() > 0
