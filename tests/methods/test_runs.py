"""Methods that run the model many times, on models whose answers are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, pictures, run, weight

from onnx_gradcam.attachment import attach
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.methods.registry import methods
from onnx_gradcam.options import Options
from onnx_gradcam.probing import probed
from onnx_gradcam.runtime.prober import Prober

BODY = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}
EVERY = [name for name, method in methods().items() if method.runs_often]


def model(**kwargs):
    return graph(BODY, **SIZES, **kwargs)


def explained(method, x, classes, source=None, **choices):
    runs = {k: choices.pop(k) for k in ("seed", "batch_size", "progress") if k in choices}
    prober = Prober(probed(source or model(), Options(method=method, **choices)), **runs)
    return prober.run(x, classes)


@pytest.mark.parametrize("method", EVERY)
def test_contract(method):
    x = pictures(2)
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


@pytest.mark.parametrize("method", EVERY)
def test_it_cannot_be_written_into_the_model(method):
    with pytest.raises(UnsupportedError, match="runs the model many times"):
        attach(model(), method=method)


@pytest.mark.parametrize("method", EVERY)
def test_models_of_one_batch_size(method):
    x = pictures(1)
    free = explained(method, x, [2])
    fixed = explained(
        method, np.repeat(x, 2, 0), [2, 2], source=model(inputs="float[2,3,8,8] x", outputs="float[2,4] y")
    )
    np.testing.assert_allclose(fixed["heatmap"][0], free["heatmap"][0], atol=1e-4)


def test_ablation_behind_a_linear_head_is_the_share_of_the_score():
    x = pictures(1)
    maps = run(attach(model(), expose_activation=True).to_proto(), x=x)["b"]
    part = weight("W", 5, 4)[:, 2] * maps.mean((2, 3))[0]
    expected = np.tensordot(part / part.sum(), maps[0], 1)
    np.testing.assert_allclose(explained("ablationcam", x, [2])["cam"][0], expected, rtol=1e-3, atol=1e-5)


def test_integrated_gradients_add_up_to_the_change_of_the_score():
    x = pictures(1)
    ends = [run(model(), x=x * s)["y"][0, 1] for s in (1, 0)]
    total = explained("integrated-gradients", x, [1])["attribution"].sum()
    assert total == pytest.approx(ends[0] - ends[1], rel=2e-2)


def test_the_seed_makes_random_numbers_repeatable():
    x = pictures(1)
    one, same, other = (explained("smoothgrad", x, [1], seed=seed)["cam"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_progress_reaches_its_end():
    seen = []
    explained("scorecam", pictures(1), [1], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_head_that_reads_the_picture_past_the_layer_is_refused():
    source = graph(
        "c = Conv(x, K) a = Relu(c) m = ReduceMean<keepdims=1>(x) b = Add(a, m) p = GlobalAveragePool(b) "
        "f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )
    with pytest.raises(UnsupportedError, match=r"reads the input 'x' past it"):
        explained("ablationcam", pictures(1), [1], source=source, layer="a")
