"""Path methods against the `saliency` library; see tests/oracles/make_saliency.py."""

from __future__ import annotations

import numpy as np
from support.graphs import run
from support.rectified_network import agree, network, oracle

from onnx_gradcam.editor.methods.baselines import blurred
from onnx_gradcam.editor.methods.integrated import _BLUR
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

ORACLE = oracle("saliency.npz")


def explained(steps=None):
    prober = Prober(probed(network(ORACLE), Options(method="blur-ig", steps=steps)), batch_size=16)
    return prober.run(ORACLE["x"], ORACLE["classes"])["attribution"]


def test_blur_integrated_gradients():
    agree(explained(), ORACLE["attribution/blur-ig"])


def test_the_map_adds_up_to_what_the_blur_takes_from_the_score():
    soft = np.stack([blurred(image, _BLUR) for image in ORACLE["x"]]).astype(np.float32)
    scores = [run(network(ORACLE), x=x)["y"] for x in (ORACLE["x"], soft)]
    lost = (scores[0] - scores[1])[np.arange(2), ORACLE["classes"]]
    np.testing.assert_allclose(explained(3000).sum((1, 2, 3)), lost, rtol=0.05)
