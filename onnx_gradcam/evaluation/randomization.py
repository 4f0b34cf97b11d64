"""The parameter randomization test: a heatmap that depends on what the model has learnt changes with its weights.

Adebayo et al. 2018 (Sanity checks for saliency maps), section 3: layers are randomized from the output downwards,
each with all above it (cascading), and each alone (independent). Hedstroem et al. 2024 (A fresh look at sanity checks
for saliency maps): how much more complex the heatmaps of a randomized model are (efficient test).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.errors import InputError, ModelError, UnsupportedError
from onnx_gradcam.graph.load import load
from onnx_gradcam.images.decoding import read_image
from onnx_gradcam.options import Randomization
from onnx_gradcam.runtime.explainer import Box, Explainer

from .robustness import entropy
from .scoring import Evaluator
from .similarity import compare_maps

__all__ = ["MOST_SUBJECTS", "Layer", "Randomized", "Stage", "plan_stages", "randomized", "redrawn", "weight_layers"]

MOST_SUBJECTS: Final = 10
"""How many images are explained at each stage; enough to see whether heatmaps change."""

_GROUPS: Final = 8
"""Into how many groups a deep model's layers are split; the first is the topmost layer alone."""

_UNCHANGED: Final = 1e-4
_FLAT: Final = 1e-6
"""Least entropy of a heatmap that another is compared with; one pixel alone has none."""
_LARGEST: Final = 2**31 - 2**24
_MATRIX: Final = 2

_WEIGHTED: Final = {"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"}
_CARRIERS: Final = {
    *("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
}
"""Operators between an initializer and the layer that uses it."""

_Array = npt.NDArray[Any]
Subject = tuple[str, int] | tuple[str, int, "Box | None"]
"""The path of an image, the index of a class, and of a detector the box."""


@dataclass(frozen=True)
class Layer:
    """A node with weights, named by itself or its output; `weights` are its initializers of rank two and above.

    `turned` says that a matrix has a row for each output, as Gemm's with transB; every other has a column.
    """

    name: str
    weights: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Stage:
    """Layers that are randomized together.

    Attributes:
        kind: `cascading`, these layers and all above them, or `independent`, these alone.
        named: the layers that are new in this stage, from the output downwards.
        layers: all layers that are randomized.
    """

    kind: Literal["cascading", "independent"]
    named: Sequence[Layer]
    layers: Sequence[Layer]


@dataclass(frozen=True, kw_only=True)
class Randomized:
    """How similar the heatmaps of the randomized model and of the model itself are.

    Attributes:
        stage: the randomized layers.
        spearman: mean rank correlation, by method; `None` if no heatmaps could be compared.
        ssim: mean structural similarity, by method.
        entropy: by method, the mean of the entropy of the randomized model's heatmaps over that of its own, less one.
            With all weights random, in the last cascading stage, it is the efficient test of Hedstroem et al.
            2024: higher is better, and 0 or less is a heatmap that random weights do not spread.
        unchanged: methods whose heatmaps did not change by 1e-4 anywhere.
        failed: for how many images the randomized model gave no heatmap, by method.
    """

    stage: Stage
    spearman: Mapping[str, float | None]
    ssim: Mapping[str, float | None]
    entropy: Mapping[str, float | None]
    unchanged: Sequence[str]
    failed: Mapping[str, int]


def weight_layers(source: Any) -> list[Layer]:
    """The layers of a model that have weights, from the scores downwards; refuses a model that has none."""
    graph = load(source).core.graph
    initializers = set(graph.initializers)
    taken: set[str] = set()
    layers = []
    for node in reversed(list(graph)):
        if node.op_type not in _WEIGHTED:
            continue
        weights = tuple(
            dict.fromkeys(name for value in node.inputs for name in _behind(value, initializers) if name not in taken)
        )
        if weights:
            taken.update(weights)
            turned = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
            layers.append(Layer(node.name or str(node.outputs[0].name), weights, turned))
    if not layers:
        raise UnsupportedError(
            "no layer of the model has weights among the initializers; evaluate without parameter randomization"
        )
    return layers


def _behind(value: ir.Value | None, initializers: set[str]) -> Iterator[str]:
    """The initializer that a value is, or is computed from."""
    while value is not None:
        if value.name in initializers:
            if value.const_value is not None and len(value.const_value.shape) > 1:
                yield str(value.name)
            return
        node = value.producer()
        if node is None or node.op_type not in _CARRIERS:
            return
        value = node.inputs[0]


def plan_stages(layers: Sequence[Layer]) -> list[Stage]:
    """Every stage of both kinds; the topmost layer alone is the same in both and occurs once."""
    parts = np.array_split(np.arange(1, len(layers)), _GROUPS - 1)
    groups = [list(layers[:1]), *([layers[i] for i in part] for part in parts if part.size)]
    cascading = [Stage("cascading", group, list(chain(*groups[: i + 1]))) for i, group in enumerate(groups)]
    return cascading + [Stage("independent", group, group) for group in groups[1:]]


def redrawn(source: Any, layers: Sequence[Layer], seed: int = 0, mode: Randomization = "shuffle") -> onnx.ModelProto:
    """The model with random values in place of some layers' weights.

    With the mode `shuffle` they are the layer's own in random order, and quantised weights keep their dtype; with
    `initialise` they are drawn anew as PyTorch initialises convolutions and linear layers, uniformly up to the inverse
    square root of the inputs of a unit (He et al. 2015), which quantised weights cannot be.
    """
    model = load(source)
    rng = np.random.default_rng(seed)
    weights = {name: layer for layer in layers for name in layer.weights}
    values = model.core.graph.initializers.values()
    if model.weight_bytes > _LARGEST:
        raise UnsupportedError("models above 2 GB cannot be randomized; evaluate without parameter randomization")
    for value in values:
        tensor = value.const_value
        if tensor is None or not (value.name in weights or isinstance(tensor, ir.ExternalTensor)):
            continue
        array = tensor.numpy()
        if value.name in weights:
            array = _REDRAW[mode](rng, array, weights[value.name])
        value.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)
    return model.to_proto()


def _shuffled(rng: np.random.Generator, array: _Array, _layer: Layer) -> _Array:
    return rng.permutation(array.reshape(-1)).reshape(array.shape)


def _initialised(rng: np.random.Generator, array: _Array, layer: Layer) -> _Array:
    if array.dtype.kind != "f":
        raise UnsupportedError(
            f"the weights of {layer.name} are {array.dtype} and cannot be initialised; shuffle them instead"
        )
    rows, columns = array.shape[0], int(np.prod(array.shape[1:]))
    inputs = columns if layer.turned or array.ndim > _MATRIX else rows
    drawn: _Array = rng.uniform(-1, 1, array.shape).astype(array.dtype) * array.dtype.type(inputs**-0.5)
    return drawn


_REDRAW: Final = {"shuffle": _shuffled, "initialise": _initialised}


def randomized(
    evaluator: Evaluator,
    stages: Sequence[Stage],
    subjects: Sequence[Subject],
    seed: int = 0,
    mode: Randomization = "shuffle",
) -> Iterator[Randomized]:
    """Randomize the weights stage by stage, and compare heatmaps of the first `MOST_SUBJECTS` with the model's own."""
    subjects = subjects[:MOST_SUBJECTS]
    own = {method: _heatmaps(explainer, subjects) for method, explainer in evaluator.explainers.items()}
    for stage in stages:
        proto = redrawn(evaluator.model, stage.layers, seed, mode)
        pairs = {}
        for method in evaluator.methods:
            heatmaps = _heatmaps(evaluator.explainer(method, proto), subjects)
            both = zip(own[method], heatmaps, strict=True)
            pairs[method] = [(before, after) for before, after in both if before is not None and before.any()]
        yield _compared(stage, pairs)


_Map = npt.NDArray[np.float32]


def _heatmaps(explainer: Explainer, subjects: Sequence[Subject]) -> list[_Map | None]:
    return [_heatmap(explainer, *subject) for subject in subjects]


def _heatmap(explainer: Explainer, image: str, index: int, box: Box | None = None) -> _Map | None:
    """One heatmap; `None` if the model gives none, for example because a randomized one overflows."""
    try:
        return explainer(read_image(image), index, box).heatmap
    except (InputError, ModelError):
        return None


def _both(pairs: Sequence[tuple[_Map, _Map | None]]) -> list[tuple[_Map, _Map]]:
    """The pairs that have a heatmap of the randomized model."""
    return [(before, after) for before, after in pairs if after is not None]


def _compared(stage: Stage, pairs: Mapping[str, Sequence[tuple[_Map, _Map | None]]]) -> Randomized:
    agreements = {
        method: [compare_maps(before, after) for before, after in _both(both)] for method, both in pairs.items()
    }
    return Randomized(
        stage=stage,
        spearman={m: float(np.mean([a.spearman for a in rows])) if rows else None for m, rows in agreements.items()},
        ssim={m: float(np.mean([a.ssim for a in rows])) if rows else None for m, rows in agreements.items()},
        entropy={
            m: float(np.mean([entropy(after) / max(entropy(before), _FLAT) - 1 for before, after in _both(pairs[m])]))
            if _both(pairs[m])
            else None
            for m in pairs
        },
        unchanged=[m for m, rows in agreements.items() if rows and max(a.difference for a in rows) < _UNCHANGED],
        failed={m: len(both) - len(agreements[m]) for m, both in pairs.items()},
    )
