"""`explain` on trained models and photographs."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.real


@pytest.fixture
def mobilenet(real_data):
    """The options that explain photographs with MobileNetV2."""
    models = json.loads((real_data / "MANIFEST.json").read_text("utf-8"))["models"]
    entry = next(m for m in models if m["name"] == "mobilenet_v2_imagenet_fp32_w8rounded")
    return {
        "model": real_data / entry["file"],
        "options": ["--labels", real_data / entry["labels"], "--preprocess", json.dumps(entry["preprocessing"])],
        "top3": entry["top3"],
    }


def test_dog_and_cat(call, real_data, mobilenet, here):
    photo = real_data / "photos" / "classic" / "gradcam_both.png"
    targets = ["--target", "bull mastiff", "--target", "tabby"]
    result = call("explain", mobilenet["model"], photo, *mobilenet["options"], *targets, "-o", "x.png", "--npy")
    assert result.exit_code == 0, result.stderr
    assert "weights linear" in result.stdout
    dog, cat = np.load("x_243.npy"), np.load("x_281.npy")
    assert dog.shape == cat.shape == (224, 224)
    # The dog sits in the upper half of the photo, the cat lies in the lower one.
    assert np.unravel_index(dog.argmax(), dog.shape)[0] < 112
    assert np.unravel_index(cat.argmax(), cat.shape)[0] > 130
    sheet = cv2.imread(str(here / "x.png"))
    assert sheet.shape[1] > 3 * sheet.shape[0] * 0.8


def test_best_classes_are_the_known_ones(call, real_data, mobilenet):
    photos = [real_data / name for name in mobilenet["top3"]]
    result = call("explain", mobilenet["model"], *photos, *mobilenet["options"], "--json", "--batch-size", 2)
    images = json.loads(result.stdout)["images"]
    for image, known in zip(images, mobilenet["top3"].values(), strict=True):
        assert [t["index"] for t in image["top"][:3]] == [index for index, *_ in known]
        assert [t["label"] for t in image["top"][:3]] == [label for _, label, _ in known]
        assert image["explained"][0]["index"] == known[0][0]
