"""The classifiers and the PyTorch-made models that the ONNX package carries, made fit for gradient checks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]

DATA = Path(os.fspath(onnx.__file__)).parent / "backend" / "test" / "data"
ARCHITECTURES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
NARROW = 8
"""What the widths of the layers are divided by; depth, geometry and input size stay as they are."""
_RESIDUAL = 0.3


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of the nine classifiers with He-initialised weights that are constants, at the opset it was shipped with.

    As shipped every weight is 0.02, so that all logits are equal and every gradient is the same. Layers are an eighth
    as wide as published (ShuffleNet, which is narrow and grouped, keeps its width).
    """
    model = onnx.load(DATA / "light" / f"light_{name}.onnx")
    graph = model.graph
    by = 1 if name == "shufflenet" else NARROW
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    filled = {n.output[0]: stored[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    uses = {x: (node, i) for node in kept for i, x in enumerate(node.input)}
    residual = _residual_scales(graph)
    rng = np.random.default_rng(seed)
    constants = []
    for name, (node, index) in uses.items():
        values = stored.get(name)
        if name in filled or (values is not None and values.dtype == np.float32):
            published = filled[name] if name in filled else np.shape(values)
            shape = [_narrow(d, by) for d in published]
            values = _values(node, index, uses, shape, rng) * np.float32(_RESIDUAL if name in residual else 1)
        elif values is not None and node.op_type == "Reshape":
            values = np.array([_narrow(d, by) for d in values])
        if values is not None:
            constants.append(numpy_helper.from_array(values, name))
    inputs = [i for i in graph.input if i.name not in stored]
    for info in graph.output:
        dims = info.type.tensor_type.shape.dim
        dims[1].dim_value = _narrow(dims[1].dim_value, by)
    for field, items in ((graph.node, kept), (graph.initializer, constants), (graph.input, inputs)):
        saved = list(items)
        del field[:]
        field.extend(saved)
    del graph.value_info[:]
    model.ir_version = 4  # the first in which a constant need not be an input
    onnx.checker.check_model(model)
    return model


def _narrow(size: int, by: int) -> int:
    return int(size) // by if size % by == 0 else int(size)


def _values(
    node: onnx.NodeProto, index: int, uses: dict[str, tuple[onnx.NodeProto, int]], shape: list[int], rng: Any
) -> Array:
    """Weights of the size that training leaves, for input `index` of `node`."""
    if node.op_type == "Unsqueeze":
        node, index = uses[node.output[0]]
    kind = node.op_type, index
    if kind in {("Conv", 1), ("Gemm", 1)}:
        fan_in = math.prod(shape[1:])
        values = math.sqrt(2 / fan_in) * rng.standard_normal(shape)
    elif kind in {("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)}:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = rng.uniform(-0.2, 0.2, shape)
    return np.asarray(values, np.float32)


def _residual_scales(graph: onnx.GraphProto) -> set[str]:
    """The scales of the batch normalisations whose output is added to a shortcut."""
    made_by = {o: n for n in graph.node for o in n.output}
    branches = [made_by.get(x) for n in graph.node if n.op_type == "Sum" for x in n.input]
    return {n.input[1] for n in branches if n is not None and n.op_type == "BatchNormalization"}


def logits(model: onnx.ModelProto) -> str:
    """The tensor of class scores: what a final Softmax reads, or the output."""
    last = model.graph.node[-1]
    return str(last.input[0] if last.op_type == "Softmax" else model.graph.output[0].name)


@dataclass(frozen=True)
class Converted:
    """A model made by PyTorch's first exporter, values for its inputs, and its weights."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    weights: dict[str, Array]


def converted(collection: str) -> Iterator[Converted]:
    """The models of `pytorch-converted` or `pytorch-operator`, with the inputs that lie beside them, in float32.

    Some of those inputs were never initialised; numbers drawn here stand in for them.
    """
    for folder in sorted((DATA / collection).iterdir()):
        model = _as_float(onnx.load(folder / "model.onnx"))
        weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        names = [i.name for i in model.graph.input if i.name not in weights]
        tensors = [onnx.load_tensor(folder / "test_data_set_0" / f"input_{i}.pb") for i in range(len(names))]
        feeds = {k: _plausible(numpy_helper.to_array(t)) for k, t in zip(names, tensors, strict=True)}
        yield Converted(folder.name, model, feeds, weights)


def _plausible(array: Array) -> Array:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    drawn = np.random.default_rng(0).uniform(0.5, 1.5, array.shape)
    return np.where((np.abs(array) > 1e6) | (np.abs(array) < 1e-12), drawn, array).astype(np.float32)


def _as_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float32: a handful are in float64, for no reason of their own."""
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    tensors = [a.t for n in model.graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in (*tensors, *model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(_plausible(numpy_helper.to_array(tensor)), tensor.name))
    return model
