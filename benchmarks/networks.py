"""Classifiers with seeded random weights for the benchmarks, built without a download or a framework.

`build` returns ResNet-50, MobileNetV2, SqueezeNet 1.1, VGG16 or ViT-S/16 as ONNX, with batch normalization not folded
and a dynamic batch. Weights are named as in torchvision's state dictionaries, so `torch_network` returns the same
network in PyTorch if torchvision is installed.

Write one of them to a file::

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
TRANSPOSED = ".T"
"""Suffix of the names of weights that torchvision stores transposed."""

Scaled = Callable[[int], int]


class Writer:
    """Appends layers to a graph; tensors are represented by their names, and `channels` holds their widths.

    Args:
        size: height and width of the image.
        seed: seed of the random weights.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"input": 3}
        self.size = size
        self.rng = np.random.default_rng(seed)

    def op(self, kind: str, *inputs: str, channels: int | None = None, **attributes: Any) -> str:
        """Append a node; by default its output has as many channels as its first input."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        """Store a weight under its name in torchvision."""
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, x: str, name: str, width: int, kernel: int, *, stride: int = 1, pad: int = 0, groups: int = 1,
        bias: bool = False,
    ) -> str:  # fmt: skip
        """A convolution with He-initialized weights."""
        shape = (width, self.channels[x] // groups, kernel, kernel)
        spread = np.sqrt(2 / np.prod(shape[1:]))
        inputs = [x, self.weight(f"{name}.weight", spread * self.rng.standard_normal(shape, np.float32))]
        if bias:
            inputs.append(self.weight(f"{name}.bias", 0.05 * self.rng.standard_normal(width)))
        geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
        return self.op("Conv", *inputs, channels=width, **geometry)

    def norm(self, x: str, name: str, gain: float = 1.0) -> str:
        """A batch normalization with nontrivial statistics, as after training."""
        width = self.channels[x]
        draw = self.rng.uniform
        values = {
            "weight": gain * draw(0.5, 1.5, width),
            "bias": draw(-0.2, 0.2, width),
            "running_mean": draw(-0.2, 0.2, width),
            "running_var": draw(0.5, 1.5, width),
        }
        return self.op("BatchNormalization", x, *(self.weight(f"{name}.{k}", v) for k, v in values.items()))

    def scalar(self, name: str, number: float) -> str:
        """A constant number, stored once."""
        return name if any(w.name == name for w in self.weights) else self.weight(name, np.array(number))

    def index(self, number: int) -> str:
        """A constant index, stored once."""
        name = f"index_{number}"
        if all(w.name != name for w in self.weights):
            self.weights.append(numpy_helper.from_array(np.array(number, np.int64), name))
        return name

    def relu6(self, x: str) -> str:
        """Clip to 0..6."""
        return self.op("Clip", x, self.scalar("zero", 0.0), self.scalar("six", 6.0))

    def gelu(self, x: str) -> str:
        """GELU, as written before opset 20."""
        erf = self.op("Erf", self.op("Mul", x, self.scalar("sqrt_half", 0.5**0.5)))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.scalar("one", 1.0))), self.scalar("half", 0.5))

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

    def dense(self, x: str, name: str, width: int) -> str:
        """A dense layer on tokens `[N, T, C]`, with the matrix stored transposed, as exporters do."""
        inputs = self.channels[x]
        matrix = np.sqrt(1 / inputs) * self.rng.standard_normal((inputs, width), np.float32)
        product = self.op("MatMul", x, self.weight(f"{name}weight{TRANSPOSED}", matrix), channels=width)
        return self.op("Add", product, self.weight(f"{name}bias", 0.05 * self.rng.standard_normal(width)))

    def layer_norm(self, x: str, name: str) -> str:
        """A layer normalization over the channels of tokens."""
        width = self.channels[x]
        scale = self.weight(f"{name}.weight", self.rng.uniform(0.5, 1.5, width))
        bias = self.weight(f"{name}.bias", self.rng.uniform(-0.2, 0.2, width))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

    def shape(self, *numbers: int) -> str:
        """A constant vector of sizes or axes."""
        name = "sizes_" + "_".join(map(str, numbers))
        if all(w.name != name for w in self.weights):
            self.weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def model(self, name: str) -> onnx.ModelProto:
        """The whole model, with a dynamic batch; the last layer outputs the logits."""
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
            # A small gain on the last normalization keeps the sum over many blocks from growing.
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
    positions = (w.size // 32) ** 2
    x = w.op("Flatten", x)
    x = w.op("Relu", w.linear(x, "classifier.0", scaled(4096), inputs=w.channels[x] * positions))
    x = w.op("Relu", w.linear(x, "classifier.3", scaled(4096)))
    w.linear(x, "classifier.6", CLASSES)


def _vit_small(w: Writer, scaled: Scaled) -> None:
    heads, head, patch = 6, max(8, scaled(384) // 6), 16
    width, tokens = heads * head, (w.size // patch) ** 2 + 1
    x = w.conv("input", "conv_proj", width, patch, stride=patch, bias=True)
    x = w.op("Transpose", w.op("Reshape", x, w.shape(0, width, tokens - 1)), perm=[0, 2, 1])
    batch = w.op("Shape", "input", start=0, end=1)
    size = w.op("Concat", batch, w.shape(1, width), axis=0)
    token = w.op("Expand", w.weight("class_token", 0.1 * w.rng.standard_normal((1, 1, width))), size, channels=width)
    x = w.op("Concat", token, x, axis=1)
    position = w.weight("encoder.pos_embedding", 0.1 * w.rng.standard_normal((1, tokens, width)))
    x = w.op("Add", x, position)
    for layer in range(12):
        at = f"encoder.layers.encoder_layer_{layer}"
        y = w.dense(w.layer_norm(x, f"{at}.ln_1"), f"{at}.self_attention.in_proj_", 3 * width)
        y = w.op("Transpose", w.op("Reshape", y, w.shape(0, tokens, 3, heads, head)), perm=[2, 0, 3, 1, 4])
        query, key, value = (w.op("Gather", y, w.index(i), axis=0) for i in range(3))
        score = w.op("MatMul", query, w.op("Transpose", key, perm=[0, 1, 3, 2]))
        score = w.op("Softmax", w.op("Mul", score, w.scalar("scale", head**-0.5)), axis=-1)
        y = w.op("Transpose", w.op("MatMul", score, value), perm=[0, 2, 1, 3])
        y = w.op("Reshape", y, w.shape(0, tokens, width), channels=width)
        x = w.op("Add", x, w.dense(y, f"{at}.self_attention.out_proj.", width))
        y = w.gelu(w.dense(w.layer_norm(x, f"{at}.ln_2"), f"{at}.mlp.0.", 4 * width))
        x = w.op("Add", x, w.dense(y, f"{at}.mlp.3.", width))
    x = w.op("Gather", w.layer_norm(x, "encoder.ln"), w.index(0), axis=1)
    w.linear(x, "heads.head", CLASSES)


NETWORKS = {
    "resnet50": _resnet50,
    "mobilenet_v2": _mobilenet_v2,
    "squeezenet1_1": _squeezenet1_1,
    "vgg16": _vgg16,
    "vit_small": _vit_small,
}
"""Name in torchvision -> the function that writes the network."""

TORCH_LAYERS = {
    "resnet50": "layer4.2",
    "mobilenet_v2": "features.18",
    "squeezenet1_1": "classifier.2",
    "vgg16": "features.29",
}
"""Name -> the module whose output PyTorch's tools explain: the layer that `auto` chooses."""


def build(name: str, *, size: int = 224, width: float = 1.0, seed: int = 0) -> onnx.ModelProto:
    """A classifier of 1000 classes with random weights, `float32 [N, 3, size, size]` in, logits `[N, 1000]` out.

    Args:
        name: one of `NETWORKS`.
        size: height and width of the image, a multiple of 32.
        width: factor on every layer's width.
        seed: seed of the weights.
    """
    w = Writer(size, seed)
    NETWORKS[name](w, lambda channels: max(1, round(channels * width)))
    return w.model(name)


def photo_like(batch: int, size: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Seeded noise in the range of a normalized image, `[batch, 3, size, size]`."""
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size), np.float32)


def torch_network(name: str, model: onnx.ModelProto) -> Any:
    """Torchvision's network with the weights of `model`, in evaluation mode.

    Raises:
        ImportError: PyTorch or torchvision is not installed.
    """
    import torch  # noqa: PLC0415 - optional

    models = _torchvision().models
    if name == "vit_small":  # torchvision has no name for its transformer in this size
        size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        network = models.VisionTransformer(size, 16, 12, 6, 384, 4 * 384, num_classes=CLASSES).eval()
    else:
        network = getattr(models, name)(weights=None).eval()
    state = {}
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type == TensorProto.FLOAT:
            values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            turned = tensor.name.endswith(TRANSPOSED)
            state[tensor.name.removesuffix(TRANSPOSED)] = values.T if turned else values
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{name} is another network in torchvision: {[*missing, *unexpected]}")
    return network


def _torchvision() -> Any:
    """Torchvision, even if its compiled operators, which are not needed, do not fit the installed PyTorch."""
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


_kept: list[Any] = []  # the operators of a library are removed when it is garbage-collected


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a classifier with random weights.")
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the width of every layer")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(argv)
    onnx.save(build(chosen.name, size=chosen.size, width=chosen.width, seed=chosen.seed), chosen.path)


if __name__ == "__main__":
    main()
