"""The input gradient of exported networks, run by ONNX Runtime in float32, against PyTorch's own in float64.

Every run prints its row of the table in docs/gradients.md.
"""

from __future__ import annotations

import numpy as np
import pytest
from autodiff.pytorch_models import NETWORKS, export, gradient, image, network
from support.helpers import quiet_session

from onnx_gradcam.autodiff.check import gradient_model

TOLERANCE = 1e-5
IMAGES = 8
DYNAMO = ("ResNet-18", "ConvNeXt", "ViT", "Swin", "ViT (transformers)", "U-Net", "LSTM")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


@pytest.fixture(scope="module")
def torch():
    """PyTorch, on one thread."""
    package = pytest.importorskip("torch", reason="PyTorch is not installed")
    threads = package.get_num_threads()
    package.set_num_threads(1)
    yield package
    package.set_num_threads(threads)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_a_network_exported_over_torchscript(name, torch, capsys):
    compare(name, capsys, dynamo=False)


@pytest.mark.parametrize("name", DYNAMO)
def test_gradient_of_a_network_exported_by_dynamo(name, torch, capsys):
    pytest.importorskip("onnxscript", reason="the new exporter needs onnxscript, which is not installed")
    compare(name, capsys, dynamo=True)


def compare(name, capsys, *, dynamo):
    """Assert that the gradient of the winning logit agrees, relative to its largest value, batch of two.

    A rectifier or a maximum whose inputs float32 cannot tell apart has another subgradient there than in float64,
    and of a network's million such there is one on many an image; another image has none. A wrong rule is wrong
    on all of them.
    """
    try:
        made = network(name)
    except ImportError as exc:
        pytest.skip(f"{exc.name} is not installed")
    size = NETWORKS[name][1]
    model = export(made, size, dynamo=dynamo)
    x = model.graph.input[0].name
    emitted = gradient_model(model, [x]).to_proto()
    forward, backward = quiet_session(model), quiet_session(emitted)
    differences = []
    for seed in range(IMAGES // 2):
        pixels = image(size, seed)
        (scores,) = forward.run(None, {x: pixels})
        cotangent = np.zeros_like(scores)
        best = scores.reshape(*scores.shape[:2], -1).mean(axis=2).argmax(axis=1)
        cotangent[np.arange(len(best)), best] = 1
        feeds = {x: pixels, "cotangent": cotangent}
        (actual,) = backward.run(None, {i.name: feeds[i.name] for i in backward.get_inputs()})
        expected = gradient(made, pixels, cotangent)
        assert actual.shape == expected.shape
        largest = np.abs(expected).max(axis=(1, 2, 3))
        assert (largest > 1e-6).all(), "nothing to compare"
        differences += (np.abs(actual - expected).max(axis=(1, 2, 3)) / largest).tolist()
        if min(differences) <= TOLERANCE:
            break
    exporter = "dynamo" if dynamo else "TorchScript"
    agree = sum(d <= TOLERANCE for d in differences)
    counts = f"{len(model.graph.node)} | {len(emitted.graph.node)}"
    with capsys.disabled():
        row = f"| {name} | {exporter} | {counts} | {min(differences):.1e} | {agree} of {len(differences)} |"
        print(f"\n{row}", end="")  # noqa: T201 - the table
    assert min(differences) <= TOLERANCE, differences
