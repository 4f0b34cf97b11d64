"""Small models in ONNX text, with random weights that depend on their names alone."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_gradcam.autodiff.backward import carries_gradient
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.model import load
from onnx_gradcam.targets.layer import Layer, find_layer
from onnx_gradcam.targets.score import find_score, image_inputs
from onnx_gradcam.runtime.session import Session

Array = np.ndarray[Any, Any]


def weight(name: str, *shape: int, dtype: Any = np.float32) -> Array:
    """Random numbers of the standard deviation that keeps activations about one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = int(np.prod(shape[1:])) or 1
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(dtype)


def graph(
    body: str,
    *,
    inputs: str = "float[N,3,8,8] x",
    outputs: str = "float[N,4] y",
    opset: int = 18,
    dtype: Any = np.float32,
    **constants: Array | tuple[int, ...] | list[int] | int,
) -> onnx.ModelProto:
    """A model from the body of a graph in ONNX text.

    Args:
        body: the nodes.
        inputs: the graph's inputs.
        outputs: its outputs.
        opset: version of the default operator set.
        dtype: of random weights.
        constants: initializers: an array as it is, a tuple for random weights of that shape, a list or a number for
            `int64`.
    """
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        if isinstance(value, tuple):
            value = weight(name, *value, dtype=dtype)
        array = np.asarray(value, np.int64) if isinstance(value, list | int) else value
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def builder(model: onnx.ModelProto) -> Builder:
    return Builder(load(model))


def choose(model: onnx.ModelProto, layer: str = "auto", names: dict[str, str] | None = None) -> Layer:
    """The target tensor that is chosen in a model of one picture and one score."""
    t = builder(model)
    score = find_score(t)
    return find_layer(t, image_inputs(t)[0], score.tensor, carries_gradient(t), layer, names)


def run(model: onnx.ModelProto, *, disabled: list[str] | None = None, **feeds: Array) -> dict[str, Array]:
    """All outputs by name."""
    session = Session(model.SerializeToString(), disabled_optimizers=disabled or [], threads=1)
    return session.run(feeds)


def pictures(count: int = 2, *shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Random model inputs, `[count, 3, 8, 8]` by default."""
    return np.random.default_rng(seed).standard_normal((count, *(shape or (3, 8, 8)))).astype(dtype)
