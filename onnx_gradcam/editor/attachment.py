"""Carry out a plan: append the method and its outputs to the graph, and describe them in the metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_gradcam import __version__
from onnx_gradcam.autodiff.providers import conform, find_profile, separate_weights
from onnx_gradcam.errors import InputError, UnsupportedError
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import invalid_models_refused
from onnx_gradcam.graph.shapes import Shape, TensorInfo, declare
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Choices, Options

from .ingredients import Ingredients
from .methods.maps import added, finish_within
from .plan import Plan
from .planning import make_plan
from .targets.task import MASK, free_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Explained", "attach", "describe", "explained_boxes", "with_required_choices"]


@dataclass(eq=False, repr=False)
class Explained:
    """An explained model: the original with heatmap outputs.

    Attributes:
        model: the model.
        metadata: how it was explained; also stored in the model.
        reason: why this layer, in words.
        warnings: what the user should know.
        difference: largest relative difference of the original outputs, if both models were run.
        cut: the operator of the original that was cut off, since ONNX Runtime has none; empty for none.

    Example::

        explained = attach("model.onnx")
        print(explained.metadata.target_tensor, explained.reason, *explained.warnings)
        explained.save("explained.onnx")
    """

    model: Model
    metadata: Metadata
    reason: str
    warnings: list[str] = field(default_factory=list)
    difference: float | None = None
    cut: str = ""

    def __repr__(self) -> str:
        """One line: the method, the layers, and the outputs."""
        said = self.metadata
        layers = ", ".join(map(repr, said.target_tensors)) or "the image"
        outputs = ", ".join(str(value.name) for value in self.model.core.graph.outputs)
        return f"<Explained: {said.method} at {layers}; outputs {outputs}>"

    def save(self, path: str | Path) -> None:
        """Write the model; see `Model.save`."""
        self.model.save(path)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto; external weights stay references."""
        return self.model.to_proto()


def attach(source: ModelSource, options: Options | None = None, **choices: Unpack[Choices]) -> Explained:
    """Add the explanation to a model.

    Args:
        source: path, bytes or proto of the model.
        options: what to explain and how.
        choices: fields of `Options`, in place of those of `options`.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: the score, layer or class chosen is not in the model.
        UnsupportedError: the model cannot be explained this way.

    Example::

        attach("model.onnx", layer="auto").save("explained.onnx")
    """
    options = (options or Options()).replaced(choices)
    with invalid_models_refused(source):
        return _attached(make_plan(source, options))


def _attached(plan: Plan) -> Explained:
    plan = _inside(plan)
    if plan.refusal is not None:
        raise UnsupportedError(plan.refusal)
    required = plan.options.class_input == "required"
    if required and plan.options.box is not None:
        raise InputError(
            f"box {plan.options.box} would be the default of an input that has none with class_input 'required'; feed "
            "it when the model runs, or use class_input 'optional' or 'none'"
        )
    t = plan.t
    ingredients = Ingredients(plan)
    names, left = _append_outputs(plan, ingredients)
    if plan.options.expose_activation and plan.method.needs_layer:
        for target in plan.targets:
            t.expose(target)
    if find_profile(plan.options.profile).separate_weights:
        separate_weights(t)
    t.finish()
    model = t.model
    metadata = describe(plan, ingredients.class_input, names)
    if required:
        _require(model, metadata.box_input, metadata.batch_shape(model.shape(metadata.image_input))[:1])
    model.metadata.update(metadata.to_props())
    model.check()
    return Explained(model, metadata, plan.layer.reason, [*plan.warnings, *left], cut=plan.dropped)


def _inside(plan: Plan) -> Plan:
    """The plan with the method as a part of the model."""
    method = plan.method
    if not method.runs_often:
        return plan
    if method.inside is None:
        raise UnsupportedError(
            f"{method.title} {method.outside}, so it cannot be written into a model; use explain, or another method"
        )
    for name in method.takes:
        if getattr(plan.options, name) is not None and name not in method.inside.takes:
            raise UnsupportedError(f"{method.title} takes --{name} in explain alone; leave it out, or use explain")
    return replace(plan, method=method.inside)


def _append_outputs(plan: Plan, ingredients: Ingredients) -> tuple[dict[str, str], list[str]]:
    """Append the method; its outputs by field of `Metadata`, and what the profile's provider will not run."""
    t = plan.t
    batch = plan.score.tensor.shape[0]
    sizes = [plan.image.shape[axis] for axis in plan.spatial_axes]
    results: dict[str, Value] = {}
    panel: Value | None = None
    if plan.method.family == "attribution":
        attribution = plan.method.function(t, **ingredients.of(0))
        cams = [_over_channels(plan, attribution)]
        panel = None if plan.preset.panel is None else plan.preset.panel(t, attribution)
        if "gradients" in plan.method.needs:
            results["completeness"] = t.refine(ingredients.left_of_change(attribution), (batch,))
        results["attribution"] = t.refine(_as_image(plan, attribution), plan.image.shape)
        grid: Sequence[int | str | None] = sizes
    else:
        raw = [plan.method.function(t, **ingredients.of(i)) for i in range(len(plan.layers))]
        cams = [_of_positions(t, cam, len(sizes)) for cam in raw]
        grid = plan.layer.chosen.grid if len(plan.layer.chosen.grid) == len(sizes) else cams[0].shape[1:]
    combine = plan.combine
    if combine == "sum" and len(cams) > 1:
        finest = max(range(len(cams)), key=lambda i: math.prod(plan.layers[i].chosen.probe_grid))
        cams, grid = [added(t, cams, finest)], plan.layers[finest].chosen.grid
    size = _image_size(t, plan.image, plan.spatial_axes, sizes)
    if plan.options.class_input == "all":
        results["heatmap"], results["cam"] = _of_all_classes(plan, ingredients.all_classes(), size, sizes)
    else:
        heatmap = panel
        if heatmap is None:
            heatmap = finish_within(t, plan.preset.finish, cams, size, combine, plan.extent)
        order = sorted(range(len(sizes)), key=plan.spatial_axes.__getitem__)
        results["heatmap"] = t.refine(_in_order(t, heatmap, order), (batch, *(sizes[i] for i in order)))
        results["cam"] = t.refine(_in_order(t, cams[0], order), (batch, *(grid[i] for i in order)))
    results["heatmap_class"] = t.refine(ingredients.classes, (batch,))
    if plan.is_complete and "completeness" not in results:
        results["completeness"] = t.refine(ingredients.completeness, (batch,))
    results |= explained_boxes(plan, ingredients.classes)
    names = {name: free_name(t, name) for name in results}
    outputs = [t.output(value, names[name]) for name, value in results.items()]
    return names, _beyond(t, outputs, plan.options.profile)


def explained_boxes(plan: Plan, classes: Value) -> dict[str, Value]:
    """Index and probability of the explained box, `int64 [N]` and `float32 [N]`, by field of `Metadata`."""
    t, detections = plan.t, plan.detections
    if detections is None:
        return {}
    indices = t.find(detections.indices)
    assert indices is not None  # noqa: S101 - the task appended it
    picked = t.op("Unsqueeze", classes, t.ints(1))
    index, score = (
        t.op("Squeeze", t.op("GatherElements", table, picked, axis=1), t.ints(1))
        for table in (indices, plan.score.output)
    )
    batch = (plan.score.tensor.shape[0],)
    return {"heatmap_box": t.refine(index, batch), "heatmap_score": t.refine(t.cast(score, np.float32), batch)}


def _of_all_classes(plan: Plan, cams: Value, size: Value, sizes: Sequence[int | str | None]) -> tuple[Value, Value]:
    """Heatmaps `[N, K, H, W]` and raw maps `[N, K, h, w]`: each map is finished as a sample of its own."""
    t = plan.t
    grid = t.op("Shape", cams, start=2)
    rows = t.op("Reshape", cams, t.op("Concat", t.ints(-1), grid, axis=0), shape=(None, *cams.shape[2:]))
    shown = finish_within(t, plan.preset.finish, [rows], size, None, plan.extent)
    both = t.op("Concat", t.op("Shape", cams, start=0, end=2), size, axis=0)
    return t.op("Reshape", shown, both, shape=(*cams.shape[:2], *sizes)), cams


def _beyond(t: Builder, results: Sequence[Value], profile: str) -> list[str]:
    """Write the rest, which is no gradient, for the profile's provider too, and say what it will not run."""
    left = conform(t, find_profile(profile), results, strict=False)[1]
    return [f"{why} of {profile}, so ONNX Runtime computes it on the CPU" for why in left]


def _in_order(t: Builder, maps: Value, order: Sequence[int]) -> Value:
    """Maps `[N, *spatial]` with the spatial axes in another order: the input's, where the model swaps them."""
    return t.transpose(maps, [0, *(1 + i for i in order)]) if list(order) != sorted(order) else maps


def _of_positions(t: Builder, cam: Value, count: int) -> Value:
    """A raw map with as many spatial axes as the input; graphs of signals have one of size one more."""
    extra = cam.rank - 1 - count
    if extra <= 0:
        return cam
    ones = [axis for axis, size in enumerate(cam.shape) if axis and size == 1]
    if len(ones) < extra:
        raise UnsupportedError(
            f"the layer has {cam.rank - 1} axes of positions and the input {count}; name another layer with --layer"
        )
    return t.op("Squeeze", cam, t.ints(*ones[:extra]))


def _over_channels(plan: Plan, attribution: Value) -> Value:
    """An attribution `[N, C, H, W]` as one map `[N, H, W]`."""
    t = plan.t
    how = plan.options.channels or plan.preset.channels or plan.method.channels
    return t.reduce("ReduceMax" if how == "max" else "ReduceSum", attribution, [1], keepdims=False)


def _as_image(plan: Plan, attribution: Value) -> Value:
    """An attribution `[N, C, H, W]` with the axes of the model's input, and its type where that has fractions."""
    t, image = plan.t, plan.image
    value = plan.image_candidate.restored(t, attribution)
    return t.cast(value, image.dtype) if image.is_float else value


def _image_size(t: Builder, image: Value, axes: tuple[int, ...], sizes: Sequence[int | str | None]) -> Value:
    if all(isinstance(size, int) for size in sizes):
        return t.ints(*(size for size in sizes if isinstance(size, int)))
    return t.op("Gather", t.op("Shape", image), t.ints(*axes))


def describe(plan: Plan, class_input: str, names: Mapping[str, str]) -> Metadata:
    """The metadata of an explained model; `names` are those of its outputs, by field of `Metadata`."""
    options, detections = plan.options, plan.detections
    metadata = Metadata(
        version=__version__,
        method=plan.method.name,
        preset=plan.preset.name,
        modifier=plan.modifier or "",
        eigen_smooth=plan.options.eigen_smooth,
        weights=plan.weights,
        combine=plan.combine or "" if len(plan.layers) > 1 else "",
        derivative="straight-through" if plan.quantised is not None else "exact",
        target_tensor=plan.layer.chosen.tensor.name,
        target_tensors=[target.name for target in plan.targets],
        score_tensor=plan.score.tensor.name,
        image_input=plan.image_input,
        layout=plan.input_layout,
        scores_output=plan.score.output.name,
        activation=plan.score.activation,
        single_logit=plan.score.single_logit,
        class_input=class_input,
        labels=plan.labels,
        preprocessing=plan.preprocessing,
        profile=options.profile,
        grad_dtype=options.grad_dtype,
        disabled_optimizers=list(plan.hazards),
        task=plan.task.name,
        mask_input=MASK if plan.task.takes_mask(options) else "",
        all_classes=options.class_input == "all",
        couples_rows=plan.couples_rows,
        extent=plan.extent,
        raised_from=plan.t.model.raised_from,
        box_input=detections.box_input if detections is not None else "",
        detection_scores=detections.scores if detections is not None else "",
        detection_boxes=detections.boxes if detections is not None else "",
        **names,
    )
    if options.probabilities is not None:
        return metadata.with_probabilities(options.probabilities)
    own = "" if metadata.activation or not plan.task.has_probabilities else plan.probabilities
    return replace(metadata, probabilities=own)


def with_required_choices(source: str | Path, choices: Mapping[str, Any]) -> tuple[Model, Metadata]:
    """The explained model with ordinary inputs for the class and the box, for clients that cannot leave an input out.

    A negative box is the best one of the class, or of the rank that the model was attached with. A model that is not
    explained yet is attached with `choices`, fields of `Options`.

    Raises:
        InputError: there are choices for a model that is explained already, the box has another default, or a choice
            is not possible.
    """
    options = Options().replaced(choices)
    if choices.get("class_input", "required") != "required":
        raise InputError(f"class_input is {options.class_input!r}, but clients choose the class here; omit it")
    for name, default in (("box", None), ("box_rank", 0)):
        if (value := getattr(options, name)) != default:
            raise InputError(f"{name} is {value}, but clients choose the box here; omit it")
    options = options.replaced({"class_input": "required"})
    metadata = Metadata.of(source)
    if metadata is None:
        explained = attach(source, options)
        model, metadata = explained.model, explained.metadata
    elif fixed := [name for name in choices if name != "probabilities"]:
        raise InputError(f"the model is explained already; {', '.join(fixed)} cannot be chosen any more")
    else:
        metadata = metadata.with_probabilities(options.probabilities)
        model = load(source)
        graph = model.core.graph
        optional = [graph.initializers.get(name) for name in (metadata.class_input, metadata.box_input)]
        metadata.check_graph(_signatures([*graph.inputs, *filter(None, optional)]), _signatures(graph.outputs))
    metadata.require_images("a server or a page")
    batch = metadata.batch_shape(model.shape(metadata.image_input))[:1]
    for name in (metadata.class_input, metadata.box_input):
        _require(model, name, batch)
    model.check()
    return model, metadata


def _require(model: Model, name: str, batch: Shape) -> None:
    """Make an optional input, of which a negative value is the best choice, an ordinary one of a shape; in place."""
    graph = model.core.graph
    value = graph.initializers.pop(name, None)
    if value is None:
        return
    default = value.const_value
    if default is not None and (default.numpy() >= 0).any():
        raise InputError(
            f"the input {name!r} is {int(default.numpy().max())} by default, but clients choose it here; start from "
            "the original model"
        )
    value.const_value = None
    declare(value, onnx.TensorProto.INT64, batch)
    # A model that was read lists no input with a default.
    if value in graph.inputs:
        graph.inputs.remove(value)
    graph.inputs.append(value)


def _signatures(values: Iterable[ir.Value]) -> dict[str, tuple[str, Shape | None]]:
    return {str(value.name): (str(TensorInfo.of(value).dtype), TensorInfo.of(value).shape) for value in values}
