"""Preprocessing as timm, torchvision and transformers write it down, in this project's words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from onnx_gradcam.editor.origins import from_timm, from_torchvision, from_transformers
from onnx_gradcam.images.preprocessing import Preprocessing, parse_preprocessing

HALF, MEAN, STD = (0.5,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = {"input_size": (3, 224, 224), "mean": MEAN, "std": STD, "crop_pct": 0.95}
VIT = {"size": {"height": 224, "width": 224}, "image_mean": HALF, "image_std": HALF}
RESNET = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
CONVNEXT = {"image_mean": MEAN, "image_std": STD, "crop_pct": 0.875}


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        # timm.data.transforms_factory: the shorter side is scaled to floor(size / crop_pct)
        (from_timm(TIMM), {"size": (224, 224), "resize": "short_crop", "short": 235, "mean": MEAN, "std": STD}),
        (from_timm({"input_size": (3, 256, 256)}), {"size": (256, 256), "resize": "short_crop", "short": 292}),
        (from_timm(TIMM | {"crop_mode": "squash", "crop_pct": 1}), {"size": (224, 224), "mean": MEAN, "std": STD}),
        # torchvision's ResNet50_Weights.IMAGENET1K_V2
        (
            from_torchvision(SimpleNamespace(crop_size=[224], resize_size=[232], mean=MEAN, std=STD)),
            {"size": (224, 224), "resize": "short_crop", "short": 232, "mean": MEAN, "std": STD},
        ),
        (from_transformers(VIT, "vit"), {"size": (224, 224), "mean": HALF, "std": HALF}),
        (
            from_transformers(VIT | {"do_rescale": False}, "vit"),
            {"size": (224, 224), "mean": HALF, "std": HALF, "scale": 1},
        ),
        (from_transformers({"size": 224, "do_normalize": False}, "vit"), {"size": (224, 224)}),
        (from_transformers(RESNET, "resnet"), {"size": (224, 224), "resize": "short_crop", "short": 256}),
        (
            from_transformers(
                {"size": 288, "crop_size": 256, "do_center_crop": True, "do_flip_channel_order": True}, "x"
            ),
            {"size": (256, 256), "resize": "short_crop", "short": 288, "color": "bgr"},
        ),
        # transformers' ConvNextImageProcessor: below 384 the shorter side is size / crop_pct, then a crop
        (
            from_transformers(CONVNEXT | {"size": {"shortest_edge": 224}}, "convnext"),
            {"size": (224, 224), "resize": "short_crop", "short": 256, "mean": MEAN, "std": STD},
        ),
        (
            from_transformers(CONVNEXT | {"size": {"shortest_edge": 384}}, "convnext"),
            {"size": (384, 384), "mean": MEAN, "std": STD},
        ),
    ],
)
def test_described(described, wanted):
    assert parse_preprocessing(described) == Preprocessing(**{"scale": 1 / 255} | wanted)


@pytest.mark.parametrize(
    "described",
    [
        from_timm({}),
        from_timm(TIMM | {"input_size": (3, 224, 192)}),
        from_timm(TIMM | {"crop_mode": "border"}),
        from_timm(TIMM | {"crop_mode": "squash"}),
        from_torchvision(SimpleNamespace()),
        from_transformers({}, "vit"),
        from_transformers(VIT | {"do_resize": False}, "vit"),
        from_transformers({"size": {"longest_edge": 224}}, "vit"),
        from_transformers(VIT | {"do_center_crop": True, "crop_size": 200}, "vit"),
    ],
)
def test_what_cannot_be_said_is_left_out(described):
    assert described is None
