"""The methods against what pytorch-grad-cam makes of the same network; see tests/oracles/make_pytorch_grad_cam.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.graphs import graph, run

from onnx_gradcam.editor.attachment import attach

ORACLE = dict(np.load(Path(__file__).parents[2] / "oracles" / "pytorch_grad_cam.npz"))
METHODS = sorted(name.removeprefix("cam/") for name in ORACLE if name.startswith("cam/"))
ANY_SIGN = {"eigencam", "eigengradcam"}
"""Projections whose sign that library leaves to NumPy; `tests/editor/test_preset_methods.py` has those with it."""


def network():
    weights = {name.removeprefix("weight/"): value for name, value in ORACLE.items() if name.startswith("weight/")}
    return graph(
        "a = Conv<strides=[2,2]>(x, K, k) b = Relu(a) c = Conv(b, L, l) d = Relu(c) e = Flatten(d) "
        "f = Gemm<transB=1>(e, H, h) g = Sigmoid(f) i = Mul(f, g) y = Gemm<transB=1>(i, W, w)",
        inputs="float[N,3,15,15] x",
        outputs="float[N,5] y",
        K=weights["first.weight"],
        k=weights["first.bias"],
        L=weights["second.weight"],
        l=weights["second.bias"],
        H=weights["hidden.weight"],
        h=weights["hidden.bias"],
        W=weights["last.weight"],
        w=weights["last.bias"],
    )


def explained(method: str, layer="c", classes=None):
    preset = "default" if method in ANY_SIGN else "pytorch-grad-cam"
    proto = attach(network(), layer=layer, method=method, preset=preset).to_proto()
    classes = ORACLE["classes"] if classes is None else classes
    results = run(proto, x=ORACLE["x"], target_class=np.asarray(classes, np.int64))
    np.testing.assert_allclose(results["y"], ORACLE["scores"], rtol=1e-4, atol=1e-5)
    return results


@pytest.mark.parametrize("method", METHODS)
def test_raw_map(method):
    expected = ORACLE[f"cam/{method}"]
    cam = explained(method)["cam"]
    scale = np.abs(expected).max((1, 2), keepdims=True)
    if method in ANY_SIGN:
        signs = np.sign(np.sum(cam * expected, (1, 2), keepdims=True))
        cam = cam * signs
    np.testing.assert_allclose(cam / scale, expected / scale, atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ANY_SIGN])
def test_heatmap(method):
    expected = ORACLE[f"heatmap/{method}"]
    assert 0.02 < expected.mean() < 0.9
    np.testing.assert_allclose(explained(method)["heatmap"], expected, atol=1e-4)


@pytest.mark.parametrize("method", ["gradcam", "refinecam"])
def test_several_layers(method):
    expected = ORACLE[f"heatmap/{method}/both"]
    np.testing.assert_allclose(explained(method, ["a", "c"])["heatmap"], expected, atol=1e-4)


def test_full_grad():
    np.testing.assert_allclose(explained("fullgrad")["heatmap"], ORACLE["heatmap/fullgrad"], atol=1e-4)


def test_finer_cam_of_the_best_class():
    np.testing.assert_allclose(explained("finercam", classes=[-1])["heatmap"], ORACLE["heatmap/finercam"], atol=1e-4)


def test_the_maps_are_of_mixed_sign():
    assert (ORACLE["cam/gradcam"] < 0).mean() > 0.1
    assert (ORACLE["cam/gradcam"] > 0).mean() > 0.1
