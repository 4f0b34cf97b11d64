"""Weights redrawn: which, in which order, and what the heatmaps do."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.graphs import graph, weight

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.evaluation import randomization
from onnx_gradcam.evaluation.randomization import Layer, plan_stages, randomized, redrawn, weight_layers
from onnx_gradcam.evaluation.scoring import Evaluator
from onnx_gradcam.options import Options

PREPROCESS = {"resize": "stretch", "scale": 1 / 255}


def model():
    return graph(
        "a = Conv(x, K1, k) b = Relu(a) c = Conv(b, K2) d = Relu(c) p = GlobalAveragePool(d) f = Flatten(p) "
        "t = Transpose<perm=[1,0]>(W) l = MatMul(f, t) y = Softmax(l)",
        inputs="float[N,3,16,16] x",
        outputs="float[N,4] y",
        K1=weight("K1", 6, 3, 3, 3) * 3,
        k=weight("k", 6),
        K2=weight("K2", 8, 6, 3, 3) * 3,
        W=weight("W", 4, 8) * 3,
    )


def values(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_layers_from_the_top_with_weights_behind_other_operators():
    layers = weight_layers(model())
    assert [layer.weights for layer in layers] == [("W",), ("K2",), ("K1",)]


def test_quantised_weights_are_found_and_keep_their_type():
    rng = np.random.default_rng(0)
    proto = graph(
        "w = DequantizeLinear(Q, s) a = Conv(x, w) b = Relu(a) p = GlobalAveragePool(b) y = Flatten(p)",
        inputs="float[N,3,8,8] x",
        outputs="float[N,4] y",
        Q=rng.integers(-127, 127, (4, 3, 3, 3), dtype=np.int8),
        s=np.array(0.01, np.float32),
    )
    layers = weight_layers(proto)
    assert [layer.weights for layer in layers] == [("Q",)]
    before, after = values(proto)["Q"], values(redrawn(proto, layers))["Q"]
    assert after.dtype == np.int8
    assert (after != before).mean() > 0.9
    np.testing.assert_array_equal(np.sort(after, None), np.sort(before, None))


def test_only_what_is_asked_for_is_redrawn():
    proto, layers = model(), weight_layers(model())
    before, after = values(proto), values(redrawn(proto, layers[:2], seed=3))
    for name in ("K1", "k"):
        np.testing.assert_array_equal(after[name], before[name])
    for name in ("K2", "W"):
        assert (after[name] != before[name]).mean() > 0.9
        np.testing.assert_array_equal(np.sort(after[name], None), np.sort(before[name], None))
    again = values(redrawn(proto, layers[:2], seed=3))
    other = values(redrawn(proto, layers[:2], seed=4))
    np.testing.assert_array_equal(again["W"], after["W"])
    assert (other["W"] != after["W"]).any()


def test_weights_outside_of_the_file(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, size_threshold=0, location="m.data")
    proto = redrawn(path, weight_layers(path)[:1])
    np.testing.assert_array_equal(values(proto)["K1"], values(model())["K1"])


def test_a_model_without_weights():
    with pytest.raises(UnsupportedError, match="no layer of the model has weights"):
        weight_layers(graph("y = Relu(x)", inputs="float[N,3,8,8] x", outputs="float[N,3,8,8] y"))


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_stages(count):
    layers = [Layer(str(i), (f"w{i}",)) for i in range(count)]
    stages = plan_stages(layers)
    cascading = [s for s in stages if s.kind == "cascading"]
    independent = [s for s in stages if s.kind == "independent"]
    assert cascading[0].layers == layers[:1]
    assert cascading[-1].layers == layers
    assert all(a.layers == b.layers[: len(a.layers)] for a, b in pairwise(cascading))
    assert [layer for s in cascading for layer in s.named] == layers
    assert [layer for s in independent for layer in s.layers] == layers[1:]
    assert len(stages) <= 15


def test_maps_that_do_not_see_the_head_do_not_change_with_it(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    proto = model()
    evaluator = Evaluator(
        model=proto, methods=["gradcam", "activationmap"], options=Options(preprocess=PREPROCESS), threads=1
    )
    subjects = [(str(tmp_path / f"{name}.png"), 1) for name in "ab"]
    stages = plan_stages(weight_layers(proto))
    found = {(r.stage.kind, r.stage.named[0].weights[0]): r for r in randomized(evaluator, stages, subjects)}
    assert {key: r.unchanged for key, r in found.items()} == {
        ("cascading", "W"): ["activationmap"],
        ("cascading", "K2"): [],
        ("cascading", "K1"): [],
        ("independent", "K2"): [],
        ("independent", "K1"): [],
    }
    head = found["cascading", "W"]
    assert head.spearman["activationmap"] == pytest.approx(1)
    assert head.ssim["activationmap"] == pytest.approx(1)
    assert head.spearman["gradcam"] < 0.9
    assert head.failed == {"gradcam": 0, "activationmap": 0}


def test_a_model_that_overflows_when_redrawn_is_counted(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    evaluator = Evaluator(model=model(), methods=["activationmap"], options=Options(preprocess=PREPROCESS), threads=1)
    broken = model()
    for tensor in broken.graph.initializer:
        if tensor.name == "W":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 8), np.nan, np.float32), "W"))
    monkeypatch.setattr(randomization, "redrawn", lambda *_: broken)
    (first, *_) = randomized(evaluator, plan_stages(weight_layers(model())), [(str(tmp_path / "a.png"), 0)])
    assert first.failed == {"activationmap": 1}
    assert first.spearman == {"activationmap": None}
    assert first.unchanged == []
