"""Methods of many runs, and smoothing, on a real network and photograph."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnx_gradcam.runtime.explainer import Explainer


@pytest.mark.real
@pytest.mark.parametrize(
    "choices",
    [{"method": "ablationcam"}, {"method": "smooth-gradcam++-torch-cam"}, {"augment": True}, {"eigen_smooth": True}],
    ids=str,
)
def test_a_dog_and_a_cat_in_one_photograph(real_data, choices):
    models = json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]
    entry = next(m for m in models if m["name"] == "mobilenet_v2_imagenet_fp32_w8rounded")
    boxes = json.loads((real_data / "annotations" / "classic_boxes.json").read_text("utf-8"))["gradcam_both.png"]
    explainer = Explainer(real_data / entry["file"], preprocess=entry["preprocessing"], threads=1, **choices)
    explanation = explainer(real_data / "photos" / "classic" / "gradcam_both.png", [242, 281])
    for i, box in enumerate(boxes):
        left, top, right, bottom = box["box"]
        heatmap = explanation.heatmap_on_image(i)
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert left <= x < right, (box["label"], x, y)
        assert top <= y < bottom, (box["label"], x, y)
