"""Stand-ins for the models of `docs/examples`, built from the demo classifier's weights without a framework.

VGG16 has the original's layers, names and order, and far fewer channels: seven of its thirteen convolutions are the
demo's, the others are the identity. ReLU keeps their nonnegative inputs, so this is exact.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import onnx
from onnx import helper

MODELS = Path(__file__).parents[2] / "models"
CIRCLE, STAR = 0, 4
SIDE = 192
MEAN = np.array([123.68, 116.779, 103.939])  # of keras.applications.vgg16, red first


class Demo:
    """The demo classifier in Keras.

    Attributes:
        config: configuration of the model.
        convolutions: kernels `[3, 3, C, K]` and biases `[K]`, with batch normalization folded in.
        head: weights `[64, 6]` and biases `[6]` of the linear layer.
    """

    def __init__(self) -> None:
        with zipfile.ZipFile(MODELS / "shapes.keras") as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.config = json.loads(self.members["config.json"])
        with h5py.File(io.BytesIO(self.members["model.weights.h5"])) as stored:
            self.convolutions = [self._folded(stored, f"_{i}" if i else "") for i in range(7)]
            self.head = [np.asarray(stored[f"layers/dense/vars/{i}"]) for i in (0, 1)]

    @staticmethod
    def _folded(stored, end):
        gamma, beta, mean, variance = (
            np.asarray(stored[f"layers/batch_normalization{end}/vars/{i}"]) for i in range(4)
        )
        factor = gamma / np.sqrt(variance + 1e-5)
        return np.asarray(stored[f"layers/conv2d{end}/vars/0"]) * factor, beta - mean * factor

    def layer(self, kind):
        """A copy of the configuration of its first layer of a kind."""
        return copy.deepcopy(next(e for e in self.config["config"]["layers"] if e["class_name"] == kind))


def dogs_and_cats(path: Path) -> None:
    """One sigmoid: a circle stands for the cat, class 0, and a star for the dog, class 1."""
    demo = Demo()
    demo.config["config"]["name"] = "dogs_and_cats"
    dense = demo.config["config"]["layers"][-1]["config"]
    dense["units"], dense["activation"] = 1, "sigmoid"
    buffer = io.BytesIO(demo.members["model.weights.h5"])
    with h5py.File(buffer, "r+") as stored:
        variables = stored["layers/dense/vars"]
        for i, value in enumerate(demo.head):
            del variables[str(i)]
            variables[str(i)] = value[..., [STAR]] - value[..., [CIRCLE]]
    _write(path, demo, buffer.getvalue())


def vgg16(path: Path) -> None:
    """VGG16 on images of 192 x 192, its last maps 12 x 12."""
    demo = Demo()
    # The demo's input and its negative, so that ReLU loses neither.
    begin = np.zeros((3, 3, 3, 6))
    for channel in range(3):
        begin[1, 1, 2 - channel, [channel, channel + 3]] = np.array([1, -1]) / 63.75
    offset = (MEAN - 127.5) / 63.75
    first, bias = demo.convolutions[0]
    learnt = {
        "block1_conv1": (begin, np.concatenate([offset, -offset])),
        "block2_conv2": (np.concatenate([first, -first], axis=2), bias),
        "block3_conv3": demo.convolutions[1],
        "block4_conv2": demo.convolutions[2],
        "block4_conv3": demo.convolutions[3],
        **{f"block5_conv{i}": demo.convolutions[3 + i] for i in (1, 2, 3)},
    }
    entries, weights, channels = [_input(demo)], [], 3
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, count + 1):
            name = f"block{block}_conv{i}"
            passing = np.zeros((3, 3, channels, channels))
            passing[1, 1] = np.eye(channels)
            kernel, bias = learnt.get(name, (passing, np.zeros(channels)))
            channels = kernel.shape[-1]
            entries.append(_named(demo, "Conv2D", name, filters=channels, activation="relu", use_bias=True))
            weights.append((kernel, bias))
        entries.append(_named(demo, "MaxPooling2D", f"block{block}_pool"))
    cells = (SIDE // 32) ** 2
    mean, bias = np.tile(demo.head[0], (cells, 1)) / cells, demo.head[1]
    both = (np.concatenate([mean, -mean], axis=1), np.concatenate([bias, -bias]))
    flatten = {"name": "flatten", "trainable": True, "dtype": "float32", "data_format": "channels_last"}
    entries.append({"module": "keras.layers", "class_name": "Flatten", "config": flatten, "name": "flatten"})
    dense = [both, (np.eye(12), np.zeros(12)), (np.concatenate([np.eye(6), -np.eye(6)]), np.zeros(6))]
    for name, activation, pair in zip(("fc1", "fc2", "predictions"), ("relu", "relu", "softmax"), dense, strict=True):
        entries.append(_named(demo, "Dense", name, units=len(pair[1]), activation=activation))
        weights.append(pair)
    for before, entry in itertools.pairwise(entries):
        history = {"shape": [None], "dtype": "float32", "keras_history": [before["name"], 0, 0]}
        tensor = {"class_name": "__keras_tensor__", "config": history}
        entry["inbound_nodes"] = [{"args": [tensor], "kwargs": {}}]
    inner = demo.config["config"]
    ends = {"input_layers": entries[0]["name"], "output_layers": entries[-1]["name"]}
    inner.update(name="vgg16", layers=entries, **{key: [[name, 0, 0]] for key, name in ends.items()})
    _write(path, demo, _stored(weights))


def _input(demo):
    entry = _named(demo, "InputLayer", "input_1", batch_shape=[None, SIDE, SIDE, 3])
    del entry["config"]["trainable"]
    return entry


def _named(demo, kind, name, **changes):
    entry = demo.layer(kind)
    entry["name"] = name
    entry["config"].update(name=name, trainable=True, **changes)
    entry.pop("build_config", None)
    return entry


def _stored(weights):
    """Weights as Keras 3 stores them: convolutions and dense layers are numbered separately."""
    buffer, counts = io.BytesIO(), {"conv2d": 0, "dense": 0}
    with h5py.File(buffer, "w") as stored:
        for pair in weights:
            kind = "conv2d" if pair[0].ndim == 4 else "dense"
            end = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            for i, value in enumerate(pair):
                stored[f"layers/{kind}{end}/vars/{i}"] = value.astype(np.float32)
    return buffer.getvalue()


def _write(path, demo, weights):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", demo.members["metadata.json"])
        archive.writestr("config.json", json.dumps(demo.config))
        archive.writestr("model.weights.h5", weights)


def pooled_logits(path: Path) -> None:
    """The demo classifier with its linear layer before the pooling: global pooling gives the logits."""
    model = onnx.load(MODELS / "shapes.onnx")
    graph = model.graph
    maps = [node.output[0] for node in graph.node if node.op_type == "Relu"][-1]
    while graph.node[-1].op_type != "Relu":
        del graph.node[-1]
    next(tensor for tensor in graph.initializer if tensor.name == "head.weight").dims.extend([1, 1])
    del graph.value_info[:]
    graph.node.extend(
        [
            helper.make_node("Conv", [maps, "head.weight", "head.bias"], ["class_maps"], "class_maps"),
            helper.make_node("GlobalAveragePool", ["class_maps"], ["averages"], "pool"),
            helper.make_node("Flatten", ["averages"], ["logits"], "flatten"),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def imagenet(path: Path, names: Path) -> None:
    """A classifier of 1000 classes at 224 x 224, its weights drawn, and a file of class names."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((8, 3, 32, 32)) / 55,
        "matrix": rng.standard_normal((8, 1000)),
        "bias": rng.standard_normal(1000),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"], strides=[32, 32]),
        helper.make_node("Relu", ["features"], ["layer4"]),
        helper.make_node("GlobalAveragePool", ["layer4"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 224, 224])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 1000])
    stored = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "imagenet", [image], [logits], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    known = {281: "tabby", 282: "tiger cat", 242: "boxer", 207: "golden retriever"}
    names.write_text("".join(f"{known.get(i, f'class {i}')}\n" for i in range(1000)), "utf-8")
