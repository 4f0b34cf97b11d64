"""Models for methods that run a model many times: one with all ingredients exposed, its head, the post-processing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import invalid_models_refused
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options

from .attachment import describe, explained_boxes
from .ingredients import Ingredients
from .methods.maps import finish_within
from .plan import Plan
from .planning import make_plan
from .presets import find_preset

__all__ = ["COTANGENT", "GRADIENT", "HEATMAP", "MAPS", "PROBABILITY", "SCORE", "Probed", "finisher", "probed"]

MAPS, COTANGENT, GRADIENT = "probe_maps", "probe_cotangent", "probe_gradient"
SCORE, PROBABILITY, HEATMAP = "probe_score", "probe_probability", "heatmap"
"""Inputs and outputs of the models below. Maps and images are `float32`, channels first."""

_EXPOSED: Mapping[str, tuple[str, Callable[[Ingredients], Value]]] = {
    "A": (MAPS, lambda ingredients: ingredients.maps[0]),
    "G": (COTANGENT, lambda ingredients: ingredients.spread_cotangent(0)),
    "gx": (GRADIENT, lambda ingredients: ingredients.image_cotangent),
}
"""The outputs for ingredients of methods, and how to compute them."""


@dataclass(eq=False)
class Probed:
    """The models that a method runs many times.

    Attributes:
        model: takes the model's own inputs and `target_class`, `int64 [N]`; outputs the model's own outputs,
            `SCORE` and `PROBABILITY` of the class, `heatmap_class`, and `MAPS`, `COTANGENT` and `GRADIENT` if used.
        head: takes `MAPS` instead of the image; `None` if the method does not use it.
        metadata: the metadata that an explained model would carry.
        warnings: warnings for the user.
        options: what the user chose.
    """

    model: Model
    head: Model | None
    metadata: Metadata
    warnings: list[str]
    options: Options


def probed(source: ModelSource, options: Options) -> Probed:
    """Build the models that a method runs many times; errors as for `attach`."""
    if options.class_input == "all":
        raise UnsupportedError(
            "methods that run the model many times explain one class at a time; use --class-input optional"
        )
    options = replace(options, class_input="required")
    with invalid_models_refused(source):
        return _probed(source, options)


def _probed(source: ModelSource, options: Options) -> Probed:
    plan = make_plan(source, options)
    if plan.refusal is not None:
        raise UnsupportedError(plan.refusal)
    if len(plan.layers) > 1:
        raise UnsupportedError(f"{plan.method.title} looks at one layer at a time; name one with --layer")
    head = _head(make_plan(source, options)) if plan.method.reruns_head else None
    t = plan.t
    ingredients = Ingredients(plan)
    # Only the scores of a classifier have probabilities; a comparison, a box or a value stands for itself.
    has_probabilities = plan.task.has_probabilities and plan.objective is None
    outputs = {
        SCORE: ingredients.score,
        PROBABILITY: ingredients.probability if has_probabilities else ingredients.score,
        "heatmap_class": ingredients.classes,
        **(boxes := explained_boxes(plan, ingredients.classes)),
    }
    outputs |= {output: make(ingredients) for name, (output, make) in _EXPOSED.items() if name in plan.method.uses}
    for name, value in outputs.items():
        t.output(value, name)
    t.finish()
    t.model.check()
    names = {"heatmap": HEATMAP, "cam": "cam", "heatmap_class": "heatmap_class", **{name: name for name in boxes}}
    if plan.method.family == "sampling" and not (plan.method.needs_layer or plan.method.image_map):
        names["attribution"] = "attribution"
    return Probed(t.model, head, describe(plan, ingredients.class_input, names), plan.warnings, plan.options)


def _head(plan: Plan) -> Model:
    """The part of the model between the activation maps and the score."""
    t, target = plan.t, plan.layer.chosen
    ingredients = Ingredients(plan)
    score = ingredients.score
    maps = t.input(MAPS, np.float32, (plan.image.shape[0], target.channels, *target.grid))
    restored = t.cast(target.restored(t, maps), target.tensor.dtype)
    # An exported model has the layer among its outputs, where it cannot be replaced.
    t.graph.outputs.clear()
    ir.convenience.replace_all_uses_with(target.tensor.core, restored.core)
    _read_batch_from(t, plan.image, maps)
    t.output(score, SCORE)
    t.graph.sort()
    RemoveUnusedNodesPass()(t.model.core)
    choosing = {ingredients.class_input, plan.detections.box_input if plan.detections is not None else ""}
    for value in [v for v in t.graph.inputs if v.name not in {MAPS, *choosing}]:
        if value.uses():
            raise UnsupportedError(
                f"the model behind layer {target.tensor.name!r} also reads the input {value.name!r}, so it cannot "
                "be run again for other activation maps; choose a layer on every path"
            )
        t.graph.inputs.remove(value)
    return t.model


def _read_batch_from(t: Builder, image: Value, maps: Value) -> None:
    """Let nodes that read the batch size from the image read it from the maps, if all other sizes are fixed."""
    for node in [use.node for use in image.core.uses() if use.node.op_type == "Shape"]:
        first, behind = (
            node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", image.rank))
        )
        sizes = list(enumerate(image.shape))[first:behind]
        if all(axis == 0 or isinstance(size, int) for axis, size in sizes):
            batch = t.op("Shape", maps, start=0, end=1)
            parts = [t.ints(size) if axis and isinstance(size, int) else batch for axis, size in sizes]
            ir.convenience.replace_all_uses_with(node.outputs[0], t.op("Concat", *parts, axis=0).core)


def finisher(preset: str, grid: Sequence[int], size: Sequence[int], extent: Sequence[Sequence[float]]) -> bytes:
    """The preset's post-processing as a model from `cam`, `float32 [N, *grid]`, to `heatmap`, `float32 [N, *size]`.

    `extent` is the part of the image that the maps cover, as in `Metadata.extent`.
    """
    core = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="finish"), ir_version=10)
    t = Builder(Model(core, None, "the post-processing"))
    cam = t.input("cam", np.float32, ("N", *grid))
    heatmap = finish_within(t, find_preset(preset).finish, [cam], t.ints(*size), None, extent)
    t.output(t.refine(heatmap, ("N", *size)), HEATMAP)
    t.finish()
    return bytes(t.model.to_proto().SerializeToString())
