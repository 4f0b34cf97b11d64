"""Architectures of torchvision, timm and transformers, small or on small images, and a layer of each that matters."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from autodiff.pytorch_models import NETWORKS, randomised, vision

__all__ = ["ZOO", "Entry", "made", "needs"]

CLASSES = 10


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        make: builds it.
        layer: the module whose output is compared.
        size: height and width of its images.
        exporter: that exports it.
        call: which call of the module.
    """

    make: Callable[[], Any]
    layer: str
    size: int = 64
    exporter: str = "torchscript"
    call: int = -1


def _torchvision(name: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(vision(), name)(num_classes=CLASSES, **arguments)


def _timm(name: str, **arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        vision()
        return importlib.import_module("timm").create_model(name, num_classes=CLASSES, **arguments)

    return make


def _transformers(kind: str, **sizes: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **sizes)
        config._attn_implementation = "eager"
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return make


def _ours(name: str, layer: str, **choices: Any) -> Entry:
    make, size = NETWORKS[name]
    return Entry(make, layer, size, **choices)


DYNAMO = "dynamo"
_TOKENS = {"num_hidden_layers": 2, "num_attention_heads": 4}
_WIDTHS = {"hidden_size": 64, "intermediate_size": 128}

ZOO = {
    # torchvision
    "resnet18": Entry(_torchvision("resnet18"), "layer4", exporter=DYNAMO),
    "resnet50, before the ReLU in place": Entry(_torchvision("resnet50"), "layer4.2.bn3", exporter=DYNAMO),
    "resnet50, TorchScript exporter": Entry(_torchvision("resnet50"), "layer4.2.bn3"),
    "resnet50, second call of three": Entry(_torchvision("resnet50"), "layer4.2.relu", call=1),
    "resnext50": Entry(_torchvision("resnext50_32x4d"), "layer3.5.conv3"),
    "vgg11": _ours("VGG11", "features.18"),
    "squeezenet": Entry(_torchvision("squeezenet1_1"), "features.12.expand3x3", exporter=DYNAMO),
    "densenet121": Entry(_torchvision("densenet121"), "features.norm5"),
    "googlenet": Entry(_torchvision("googlenet", aux_logits=False, init_weights=False), "inception5b", 128),
    "inception_v3": Entry(_torchvision("inception_v3", aux_logits=False, init_weights=False), "Mixed_6e", 128),
    "mobilenet_v2": Entry(_torchvision("mobilenet_v2"), "features.17.conv.2", exporter=DYNAMO),
    "mobilenet_v3": Entry(_torchvision("mobilenet_v3_small"), "features.12.1"),
    "mnasnet": Entry(_torchvision("mnasnet0_5"), "layers.15"),
    "shufflenet_v2": Entry(_torchvision("shufflenet_v2_x0_5"), "conv5"),
    "efficientnet_b0": Entry(_torchvision("efficientnet_b0"), "features.8.1"),
    "regnet_y": Entry(_torchvision("regnet_y_400mf"), "trunk_output.block4"),
    "convnext": _ours("ConvNeXt", "features.5", exporter=DYNAMO),
    "vit": _ours("ViT", "encoder.layers.encoder_layer_2.ln_1", exporter=DYNAMO),
    "swin": _ours("Swin", "features.3.1.norm1"),
    # timm
    "timm resnet26d": Entry(_timm("resnet26d"), "layer4.1.bn3"),
    "timm convnext_atto": Entry(_timm("convnext_atto", ls_init_value=0.5), "stages.3.blocks.1"),
    "timm vit_tiny": Entry(_timm("vit_tiny_patch16_224", img_size=64, depth=3), "blocks.2.norm1", exporter=DYNAMO),
    "timm ghostnet": Entry(_timm("ghostnet_050"), "blocks.9"),
    "timm repvgg": Entry(_timm("repvgg_a0"), "stages.3.0"),
    "timm mobilevit (hybrid)": Entry(_timm("mobilevit_xxs"), "final_conv"),
    "timm levit (hybrid)": Entry(_timm("levit_128s", img_size=64), "stem.conv4"),
    "timm poolformer": Entry(_timm("poolformer_s12"), "stages.3.blocks.1"),
    "timm mixer": Entry(_timm("mixer_s32_224", img_size=64), "blocks.7.norm1"),
    # transformers
    "transformers ResNet": Entry(
        _transformers("ResNet", embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2]),
        "resnet.encoder.stages.1",
        exporter=DYNAMO,
    ),
    "transformers ConvNeXt": Entry(
        _transformers(
            "ConvNext", hidden_sizes=[16, 32, 48], depths=[1, 1, 1], num_stages=3, layer_scale_init_value=0.5
        ),
        "convnext.encoder.stages.2.layers.0",
        exporter=DYNAMO,
    ),
    "transformers ViT": Entry(
        _transformers("ViT", image_size=64, **_TOKENS, **_WIDTHS), "vit.layers.1.layernorm_before", exporter=DYNAMO
    ),
    "transformers Swin": Entry(
        _transformers("Swin", image_size=64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
        "swin.encoder.layers.1.blocks.1.layernorm_before",
        exporter=DYNAMO,
    ),
    "transformers DINOv2": Entry(
        _transformers("Dinov2", image_size=64, patch_size=16, hidden_size=64, **_TOKENS), "dinov2.layernorm"
    ),
    "transformers BEiT": Entry(_transformers("Beit", image_size=64, **_TOKENS, **_WIDTHS), "beit.layers.1.mlp"),
    "transformers CvT (hybrid)": Entry(
        _transformers("Cvt", embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3]),
        "cvt.encoder.stages.1.layers.0",
    ),
}
"""Name -> architecture."""


def needs(*libraries: str) -> None:
    """Skip a test without these; torchvision is looked for and not imported, which may need `vision`."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


def made(name: str) -> Any:
    """The network, its weights and batch-norm statistics random."""
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    network = randomised(ZOO[name].make(), ZOO[name].size)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if key.endswith("bn3.weight"):
                # The last gain of a trained residual block is small; rounding would grow with every block otherwise.
                weight.mul_(0.3)
    return network
