"""The snippet of docs/compare.md, run: PyTorch's own maps agree with the exported model's."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from onnx_gradcam import Explainer
from onnx_gradcam.evaluation.pairing import NativeMaps, compare_models
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch

pytestmark = pytest.mark.torch

PREPROCESS = {"scale": 1 / 255, "size": [32, 32]}


def test_native_maps_by_the_documented_snippet(repository, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6 * 16 * 16, 4),
    ).eval()
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        noise = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(photos / f"{i}.png"), cv2.resize(noise, (60, 48)))
    monkeypatch.chdir(tmp_path)
    text = (repository / "docs" / "compare.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python yours\n(.*?)```", text, re.DOTALL)
    exec(snippet, {"network": network, "layer": network[2], "photos": photos, "preprocessing": PREPROCESS})  # noqa: S102

    model = finish_export(export_pytorch(network, layer="2", size=32), "2").to_proto()
    explainer = Explainer(model, layer="2", preprocess=PREPROCESS)
    maps = NativeMaps("pytorch_maps.npz")
    results = list(compare_models({"onnx": explainer}, sorted(map(str, photos.iterdir())), natives={"torch": maps}))
    maps.close()
    assert len(results) == 4
    for result in results:
        (agreement,) = result.agreements
        assert agreement.maps.blank == (False, False)
        assert agreement.maps.difference < 1e-4
        assert agreement.maps.pearson > 1 - 1e-6
