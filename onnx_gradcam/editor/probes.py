"""Models for methods that run a model many times: the model with its answers exposed, its head alone, the finishing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options

from .attachment import describe
from .ingredients import Quantities
from .plan import Plan, make_plan
from .presets import find_preset

__all__ = ["COTANGENT", "GRADIENT", "HEATMAP", "MAPS", "PROBABILITY", "SCORE", "Probed", "finisher", "probed"]

MAPS, COTANGENT, GRADIENT = "probe_maps", "probe_cotangent", "probe_gradient"
SCORE, PROBABILITY, HEATMAP = "probe_score", "probe_probability", "heatmap"
"""Inputs and outputs of the models below. Maps and images are `float32`, channels first."""


@dataclass(eq=False)
class Probed:
    """What a method that runs the model many times asks.

    Attributes:
        model: takes the model's own inputs and `target_class`, `int64 [N]`; gives the model's own outputs, `SCORE`
            and `PROBABILITY` of the class, `heatmap_class`, and of `MAPS`, `COTANGENT` and `GRADIENT` what is used.
        head: takes `MAPS` in place of the image; `None` where the method does not use it.
        metadata: what an explained model would say of itself.
        warnings: what the user should know.
    """

    model: Model
    head: Model | None
    metadata: Metadata
    warnings: list[str]


def probed(source: str | Path | bytes | onnx.ModelProto, options: Options) -> Probed:
    """The models that a method asks.

    Raises:
        ModelError, TargetError, UnsupportedError: as `attach`.
    """
    if options.class_input == "all":
        raise UnsupportedError(
            "the maps of all classes at once cannot be had by a method that runs the model many times"
        )
    options = replace(options, class_input="required")
    work = make_plan(source, options)
    if work.refusal is not None:
        raise UnsupportedError(work.refusal)
    if len(work.layers) > 1:
        raise UnsupportedError(f"{work.method.title} looks at one layer at a time; name one with --layer")
    uses = work.method.uses
    head = _head(make_plan(source, options)) if "head" in uses else None
    t = work.t
    asked = Quantities(work)
    # Only a classifier's scores are spread over classes; a comparison, a box or a value is worth its score.
    spread = work.task.has_probabilities and work.objective is None
    found = {SCORE: asked.score, PROBABILITY: asked.probability if spread else asked.score}
    found["heatmap_class"] = asked.classes
    if "A" in uses:
        found[MAPS] = asked.maps[0]
    if "G" in uses:
        found[COTANGENT] = t.expand_like(asked.cotangents[0], asked.maps[0])
    if "gx" in uses:
        found[GRADIENT] = asked.image_cotangent
    for name, value in found.items():
        t.output(value, name)
    t.finish()
    t.model.check()
    names = {"heatmap": HEATMAP, "cam": "cam", "heatmap_class": "heatmap_class"}
    if work.method.family == "sampling" and not work.method.needs_layer:
        names["attribution"] = "attribution"
    return Probed(t.model, head, describe(work, asked.class_input, names), work.warnings)


def _head(work: Plan) -> Model:
    """The part of the model between the activation maps and the score."""
    t, target = work.t, work.layer.chosen
    asked = Quantities(work)
    score = asked.score
    maps = t.input(MAPS, np.float32, (work.image.shape[0], target.channels, *target.grid))
    restored = t.cast(target.restored(t, maps), target.tensor.dtype)
    ir.convenience.replace_all_uses_with(target.tensor.core, restored.core)
    _ask_for_sizes(t, work.image, maps)
    t.graph.outputs.clear()
    t.output(score, SCORE)
    t.graph.sort()
    RemoveUnusedNodesPass()(t.model.core)
    for value in [v for v in t.graph.inputs if v.name not in {MAPS, asked.class_input}]:
        if value.uses():
            raise UnsupportedError(
                f"what lies behind layer {target.tensor.name!r} reads the input {value.name!r} past it as well, so it "
                "cannot be run again for other activation maps; choose a layer on every path"
            )
        t.graph.inputs.remove(value)
    return t.model


def _ask_for_sizes(t: Builder, image: Value, maps: Value) -> None:
    """Let the nodes that ask the image for its batch ask the maps, where all else that they ask for is fixed."""
    for node in [use.node for use in image.core.uses() if use.node.op_type == "Shape"]:
        first, behind = (
            node.attributes.get_int(name, default) for name, default in (("start", 0), ("end", image.rank))
        )
        asked = list(enumerate(image.shape))[first:behind]
        if all(axis == 0 or isinstance(size, int) for axis, size in asked):
            batch = t.op("Shape", maps, start=0, end=1)
            parts = [t.ints(size) if axis and isinstance(size, int) else batch for axis, size in asked]
            ir.convenience.replace_all_uses_with(node.outputs[0], t.op("Concat", *parts, axis=0).core)


def finisher(preset: str, grid: Sequence[int], size: Sequence[int]) -> bytes:
    """A model from raw maps `cam`, `float32 [N, *grid]`, to `heatmap`, `float32 [N, *size]`, as the preset has it."""
    core = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="finish"), ir_version=10)
    t = Builder(Model(core, None, "the finishing"))
    cam = t.input("cam", np.float32, ("N", *grid))
    heatmap = find_preset(preset).finish(t, [cam], t.ints(*size), None)
    t.output(t.refine(heatmap, ("N", *size)), HEATMAP)
    t.finish()
    return bytes(t.model.to_proto().SerializeToString())
