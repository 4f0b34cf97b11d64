"""Trained networks against what MXNet computed on photographs."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam import attach, export
from onnx_gradcam.errors import TargetError
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


def test_a_network_of_two_streams_and_further_inputs(real_data, tmp_path):
    """SSR-Net scales the image and parts; the value of three products of both streams is its answer."""
    source = real_data.parent / "faults" / "models" / "ssrnet_gender-symbol.json"
    if not source.is_file():
        pytest.skip("the folder of faulty models is not beside the project")
    numbers = {f"stage_num{i}": [[0.0, 1.0, 2.0]] for i in range(3)}
    choices = {"input_values": numbers, "input_shape": (3, 64, 64), "task": "regression", "output": "_mulscalar16"}
    made = export(source, tmp_path / "m.onnx", **choices)
    assert (made.task, made.outputs, made.carried.score_kind) == ("regression", ["_mulscalar16"], "")
    metadata = attach(tmp_path / "m.onnx").metadata
    assert (metadata.task, metadata.scores_output) == ("regression", "_mulscalar16")
    ends = ["convolution8", "convolution9", *(f"activation{i}" for i in (14, 16, 22, 24))]
    assert metadata.layers == ends
    assert set(ends) <= {o.name for o in made.to_proto().graph.output}


def test_the_output_of_a_trained_network_is_carried(real_data, tmp_path):
    source = real_data / "models" / "mxnet" / "mtcnn_rnet-symbol.json"
    with pytest.raises(TargetError, match=r"'conv5_2' \[batch, 4\], 'prob1' \[batch, 2\]\); name the one to explain"):
        export(source)
    export(source, tmp_path / "m.onnx", output="prob1")
    metadata = attach(tmp_path / "m.onnx").metadata
    assert (metadata.scores_output, metadata.score_tensor) == ("prob1", "conv5_1")
