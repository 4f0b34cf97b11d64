"""Methods that run the model many times, and smoothing, against torch-cam, tf-keras-vis and pytorch-grad-cam.

See make_torch_cam.py, make_tf_keras_vis.py and make_pytorch_grad_cam_runs.py in tests/oracles.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import run
from support.rectified_network import SEED, agree, network, oracle

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods.catalogue import find_method
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

TORCH_CAM = oracle("torch_cam.npz")
TF_KERAS_VIS = oracle("tf_keras_vis.npz")
RUNS = oracle("pytorch_grad_cam_runs.npz")


def names(facts, kind):
    return sorted(name.removeprefix(kind) for name in facts if name.startswith(kind))


def explained(facts, method, layer="c", preset="default", **choices):
    options = Options(method=method, layer=layer, preset=preset, **choices)
    if find_method(method).runs_often:
        return Prober(probed(network(facts), options), seed=SEED).run(facts["x"], facts["classes"])
    return run(attach(network(facts), options).to_proto(), x=facts["x"], target_class=facts["classes"])


@pytest.mark.parametrize("facts", [TORCH_CAM, TF_KERAS_VIS], ids=["torch-cam", "tf-keras-vis"])
def test_raw_maps(facts):
    for method in names(facts, "cam/"):
        results = explained(facts, method)
        np.testing.assert_allclose(results["y"], facts["scores"], rtol=1e-4, atol=1e-4)
        agree(results["cam"], facts[f"cam/{method}"])


@pytest.mark.parametrize("method", names(RUNS, "cam/"))
def test_pytorch_grad_cam(method):
    results = explained(RUNS, method, "d" if method == "ablationcam" else "c", "pytorch-grad-cam")
    agree(results["cam"], RUNS[f"cam/{method}"])
    np.testing.assert_allclose(results["heatmap"], RUNS[f"heatmap/{method}"], atol=1e-4)


@pytest.mark.parametrize("method", names(RUNS, "eigen/"))
def test_eigen_smoothing(method):
    expected = RUNS[f"eigen/{method}"]
    cam = explained(RUNS, method, "d" if method == "ablationcam" else "c", eigen_smooth=True)["cam"]
    plain = explained(RUNS, method, "d" if method == "ablationcam" else "c")["cam"]
    # That library leaves the sign of a component to chance.
    agree(cam * np.sign((cam * expected).sum((1, 2), keepdims=True)), expected)
    assert (np.abs(cam).max((1, 2)) == cam.max((1, 2))).all()
    assert not np.allclose(cam, plain, rtol=1e-2)


def test_an_explained_model_says_that_it_is_smoothed():
    explained_model = attach(network(RUNS), eigen_smooth=True)
    props = {p.key: p.value for p in explained_model.to_proto().metadata_props}
    assert props["onnx_gradcam.eigen_smooth"] == "true"
    assert Metadata.from_props(props) == explained_model.metadata
