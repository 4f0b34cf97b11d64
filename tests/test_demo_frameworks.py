"""The demo classifier in every framework's format: each exported, and one heatmap of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_gradcam import Explainer
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.keras import read_keras
from onnx_gradcam.exporters.mxnet import read_mxnet
from onnx_gradcam.exporters.pytorch import export_pytorch

MODELS = Path(__file__).parents[1] / "models"
IMAGES = sorted(MODELS.glob("*_and_*.png"))


def keras_file():
    return read_keras(MODELS / "shapes.keras")


def mxnet_files():
    return read_mxnet(MODELS / "shapes-symbol.json", MODELS / "shapes-0000.params")


def pytorch_file():
    pytest.importorskip("torch", reason="the .pt2 file takes PyTorch")
    return export_pytorch(MODELS / "shapes.pt2")


FORMATS = {
    "keras": (keras_file, "block7_relu"),
    "mxnet": (mxnet_files, "block7_relu"),
    "pytorch": pytest.param(pytorch_file, "features.9.2", marks=pytest.mark.torch),
}


@pytest.mark.parametrize(("read", "layer"), FORMATS.values(), ids=FORMATS)
def test_one_heatmap_whatever_the_framework(read, layer):
    product = read()
    assert layer in product.layers
    assert product.biases == "apart"
    exported = finish_export(product, layer)
    facts = {"labels": MODELS / "shapes.txt", "preprocess": MODELS / "shapes.json"}
    mine, original = Explainer(exported.to_proto(), **facts), Explainer(MODELS / "shapes.onnx")
    for image in IMAGES:
        found, expected = mine(image, "top2"), original(image, "top2")
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
        for one, other in zip(found.maps, expected.maps, strict=True):
            assert other.heatmap.max() > 0
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-4)
            np.testing.assert_allclose(one.cam, other.cam, atol=1e-4 * np.abs(other.cam).max())
