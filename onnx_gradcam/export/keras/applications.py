"""Which preprocessing a network of `keras.applications` expects; the file itself does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnx_gradcam.preprocessing import PRESETS

__all__ = ["preprocessing_of"]


@dataclass(frozen=True)
class _Network:
    """How a network is recognised beyond its name.

    Attributes:
        mode: the preset that its `preprocess_input` stands for.
        convolutions: how many layers with Conv in their class it has, with its classifier and without.
        within: whether the network begins with layers that prepare the picture.
    """

    mode: str
    convolutions: tuple[int, ...]
    within: bool = False


# Counted in Keras 3.15; the modes are those of each keras/src/applications/<module>.py, `preprocess_input`.
_NETWORKS = {
    "vgg16": _Network("keras-caffe", (13,)),
    "vgg19": _Network("keras-caffe", (16,)),
    "resnet50": _Network("keras-caffe", (53,)),
    "resnet101": _Network("keras-caffe", (104,)),
    "resnet152": _Network("keras-caffe", (155,)),
    "resnet50v2": _Network("keras-tf", (53,)),
    "resnet101v2": _Network("keras-tf", (104,)),
    "resnet152v2": _Network("keras-tf", (155,)),
    "inception_v3": _Network("keras-tf", (94,)),
    "inception_resnet_v2": _Network("keras-tf", (244,)),
    "xception": _Network("keras-tf", (40,)),
    "mobilenet": _Network("keras-tf", (28, 27)),
    "mobilenetv2": _Network("keras-tf", (52,)),
    "nasnet_mobile": _Network("keras-tf", (196,)),
    "nasnet_large": _Network("keras-tf", (268, 263)),
    "densenet121": _Network("keras-torch", (120,)),
    "densenet169": _Network("keras-torch", (168,)),
    "densenet201": _Network("keras-torch", (200,)),
    "mobilenetv3small": _Network("none", (54, 52), within=True),
    "mobilenetv3large": _Network("none", (64, 62), within=True),
    **{
        f"efficientnetb{i}": _Network("none", (count,), within=True)
        for i, count in enumerate((81, 115, 115, 130, 160, 194, 224, 273))
    },
    **{
        f"efficientnetv2-{size}": _Network("none", (count,), within=True)
        for size, count in zip(("b0", "b1", "b2", "b3", "s", "m", "l"), (91, 111, 116, 136, 170, 245, 339), strict=True)
    },
    "convnext_tiny": _Network("none", (18,), within=True),
    **{f"convnext_{size}": _Network("none", (36,), within=True) for size in ("small", "base", "large", "xlarge")},
}


def preprocessing_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The preprocessing of a network of `keras.applications`, where name and architecture agree; else `None`.

    A model that is merely called so, or whose first layers are not the network's, gets none.
    """
    inner = config.get("config")
    if config.get("class_name") not in {"Functional", "Model"} or not isinstance(inner, Mapping):
        return None
    # The sizes behind the names of MobileNets: mobilenet_1.00_224.
    name = re.sub(r"_\d\.\d+_(\d+|None)$", "", str(inner.get("name"))).lower()
    network = _NETWORKS.get(name)
    layers = [layer for layer in inner.get("layers", ()) if isinstance(layer, Mapping)]
    classes = [str(layer.get("class_name")) for layer in layers]
    if network is None or sum("Conv" in kind for kind in classes) not in network.convolutions:
        return None
    within = bool({"Rescaling", "Normalization"} & set(classes[1:3]))
    shape = layers[0]["config"].get("batch_shape") or layers[0]["config"].get("batch_input_shape")
    if classes[0] != "InputLayer" or network.within != within or not isinstance(shape, list) or shape[3:] != [3]:
        return None
    _, height, width, _ = shape
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    described: dict[str, Any] = json.loads(replace(PRESETS[network.mode], layout="NCHW", size=size).to_json())
    return described
