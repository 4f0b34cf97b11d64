"""Trained weights found in public repositories, against the outputs that PyTorch gave for photographs."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch
from onnx_gradcam.runtime.session import Session

TOLERANCE = 1e-5

pytestmark = [
    pytest.mark.torch,
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


@pytest.mark.parametrize(
    ("weights", "factory", "layer", "size"),
    [
        ("pytorch/resnet20-12fca82f.th", "resnet20", "layer3", 32),
        ("pytorch/captum_cifar_torchvision.pt", "lenet", "conv2", 32),
        ("safetensors/jsgrad_mnist_cnn.safetensors", "digits", "layers.9", 28),
    ],
)
def test_outputs_equal_the_references(torch, real_data, weights, factory, layer, size):
    if weights.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    product = export_pytorch(
        f"exporters.pytorch.trained:{factory}",
        weights=real_data / "models" / weights,
        layer=layer,
        size=size,
        trust=True,
        exporter="dynamo" if factory == "resnet20" else "torchscript",
    )
    exported = finish_export(product, layer)
    reference = np.load(real_data / "refs" / f"{weights.replace('/', '__')}.npz")
    found = Session(exported.to_proto().SerializeToString()).run({"input": reference["x"]})[exported.score]
    gap = float(np.abs(found - reference["y"]).max() / np.abs(reference["y"]).max())
    assert gap <= TOLERANCE
