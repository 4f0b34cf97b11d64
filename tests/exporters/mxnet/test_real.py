"""Trained networks against what MXNet computed on photographs."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam.exporters.mxnet import read_mxnet
from onnx_gradcam.runtime.session import Session

pytestmark = pytest.mark.real

NETWORKS = {
    # name: epoch, outputs, tensors inside, the size that the weights tell
    "mnist": ("0035", {"hybridsequential9_dense1_tanh_fwd"}, {"hybridsequential9_dense1_fwd"}, 28, "1.6.0"),
    "mtcnn_rnet": ("0001", {"conv5_2", "prob1"}, set(), 24, ""),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_gives_what_mxnet_gave(name, real_data):
    epoch, outputs, inside, side, version = NETWORKS[name]
    folder = real_data / "models" / "mxnet"
    product = read_mxnet(folder / f"{name}-symbol.json", folder / f"{name}-{epoch}.params")
    assert tuple(product.model.shape("data"))[2:] == (side, side)
    assert product.version == version
    assert product.preprocessing is None
    product.model.check()
    for tensor in inside:
        producer = next(n for n in product.model.core.graph if n.name == tensor)
        product.model.core.graph.outputs.append(producer.outputs[0])
    stored = np.load(real_data / "refs" / f"mxnet__{name}.npz")
    got = Session(product.model.to_proto().SerializeToString()).run({"data": stored["x"]})
    assert set(got) == outputs | inside
    for tensor, value in got.items():
        want = stored[f"{tensor}_output"]
        assert np.abs(value - want).max() <= 1e-5 * np.abs(want).max()
