"""Classifiers with seeded random weights: what a speed measurement needs, without a download and without a framework.

`build` writes ResNet-50, MobileNetV2, SqueezeNet 1.1 and VGG16 as ONNX with batch normalisation kept and a dynamic
batch. Weights carry the names of torchvision's state dictionaries, so `torch_network` gives the very same network in
PyTorch where torchvision is installed.

Run by hand, it writes one of them to a file::

    python benchmarks/networks.py resnet50 resnet50.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NETWORKS", "build", "photo_like", "torch_network"]

OPSET = 18
IR_VERSION = 10
CLASSES = 1000

Scaled = Callable[[int], int]


class Writer:
    """Appends layers to a graph; a tensor is its name, and `channels` knows its width.

    Args:
        size: height and width of the picture.
        seed: of the random weights.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"input": 3}
        self.size = size
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, channels: int | None = None, **attributes: Any) -> str:
        """Append a node; its output has as many channels as its first input unless said otherwise."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Store a weight under torchvision's name for it."""
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, x: str, name: str, width: int, kernel: int, *, stride: int = 1, pad: int = 0, groups: int = 1,
        bias: bool = False,
    ) -> str:  # fmt: skip
        """A convolution with He-initialised weights."""
        shape = (width, self.channels[x] // groups, kernel, kernel)
        spread = np.sqrt(2 / np.prod(shape[1:]))
        inputs = [x, self.weight(f"{name}.weight", spread * self.rng.standard_normal(shape, np.float32))]
        if bias:
            inputs.append(self.weight(f"{name}.bias", 0.05 * self.rng.standard_normal(width)))
        geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
        return self.op("Conv", *inputs, channels=width, **geometry)

    def norm(self, x: str, name: str, gain: float = 1.0) -> str:
        """A batch normalisation with statistics as training leaves them: none of them trivial."""
        width = self.channels[x]
        draw = self.rng.uniform
        values = {
            "weight": gain * draw(0.5, 1.5, width),
            "bias": draw(-0.2, 0.2, width),
            "running_mean": draw(-0.2, 0.2, width),
            "running_var": draw(0.5, 1.5, width),
        }
        return self.op("BatchNormalization", x, *(self.weight(f"{name}.{k}", v) for k, v in values.items()))

    def relu6(self, x: str) -> str:
        """Clip to 0..6."""
        for name, bound in (("zero", 0.0), ("six", 6.0)):
            if all(w.name != name for w in self.weights):
                self.weight(name, np.array(bound))
        return self.op("Clip", x, "zero", "six")

    def max_pool(self, x: str, kernel: int, stride: int, *, pad: int = 0, ceil_mode: int = 0) -> str:
        """A max pooling."""
        return self.op(
            "MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, ceil_mode=ceil_mode
        )

    def linear(self, x: str, name: str, width: int, *, inputs: int | None = None) -> str:
        """A dense layer."""
        inputs = inputs or self.channels[x]
        matrix = np.sqrt(2 / inputs) * self.rng.standard_normal((width, inputs), np.float32)
        bias = 0.05 * self.rng.standard_normal(width)
        weights = self.weight(f"{name}.weight", matrix), self.weight(f"{name}.bias", bias)
        return self.op("Gemm", x, *weights, channels=width, transB=1)

    def model(self, name: str) -> onnx.ModelProto:
        """The whole model, its batch dynamic; the layer that was appended last gives the logits."""
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, self.size, self.size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _resnet50(w: Writer, scaled: Scaled) -> None:
    x = w.op("Relu", w.norm(w.conv("input", "conv1", scaled(64), 7, stride=2, pad=3), "bn1"))
    x = w.max_pool(x, 3, 2, pad=1)
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = w.op("Relu", w.norm(w.conv(x, f"{at}.conv1", scaled(width), 1), f"{at}.bn1"))
            y = w.op("Relu", w.norm(w.conv(y, f"{at}.conv2", scaled(width), 3, stride=stride, pad=1), f"{at}.bn2"))
            # A small gain on the last normalisation keeps the sum over many blocks from growing.
            y = w.norm(w.conv(y, f"{at}.conv3", scaled(4 * width), 1), f"{at}.bn3", gain=0.3)
            if block == 0:
                shortcut = w.conv(x, f"{at}.downsample.0", scaled(4 * width), 1, stride=stride)
                x = w.norm(shortcut, f"{at}.downsample.1")
            x = w.op("Relu", w.op("Add", y, x))
    w.linear(w.op("Flatten", w.op("GlobalAveragePool", x)), "fc", CLASSES)


def _mobilenet_v2(w: Writer, scaled: Scaled) -> None:
    x = w.relu6(w.norm(w.conv("input", "features.0.0", scaled(32), 3, stride=2, pad=1), "features.0.1"))
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    index = 1
    for expand, width, blocks, first_stride in stages:
        for block in range(blocks):
            stride, hidden = first_stride if block == 0 else 1, expand * w.channels[x]
            at, part, y = f"features.{index}.conv", 0, x
            if expand > 1:
                y = w.relu6(w.norm(w.conv(y, f"{at}.0.0", hidden, 1), f"{at}.0.1"))
                part = 1
            y = w.conv(y, f"{at}.{part}.0", hidden, 3, stride=stride, pad=1, groups=hidden)
            y = w.relu6(w.norm(y, f"{at}.{part}.1"))
            y = w.norm(w.conv(y, f"{at}.{part + 1}", scaled(width), 1), f"{at}.{part + 2}")
            x = w.op("Add", x, y) if stride == 1 and w.channels[x] == w.channels[y] else y
            index += 1
    x = w.relu6(w.norm(w.conv(x, f"features.{index}.0", scaled(1280), 1), f"features.{index}.1"))
    w.linear(w.op("Flatten", w.op("GlobalAveragePool", x)), "classifier.1", CLASSES)


def _squeezenet1_1(w: Writer, scaled: Scaled) -> None:
    x = w.op("Relu", w.conv("input", "features.0", scaled(64), 3, stride=2, bias=True))
    x = w.max_pool(x, 3, 2, ceil_mode=1)
    for index, squeeze, expand, pools in (
        (3, 16, 64, False), (4, 16, 64, True), (6, 32, 128, False), (7, 32, 128, True),
        (9, 48, 192, False), (10, 48, 192, False), (11, 64, 256, False), (12, 64, 256, False),
    ):  # fmt: skip
        at = f"features.{index}"
        s = w.op("Relu", w.conv(x, f"{at}.squeeze", scaled(squeeze), 1, bias=True))
        one = w.op("Relu", w.conv(s, f"{at}.expand1x1", scaled(expand), 1, bias=True))
        three = w.op("Relu", w.conv(s, f"{at}.expand3x3", scaled(expand), 3, pad=1, bias=True))
        x = w.op("Concat", one, three, axis=1, channels=2 * scaled(expand))
        x = w.max_pool(x, 3, 2, ceil_mode=1) if pools else x
    x = w.op("Relu", w.conv(x, "classifier.1", CLASSES, 1, bias=True))
    w.op("Flatten", w.op("GlobalAveragePool", x))


def _vgg16(w: Writer, scaled: Scaled) -> None:
    x, index = "input", 0
    for width, blocks in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(blocks):
            x = w.op("Relu", w.conv(x, f"features.{index}", scaled(width), 3, pad=1, bias=True))
            index += 2
        x = w.max_pool(x, 2, 2)
        index += 1
    places = (w.size // 32) ** 2
    x = w.op("Flatten", x)
    x = w.op("Relu", w.linear(x, "classifier.0", scaled(4096), inputs=w.channels[x] * places))
    x = w.op("Relu", w.linear(x, "classifier.3", scaled(4096)))
    w.linear(x, "classifier.6", CLASSES)


NETWORKS = {
    "resnet50": _resnet50,
    "mobilenet_v2": _mobilenet_v2,
    "squeezenet1_1": _squeezenet1_1,
    "vgg16": _vgg16,
}
"""Name -> the function that writes the network; the names are torchvision's."""

TORCH_LAYERS = {
    "resnet50": "layer4.2",
    "mobilenet_v2": "features.18",
    "squeezenet1_1": "classifier.2",
    "vgg16": "features.29",
}
"""Name -> the module behind which PyTorch's tools are to look: the tensor that `auto` chooses."""


def build(name: str, *, size: int = 224, width: float = 1.0, seed: int = 0) -> onnx.ModelProto:
    """A classifier of 1000 classes with random weights, `float32 [N, 3, size, size]` in, logits `[N, 1000]` out.

    Args:
        name: one of `NETWORKS`.
        size: height and width of the picture, a multiple of 32.
        width: factor on every layer's width.
        seed: of the weights.
    """
    w = Writer(size, seed)
    NETWORKS[name](w, lambda channels: max(1, round(channels * width)))
    return w.model(name)


def photo_like(batch: int, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Seeded noise in the range of a normalised photograph, `[batch, 3, size, size]`."""
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size), np.float32)


def torch_network(name: str, model: onnx.ModelProto) -> Any:
    """Torchvision's network with the weights of `model`, in evaluation mode.

    Raises:
        ImportError: PyTorch or torchvision is not installed.
    """
    import torch  # noqa: PLC0415 - optional

    network = getattr(_torchvision().models, name)(weights=None).eval()
    state = {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in model.graph.initializer if t.dims}
    lacking, unknown = network.load_state_dict(state, strict=False)
    left = [k for k in lacking if not k.endswith("num_batches_tracked")]
    if left or unknown:
        raise ValueError(f"{name} is another network in torchvision: {[*left, *unknown]}")
    return network


def _torchvision() -> Any:
    """torchvision, also where its compiled operators do not fit the installed PyTorch (none of them is needed)."""
    import torch  # noqa: PLC0415

    try:
        import torchvision  # noqa: PLC0415
    except RuntimeError:
        for loaded in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        import torchvision  # noqa: PLC0415
    return torchvision


_kept: list[Any] = []  # a library's operators go when it is collected


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a classifier with random weights.")
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=224, help="height and width of the picture")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the width of every layer")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(argv)
    onnx.save(build(chosen.name, size=chosen.size, width=chosen.width, seed=chosen.seed), chosen.path)


if __name__ == "__main__":
    main()
