"""Networks of every common architecture in PyTorch, with random weights, their export, and PyTorch's own gradient."""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

__all__ = ["NETWORKS", "export", "gradient", "image", "network", "randomised", "vision"]

Array = np.ndarray[Any, Any]
CLASSES = 10
_kept: list[Any] = []  # a library's operators go when it is collected


def _torch() -> Any:
    return importlib.import_module("torch")


def vision() -> Any:
    """`torchvision.models`, also where its compiled operators do not fit the installed PyTorch: none is needed."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _kept.append(library := _torch().library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision.models")


def _published(name: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(vision(), name)(num_classes=CLASSES, **arguments)


def _vgg() -> Any:
    """VGG11 with batch normalisation, a quarter as wide, for images of 64."""
    models, nn = vision(), _torch().nn
    widths = [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    made = models.VGG(models.vgg.make_layers(widths, batch_norm=True), num_classes=CLASSES, init_weights=False)
    made.avgpool = nn.Identity()
    made.classifier[0] = nn.Linear(128 * 2 * 2, 4096)
    return made


def _convnext() -> Any:
    models = vision()
    block = models.convnext.CNBlockConfig
    return models.ConvNeXt([block(32, 64, 2), block(64, 96, 2), block(96, None, 2)], num_classes=CLASSES)


def _vit() -> Any:
    size = {"image_size": 64, "patch_size": 16, "num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    return vision().VisionTransformer(**size, num_classes=CLASSES)


def _swin() -> Any:
    models = vision()
    size = {"patch_size": [4, 4], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4]}
    return models.SwinTransformer(**size, num_classes=CLASSES)


def _hugging_face_vit() -> Any:
    transformers = importlib.import_module("transformers")
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.ViTConfig(image_size=64, patch_size=16, num_labels=CLASSES, **size)
    return _logits_only(transformers.ViTForImageClassification(config))


def _hugging_face_swin() -> Any:
    transformers = importlib.import_module("transformers")
    size = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    config = transformers.SwinConfig(image_size=64, num_labels=CLASSES, **size)
    return _logits_only(transformers.SwinForImageClassification(config))


def _logits_only(model: Any) -> Any:
    class Logits(_torch().nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(pixel_values=x).logits

    return Logits()


def _unet() -> Any:
    """An encoder and a decoder with skip connections: transposed convolution, resizing, in-place rectifiers."""
    torch = _torch()
    nn = torch.nn

    def double(inputs: int, outputs: int) -> Any:
        layers: list[Any] = []
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([double(3, 16), double(16, 32), double(32, 64)])
            self.pool = nn.MaxPool2d(2)
            self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
            self.resize = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(32, 16, 1))
            self.decode = nn.ModuleList([double(64, 32), double(32, 16)])
            self.head = nn.Conv2d(16, CLASSES, 1)

        def forward(self, x: Any) -> Any:
            fine = self.down[0](x)
            middle = self.down[1](self.pool(fine))
            coarse = self.down[2](self.pool(middle))
            middle = self.decode[0](torch.cat([self.up(coarse), middle], dim=1))
            return self.head(self.decode[1](torch.cat([self.resize(middle), fine], dim=1)))

    return UNet()


def _recurrent(kind: str) -> Callable[[], Any]:
    """A classifier that reads the rows of an image in both directions."""

    def make() -> Any:
        nn = _torch().nn

        class Rows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cells = getattr(nn, kind)(3 * 32, 24, num_layers=2, batch_first=True, bidirectional=True)
                self.head = nn.Linear(48, CLASSES)

            def forward(self, x: Any) -> Any:
                rows, _ = self.cells(x.permute(0, 2, 1, 3).flatten(2))
                return self.head(rows[:, -1])

        return Rows()

    return make


NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "ResNet-18": (_published("resnet18"), 64),
    "ResNeXt-50": (_published("resnext50_32x4d"), 64),
    "VGG11": (_vgg, 64),
    "DenseNet-121": (_published("densenet121"), 64),
    "InceptionV3": (_published("inception_v3", aux_logits=False, init_weights=False), 96),
    "MobileNetV2": (_published("mobilenet_v2"), 64),
    "MobileNetV3-small": (_published("mobilenet_v3_small"), 64),
    "EfficientNet-B0": (_published("efficientnet_b0"), 64),
    "ShuffleNetV2": (_published("shufflenet_v2_x0_5"), 64),
    "RegNetY-400MF": (_published("regnet_y_400mf"), 64),
    "ConvNeXt": (_convnext, 64),
    "ViT": (_vit, 64),
    "Swin": (_swin, 64),
    "ViT (transformers)": (_hugging_face_vit, 64),
    "Swin (transformers)": (_hugging_face_swin, 64),
    "U-Net": (_unet, 32),
    "LSTM": (_recurrent("LSTM"), 32),
    "GRU": (_recurrent("GRU"), 32),
}
"""Name -> how it is made, and the height and width of its images."""


def image(size: int, seed: int) -> Array:
    """A batch of two images of noise."""
    return np.random.default_rng(seed).standard_normal((2, 3, size, size), np.float32)


def network(name: str) -> Any:
    """A network in evaluation mode, its weights and its batch-norm statistics random, none of them trivial."""
    _torch().manual_seed(0)
    make, size = NETWORKS[name]
    return randomised(make(), size)


def randomised(made: Any, size: int) -> Any:
    """The network in evaluation mode, its weights and its batch-norm statistics random, none of them trivial."""
    torch = _torch()
    norms = [m for m in made.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for key, weight in made.named_parameters():
            if weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight)  # squeeze and excitation saturates with some of the presets
            elif key.endswith("layer_scale"):  # one millionth, when untrained
                weight.uniform_(0.2, 1)
            elif not weight.any():
                weight.normal_(0, 0.1)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
            norm.momentum = 1.0  # the statistics are those of the one batch below
        if norms:
            made.train()(torch.from_numpy(np.concatenate([image(size, seed) for seed in range(90, 98)])))
        for norm in norms:
            # A channel that is all but constant would be blown up beyond what a trained network does.
            norm.running_var.clamp_(min=norm.running_var.mean().item())
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.9, 1.3))
            norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
    return made.eval()


def export(made: Any, size: int, *, dynamo: bool) -> onnx.ModelProto:
    """The network as ONNX, its batch free, by the new exporter or by the one over TorchScript."""
    torch = _torch()
    x = torch.from_numpy(image(size, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        if dynamo:
            batch = ({0: torch.export.Dim("batch")},)
            program = torch.onnx.export(made, (x,), dynamo=True, dynamic_shapes=batch, verbose=False)
            return program.model_proto
        file = io.BytesIO()
        axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
        names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": axes}
        torch.onnx.export(made, (x,), file, dynamo=False, opset_version=18, **names)
    return onnx.load_model_from_string(file.getvalue())


def gradient(made: Any, x: Array, cotangent: Array) -> Array:
    """PyTorch's gradient by the image, in float64."""
    torch = _torch()
    wide = torch.from_numpy(x).double().requires_grad_()
    y = made.double()(wide)
    (g,) = torch.autograd.grad(y, wide, torch.from_numpy(cotangent).double())
    made.float()
    return np.asarray(g.numpy())
