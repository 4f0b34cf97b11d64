"""Functions of several classes' scores: their maps against moving the activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.cam_oracle import numeric_map
from support.graphs import graph, images, run

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import TargetError

HEADS = {
    "pooling and one linear layer": "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
    "two layers": "p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(f, V) h = Tanh(g) y = Gemm(h, W)",
}
CLASS = 1


def source(head: str):
    return graph(f"c = Conv(x, K) a = Relu(c) {head}", K=(6, 3, 3, 3), V=(6, 6), W=(6, 4))


def against_third(y: np.ndarray) -> np.ndarray:
    return y[:, CLASS] - y[:, 3]


def ahead_of_the_best_other(y: np.ndarray) -> np.ndarray:
    return y[:, CLASS] - np.delete(y, CLASS, axis=1).max(1)


def ahead_of_the_similar(y: np.ndarray) -> np.ndarray:
    """Finer-CAM: of the three nearest, weighted by their probabilities; of four classes these are all others."""
    exponentials = np.exp(y - y.max(1, keepdims=True))
    weights = np.delete(exponentials / exponentials.sum(1, keepdims=True), CLASS, axis=1)
    lead = y[:, CLASS : CLASS + 1] - np.delete(y, CLASS, axis=1)
    return (weights * lead).sum(1) / (weights.sum(1) + 1e-9)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("choices", "score"),
    [
        ({"against": 3}, against_third),
        ({"against": "runner-up"}, ahead_of_the_best_other),
        ({"method": "finercam"}, ahead_of_the_similar),
    ],
)
def test_the_map_is_what_moving_the_activations_does(head, choices, score: Callable[[np.ndarray], np.ndarray]):
    x, model = images(2), source(HEADS[head])
    got = run(attach(model, **choices).to_proto(), x=x, target_class=np.array([CLASS]))["cam"]
    expected = numeric_map(model, "a", ["y"], lambda out: score(out["y"].astype(np.float64)), x, local=False, step=1e-2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-3 * np.abs(expected).max())


def test_a_difference_is_the_difference_of_the_maps():
    x, model = images(2), source(HEADS["two layers"])
    plain = attach(model).to_proto()
    each = [run(plain, x=x, target_class=np.array([i]))["cam"] for i in (CLASS, 3)]
    got = run(attach(model, against=3).to_proto(), x=x, target_class=np.array([CLASS]))["cam"]
    np.testing.assert_allclose(got, each[0] - each[1], atol=1e-6)


@pytest.mark.parametrize("other", [4, -1, 99])
def test_a_class_that_is_not_there(other):
    with pytest.raises(TargetError, match=rf"class {other} is out of range.*0 to 3"):
        attach(source(HEADS["two layers"]), against=other)


def test_a_single_logit_has_its_opposite_already():
    model = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        outputs="float[N,1] y",
        K=(6, 3, 3, 3),
        W=(6, 1),
    )
    with pytest.raises(TargetError, match="the other's opposite"):
        attach(model, against=0)
