"""Layers whose limits no usual image reaches are told from the layers before them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from onnx_gradcam.exporters.parity import run  # noqa: E402
from onnx_gradcam.exporters.pytorch import export_pytorch  # noqa: E402

pytestmark = pytest.mark.torch


class Limited(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.relu = torch.nn.ReLU()
        self.clamp = torch.nn.Hardtanh(-50.0, 20.0)
        self.last = torch.nn.Conv2d(8, 6, 3)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.last(self.clamp(self.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_limit_that_is_not_reached_is_no_reason_to_take_one_layer_for_another(exporter):
    torch.manual_seed(0)
    network = Limited().eval()
    product = export_pytorch(network, size=(24, 24), exporter=exporter)
    x = 100 * np.random.default_rng(1).standard_normal((1, 3, 24, 24)).astype(np.float32)
    values = run(product.model, x, [layer.tensor for layer in product.layers.values()])
    maps = network.relu(network.conv(torch.from_numpy(x)))
    wanted = {"relu": maps, "clamp": network.clamp(maps)}
    assert wanted["relu"].max() > 50
    named = wanted.keys() & product.layers.keys()
    assert named
    for name in named:
        found = values[product.layers[name].tensor]
        np.testing.assert_allclose(found, wanted[name].detach().numpy(), rtol=1e-3, atol=1e-3)
