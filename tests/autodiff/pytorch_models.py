"""Small networks of every common architecture in PyTorch, with random weights, and their export to ONNX."""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

__all__ = ["NETWORKS", "export", "input_gradient", "network", "picture"]

Array = np.ndarray[Any, Any]
CLASSES = 10


def _torch() -> Any:
    return importlib.import_module("torch")


def _vision() -> Any:
    """`torchvision.models`, also where its compiled operators do not fit the installed PyTorch: none is needed."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = _torch().library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _vision.library = library  # type: ignore[attr-defined] # its operators live as long as it does
        return importlib.import_module("torchvision.models")


def _transformers() -> Any:
    return importlib.import_module("transformers")


def _resnet18() -> Any:
    return _vision().resnet18(num_classes=CLASSES)


def _resnext() -> Any:
    models = _vision()
    block = models.resnet.Bottleneck
    return models.ResNet(block, [1, 1, 1, 1], num_classes=CLASSES, groups=8, width_per_group=4)


def _vgg11() -> Any:
    models = _vision()
    layers = models.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    return models.VGG(layers, num_classes=CLASSES)


def _densenet() -> Any:
    return _vision().DenseNet(growth_rate=12, block_config=(3, 3, 3), num_init_features=16, num_classes=CLASSES)
