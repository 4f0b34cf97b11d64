"""Quantised models look at what their float originals look at."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_gradcam import Explainer

pytestmark = pytest.mark.real

# float model, quantised model, photographs, least mean correlation of the heatmaps (measured: 0.963, 0.997, 0.996)
PAIRS = [
    ("mobilenet_v2_imagenet_fp32_w8rounded", "mobilenet_v2_imagenet_qdq_int8", "photos/classic/*", 0.94),
    ("st_mobilenetv1_050_224_flowers", "st_mobilenetv1_050_224_flowers_uint8in_qdq", "photos/imagenet_samples/*", 0.98),
    ("mlperf_tiny_resnet8_cifar10", "mlperf_tiny_resnet8_cifar10_int8io_qdq", "photos/cifar10/*.png", 0.98),
]


@pytest.mark.parametrize(("real", "quantised", "photos", "least"), PAIRS, ids=[p[1] for p in PAIRS])
def test_heatmaps_correlate(real_data, real, quantised, photos, least):
    entries = {e["name"]: e for e in json.loads((real_data / "MANIFEST.json").read_text())["models"]}
    first, second = (
        Explainer(real_data / entries[name]["file"], preprocess=entries[name]["preprocessing"], threads=1)
        for name in (real, quantised)
    )
    assert (first.metadata.derivative, second.metadata.derivative) == ("exact", "straight-through")
    correlations = []
    for path in sorted(real_data.glob(photos))[:20]:
        expected = first(path)
        actual = second(path, target=expected.target.index)
        correlations.append(np.corrcoef(expected.heatmap.ravel(), actual.heatmap.ravel())[0, 1])
    assert len(correlations) == 20
    assert np.mean(correlations) > least
