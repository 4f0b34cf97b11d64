"""Limits: of values, which no usual image reaches, and of files, which larger networks do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from onnx_gradcam import export  # noqa: E402
from onnx_gradcam.exporters.parity import run  # noqa: E402
from onnx_gradcam.exporters.pytorch import export_pytorch  # noqa: E402
from onnx_gradcam.runtime.session import Session  # noqa: E402

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


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_weights_too_large_for_one_file_are_written_beside_it(tmp_path, monkeypatch, exporter):
    torch.manual_seed(0)
    network = Limited().eval()
    monkeypatch.setattr("onnx_gradcam.graph.model._LARGEST_FILE", 1000)
    made = export(network, tmp_path / "m.onnx", layer="last", size=(24, 24), exporter=exporter)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    stored = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    assert sum(len(t.raw_data) for t in stored if not t.external_data) < 1000
    assert any(t.external_data for t in stored)
    assert "within" in made.carried.parity
    x = np.random.default_rng(1).standard_normal((2, 3, 24, 24)).astype(np.float32)
    values = Session(tmp_path / "m.onnx").run({made.image: x})
    np.testing.assert_allclose(values["output"], network(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert values["last"].shape == (2, 6, 20, 20)
