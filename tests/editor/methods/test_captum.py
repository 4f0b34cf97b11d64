"""Methods that look at the image, against captum; see tests/oracles/make_captum.py."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import run
from support.rectified_network import SEED, agree, network, oracle

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods import perturbation
from onnx_gradcam.editor.methods.catalogue import find_method
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

ORACLE = oracle("captum.npz")
METHODS = sorted(name.removeprefix("attribution/") for name in ORACLE if name.startswith("attribution/"))
IN_GRAPH = [name for name in METHODS if not find_method(name).runs_often]
SAMPLED = [name for name in METHODS if find_method(name).family == "sampling"]


@pytest.mark.parametrize("method", IN_GRAPH)
def test_attribution(method):
    layer = "c" if method == "guided-gradcam" else "auto"
    proto = attach(network(ORACLE), method=method, layer=layer).to_proto()
    results = run(proto, x=ORACLE["x"], target_class=ORACLE["classes"])
    np.testing.assert_allclose(results["y"], ORACLE["scores"], rtol=1e-4, atol=1e-4)
    agree(results["attribution"], ORACLE[f"attribution/{method}"])


@pytest.mark.parametrize("method", SAMPLED)
def test_sampled_attribution(method):
    prober = Prober(probed(network(ORACLE), Options(method=method)), seed=SEED, batch_size=16)
    agree(prober.run(ORACLE["x"], ORACLE["classes"])["attribution"], ORACLE[f"attribution/{method}"])


def test_occlusion(monkeypatch):
    monkeypatch.setattr(perturbation, "_WINDOWS", 2)
    prober = Prober(probed(network(ORACLE), Options(method="occlusion")), batch_size=5)
    cam = prober.run(ORACLE["x"], ORACLE["classes"])["cam"]
    expected = ORACLE["attribution/occlusion"]
    np.testing.assert_array_equal(expected, np.repeat(expected[:, :1], 3, 1))
    agree(cam, expected[:, 0])


def test_every_method_of_both_is_compared():
    assert len(METHODS) == 11
    assert (ORACLE["attribution/gradient"] < 0).mean() > 0.1
