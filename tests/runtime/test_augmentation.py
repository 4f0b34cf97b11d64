"""Smoothing by test-time augmentation."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import graph, images
from support.rectified_network import network, oracle

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import TargetError
from onnx_gradcam.runtime.explainer import Explainer

ORACLE = oracle("pytorch_grad_cam_runs.npz")
PREPROCESS = {"resize": "stretch"}
TAIL = "a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}
MODELS = {
    "channels-first": (f"c = Conv(x, K) {TAIL}", "float[N,3,8,9] x", (3, 8, 9)),
    "channels-last": (f"t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, K) {TAIL}", "float[N,8,9,3] x", (8, 9, 3)),
    "fixed-batch": (f"c = Conv(x, K) {TAIL}", "float[1,3,8,9] x", (3, 8, 9)),
    "whole-numbers": (f"r = Cast<to=1>(x) s = Mul(r, little) c = Conv(s, K) {TAIL}", "uint8[N,3,8,9] x", (3, 8, 9)),
}


@pytest.mark.parametrize("method", ["gradcam", "scorecam"])
def test_pytorch_grad_cam(method):
    explainer = Explainer(
        network(ORACLE), method=method, layer="c", preset="pytorch-grad-cam", preprocess=PREPROCESS, augment=True
    )
    results = explainer.run(ORACLE["x"], ORACLE["classes"])
    np.testing.assert_allclose(results["heatmap"], ORACLE[f"augmented/{method}"], atol=1e-4)
    np.testing.assert_allclose(results["y"], ORACLE["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["gradcam", "gradient", "scorecam"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_mirrored_image_has_a_mirrored_map(kind, method):
    body, inputs, shape = MODELS[kind]
    outputs = "float[1,4] y" if kind == "fixed-batch" else "float[N,4] y"
    constants = {"little": np.float32(1 / 64)} if kind == "whole-numbers" else {}
    source = graph(body, inputs=inputs, outputs=outputs, **constants, **SIZES)
    explainer = Explainer(source, method=method, preprocess=PREPROCESS, augment=True)
    width = explainer.metadata.layout.index("W")
    x = images(2, *shape)
    if kind == "whole-numbers":
        x = np.clip(128 + 60 * x, 0, 255).astype(np.uint8)
    upright, mirrored = explainer.run(x, [1, 3]), explainer.run(np.flip(x, width), [1, 3])
    for name in ("heatmap", "cam", "attribution"):
        if name in upright:
            axis = width if name == "attribution" else -1
            scale = np.abs(upright[name]).max()
            assert np.abs(upright[name] - np.flip(upright[name], axis)).max() > scale / 10 > 0
            np.testing.assert_allclose(mirrored[name] / scale, np.flip(upright[name], axis) / scale, atol=1e-5)


def test_all_six_explain_the_class_of_the_image_as_it_is():
    body, inputs, shape = MODELS["channels-first"]
    source = graph(body, inputs=inputs, **SIZES)
    explainer = Explainer(source, preprocess=PREPROCESS, augment=True)
    x = images(6, *shape)
    best = explainer.run(x, [-1] * 6)
    given = explainer.run(x, best["heatmap_class"].tolist())
    np.testing.assert_array_equal(best["heatmap"], given["heatmap"])


def test_a_model_that_chooses_other_classes_is_refused():
    body = "c = Conv(x, K) a = Relu(c) f = Flatten(a) y = Gemm(f, V)"
    source = graph(body, K=(6, 3, 3, 3), V=(6 * 36, 4))
    source = attach(source, class_input="none").to_proto().SerializeToString()
    x = images(60)
    plain = Explainer(source, preprocess=PREPROCESS)
    turned = plain.run(np.flip(x, 3), [-1] * 60)["heatmap_class"]
    assert (plain.run(x, [-1] * 60)["heatmap_class"] != turned).any()
    with pytest.raises(TargetError, match="chooses the class itself"):
        Explainer(source, preprocess=PREPROCESS, augment=True).run(x, [-1] * 60)
