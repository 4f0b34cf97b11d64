"""The one composition: a model goes in, the same model with a heatmap comes out.

Here alone the backward pass and the methods meet. `plan` decides what is explained and how, and refuses what cannot
be; `attach` carries the plan out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from . import __version__
from .autodiff.backward import backward, carries_gradient, missing_rules
from .autodiff.expand import expand_missing
from .errors import TargetError, UnsupportedError, near_matches
from .graph.builder import Builder, Value
from .graph.model import Model, load
from .graph.paths import between
from .heatmap import finish
from .linearize import Head, finite_cotangent, linear_cotangent, read_head
from .metadata import Carried, Metadata
from .methods.registry import Method, find_method
from .targets.axes import Layout, label_input
from .targets.layer import Layer, find_layer
from .targets.score import Score, find_score, image_inputs

__all__ = ["Explained", "Options", "Plan", "append_cotangent", "attach", "plan"]

Weights = Literal["auto", "linear", "gradient", "finite"]
ClassInput = Literal["optional", "required", "none"]

_QUANTISING = ("QuantizeLinear", "DynamicQuantize", "QLinear")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to explain and how.

    Attributes:
        layer: tensor, node or framework layer name, or `auto`.
        method: identifier of the method.
        weights: how the cotangent is had; `auto` takes the first of `linear`, `gradient` and `finite` that applies.
        score: `logit` explains the tensor before a trailing activation, `output` the output itself.
        output: the output that holds the scores, where several would do.
        image: the input that takes pictures, where several would do.
        class_input: `optional` for an overridable initializer, `required` for an ordinary input, `none` to fix the
            class in the graph.
        target: the class to explain with `class_input="none"`; `None` for the one with the highest score.
        expose_activation: add the activation maps to the outputs.
        labels: class names; those that the model carries by default.
        preprocessing: how pictures become the model's input; what the model carries by default.
    """

    layer: str = "auto"
    method: str = "gradcam"
    weights: Weights = "auto"
    score: Literal["logit", "output"] = "logit"
    output: str | None = None
    image: str | None = None
    class_input: ClassInput = "optional"
    target: int | None = None
    expose_activation: bool = False
    labels: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is decided before a node is added.

    Attributes:
        options: what was asked for.
        t: the builder over the normalised model.
        image: the picture.
        layout: the meaning of its axes; `None` where no convolution or pool tells.
        score: what is differentiated.
        layer: the target tensor and the other candidates.
        path: the nodes between target tensor and score.
        head: the head behind global pooling, where there is one.
        weights: how the cotangent is had.
        problems: nodes on the path that have no rule.
        hazards: nodes that an optimisation of ONNX Runtime would compute wrongly.
        method: the method.
    """

    options: Options
    t: Builder
    image: Value
    layout: Layout | None
    score: Score
    layer: Layer
    path: Sequence[ir.Node]
    head: Head | None
    weights: Literal["linear", "gradient", "finite"]
    problems: Sequence[str]
    hazards: Sequence[str]
    method: Method

    @property
    def refusal(self) -> str | None:
        """Why the plan cannot be carried out; `None` where it can."""
        if self.weights == "gradient" and self.problems:
            return f"{self.problems[0]}; choose a later layer with --layer"
        if self.weights in {"linear", "finite"} and self.head is None:
            return (
                f"--weights {self.weights} needs global average pooling right behind the layer; use --weights gradient"
            )
        if self.weights == "finite" and self.quantised is not None:
            return (
                f"--weights finite sees nothing through the rounding of {self.quantised.op_type} "
                f"({self.quantised.outputs[0].name!r}); use --weights gradient"
            )
        if self.weights == "linear" and self.head is not None and not self.head.linear:
            return f"--weights linear is not possible: {self.head.why}; use --weights gradient"
        return None

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        if not self.hazards:
            return []
        hazard = (
            f"ONNX Runtime computes {self.hazards[0]!r} (a zero Pad before a MaxPool) wrongly unless its optimisation "
            "Pad_Fusion is off; this package switches it off, other servers have to be told"
        )
        return [hazard]

    @property
    def quantised(self) -> ir.Node | None:
        """A node between target tensor and score that rounds, so that the gradient is a surrogate."""
        return next((node for node in self.path if node.op_type.startswith(_QUANTISING)), None)

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Where the picture's height and width are among the axes of the input."""
        assert self.layout is not None  # noqa: S101 - `plan` refuses a model without one
        first, second = (i for i, axis in enumerate(self.layout) if axis is not None and axis.kind == "S")
        return first, second


@dataclass(eq=False)
class Explained:
    """An explained model.

    Attributes:
        model: the model with the explanation in it.
        metadata: what it says of itself.
        reason: why this layer, in words.
        warnings: what the user should know.
    """

    model: Model
    metadata: Metadata
    reason: str
    warnings: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write the model; see `Model.save`."""
        self.model.save(path)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a proto; external weights stay references."""
        return self.model.to_proto()


def plan(source: str | Path | bytes | onnx.ModelProto, options: Options | None = None) -> Plan:
    """Decide what is explained and how.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: no score, picture or layer can be made out, or what was asked for is not there.
    """
    options = options or Options()
    model = load(source)
    said = Metadata.from_props(model.metadata)
    if said is not None:
        raise TargetError(
            f"the model is explained already (layer {said.target_tensor!r}, method {said.method}); "
            "start from the original model to explain it in another way"
        )
    work = _plan(Builder(model), options)
    target = work.layer.chosen.tensor.name
    if work.problems and work.weights != "linear" and expand_missing(model, [work.score.tensor.name], [target]):
        # Bodies of operators hold tensors that look like layers, so the choice stands as it was made before.
        again = _plan(Builder(model), replace(options, layer=target))
        return replace(again, options=options, layer=replace(again.layer, reason=work.layer.reason))
    return work


def _plan(t: Builder, options: Options) -> Plan:
    method = find_method(options.method)
    image = _image(t, options.image)
    score = find_score(t, options.output, options.score)
    carries = carries_gradient(t)
    carried = Carried.from_props(t.model.metadata)
    layer = find_layer(t, image, score.tensor, carries, options.layer, carried.layers)
    target = layer.chosen.tensor
    path, _ = between(t.nodes, [target.core], [score.tensor.core], carries)
    head = read_head(t, layer.chosen, score.tensor, path)
    problems = missing_rules(t, score.tensor, [target])
    weights = options.weights
    if weights == "auto":
        weights = "linear" if head is not None and head.linear else "gradient"
        if weights == "gradient" and problems and head is not None:
            weights = "finite"
    layout = label_input(t, image)
    if layout is None:
        raise TargetError(
            f"which axes of the input {image.name!r} are height and width cannot be told: "
            "no convolution or pooling reads it; export the model from pictures of layout NCHW or NHWC"
        )
    return Plan(options, t, image, layout, score, layer, path, head, weights, problems, _padded_pools(t), method)


def _image(t: Builder, name: str | None) -> Value:
    candidates = image_inputs(t)
    inputs = ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.inputs))
    if name is not None:
        found = next((v for v in candidates if v.name == name), None)
        if found is None:
            known = [v.name for v in candidates]
            raise TargetError(f"the model has no image input {name!r}{near_matches(name, known)} (inputs: {inputs})")
        return found
    if len(candidates) != 1:
        what = (
            "no input of rank 4 that could take a picture"
            if not candidates
            else "several inputs that could take a picture"
        )
        raise TargetError(f"the model has {what} (inputs: {inputs}); name one with --input")
    return candidates[0]


def _padded_pools(t: Builder) -> list[str]:
    """Zero Pads right before a MaxPool: ONNX Runtime folds them into the pool, which pads with minus infinity."""
    found = []
    for node in t.nodes:
        pad = node.inputs[0].producer() if node.op_type == "MaxPool" and node.inputs[0] is not None else None
        if pad is None or pad.op_type != "Pad":
            continue
        mode = pad.attributes.get("mode")
        fill = pad.inputs[2] if len(pad.inputs) > 2 else None
        value = np.zeros(()) if fill is None else t.wrap(fill).array()
        negative_zero = value is not None and bool(np.signbit(value).all()) and not np.any(value)
        if (mode is None or mode.as_string() == "constant") and not negative_zero:
            found.append(str(pad.name or pad.outputs[0].name))
    return found


def attach(source: str | Path | bytes | onnx.ModelProto, options: Options | None = None, **choices: Any) -> Explained:
    """Add the explanation to a model.

    Args:
        source: path, bytes or proto of the model.
        options: what to explain and how.
        choices: fields of `Options`, instead of `options`.

    Raises:
        ModelError: the file is not a usable model.
        TargetError: what was asked for is not in the model.
        UnsupportedError: the model cannot be explained this way.

    Example::

        attach("model.onnx", layer="auto").save("explained.onnx")
    """
    work = plan(source, options or Options(**choices))
    if work.refusal is not None:
        raise UnsupportedError(work.refusal)
    t, score = work.t, work.score
    classes, class_input, maps, gradient = append_cotangent(work)
    cam = work.method.function(t, maps, gradient)
    sizes = [work.image.shape[axis] for axis in work.spatial_axes]
    heatmap = finish(t, cam, _picture_size(t, work.image, work.spatial_axes, sizes))
    names = {name: _free_name(t, name) for name in ("heatmap", "cam", "heatmap_class")}
    batch = score.tensor.shape[0]
    t.output(t.refine(heatmap, (batch, *sizes)), names["heatmap"])
    t.output(t.refine(cam, (batch, *work.layer.chosen.grid)), names["cam"])
    t.output(t.refine(classes, (batch,)), names["heatmap_class"])
    if work.options.expose_activation:
        t.expose(work.layer.chosen.tensor)
    t.finish()
    model = t.model
    metadata = _metadata(work, class_input, names)
    model.metadata.update(metadata.to_props())
    model.check()
    return Explained(model, metadata, work.layer.reason, work.warnings)


def append_cotangent(work: Plan) -> tuple[Value, str, Value, Value]:
    """Append what every method needs.

    Returns:
        The explained class of every sample, `int64 [N]`; the name of the input that chooses it, empty where it is
        fixed; the activation maps, `float32 [N, C, *spatial]`; and their cotangent, with sizes of one along the
        spatial axes where it is the same at every place.
    """
    t, target = work.t, work.layer.chosen
    classes, class_input = _classes(t, work)
    maps = t.cast(target.canonical(t, target.tensor), np.float32)
    return classes, class_input, maps, _cotangent(t, work, maps, classes)


def _classes(t: Builder, work: Plan) -> tuple[Value, str]:
    """The explained class of every sample, `int64 [N]`, and the name of the input that chooses it."""
    score, options = work.score, work.options
    best = _best_class(t, score)
    if options.class_input == "none":
        if options.target is None:
            return best, ""
        if score.classes is not None and not 0 <= options.target < score.classes:
            raise TargetError(f"class {options.target} is out of range; the model has classes 0 to {score.classes - 1}")
        return t.op("Expand", t.ints(options.target), t.op("Shape", best), shape=best.shape), ""
    name = _free_name(t, "target_class")
    if options.class_input == "required":
        wanted = t.input(name, np.int64, (score.tensor.shape[0],))
    else:
        wanted = t.default_input(name, np.array([-1], np.int64))
    chosen = t.op("Where", wanted < t.const(0, np.int64), best, wanted)
    # Broadcasting takes several classes for one picture as well: the reshape refuses them.
    chosen = t.op("Reshape", chosen, t.shape_of(best), shape=best.shape)
    # Looking the class up in a table makes a class out of range an error instead of an empty map.
    return t.op("Gather", _every_class(t, score), chosen, shape=best.shape), name


def _every_class(t: Builder, score: Score) -> Value:
    """The numbers of all classes, `int64 [K]`."""
    if score.classes is not None:
        return t.const(np.arange(score.classes, dtype=np.int64))
    count = t.op("Squeeze", t.op("Shape", score.tensor, start=score.class_axis, end=score.class_axis + 1))
    return t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))


def _best_class(t: Builder, score: Score) -> Value:
    """The class with the highest score, `int64 [N]`."""
    batch = score.tensor.shape[0]
    if score.single_logit:
        flat = t.op("Reshape", score.tensor, t.ints(-1), shape=(batch,))
        threshold = 0.5 if score.activation == "sigmoid" and score.tensor is score.output else 0.0
        return t.cast(flat > threshold, np.int64)
    best = t.op("ArgMax", score.tensor, axis=score.class_axis, keepdims=0)
    return t.op("Reshape", best, t.ints(-1), shape=(batch,)) if best.rank != 1 else best


def _cotangent(t: Builder, work: Plan, maps: Value, classes: Value) -> Value:
    """The cotangent of the activation maps for the chosen classes, read like the maps."""
    score, head = work.score, work.head
    sign = None
    if score.single_logit:
        column = t.op("Unsqueeze", classes, t.ints(1))
        sign = t.cast(column, np.float32) * 2.0 - 1.0
    if work.weights == "linear" and head is not None:
        return linear_cotangent(t, head, score, maps, classes, sign)
    seed = _seed(t, score, classes, sign)
    if work.weights == "finite" and head is not None:
        return finite_cotangent(t, head, score, maps, seed, work.path)
    (gradient,) = backward(t, {score.tensor: seed}, [work.layer.chosen.tensor])
    return t.cast(work.layer.chosen.canonical(t, gradient), np.float32)


def _seed(t: Builder, score: Score, classes: Value, sign: Value | None) -> Value:
    """The cotangent of the score: one at the explained class, and for a single logit its sign."""
    if sign is not None:
        return t.reshape_like(t.cast(sign, score.tensor.dtype), score.tensor)
    hot = t.op("Equal", t.op("Unsqueeze", classes, t.ints(1)), _every_class(t, score))
    return t.reshape_like(t.cast(hot, score.tensor.dtype), score.tensor)


def _picture_size(t: Builder, image: Value, axes: tuple[int, int], sizes: Sequence[int | str | None]) -> Value:
    if all(isinstance(size, int) for size in sizes):
        return t.ints(*(size for size in sizes if isinstance(size, int)))
    return t.op("Gather", t.op("Shape", image), t.ints(*axes))


def _free_name(t: Builder, name: str) -> str:
    """`name`, or with a prefix where the model has a tensor of that name already."""
    while t.taken(name):
        name = f"gradcam_{name}"
    return name


def _metadata(work: Plan, class_input: str, names: Mapping[str, str]) -> Metadata:
    carried, options = Carried.from_props(work.t.model.metadata), work.options
    assert work.layout is not None  # noqa: S101 - `plan` refuses a model without one
    spatial = iter("HW")
    layout = "".join(axis.kind if axis and axis.kind != "S" else next(spatial) for axis in work.layout)
    return Metadata(
        version=__version__,
        method=work.method.name,
        preset="default",
        weights=work.weights,
        derivative="straight-through" if work.quantised is not None else "exact",
        target_tensor=work.layer.chosen.tensor.name,
        score_tensor=work.score.tensor.name,
        image_input=work.image.name,
        layout=layout,
        scores_output=work.score.output.name,
        activation=work.score.activation,
        single_logit=work.score.single_logit,
        class_input=class_input,
        labels=list(options.labels) if options.labels is not None else carried.labels,
        preprocessing=dict(options.preprocessing) if options.preprocessing is not None else carried.preprocessing,
        disabled_optimizers=["Pad_Fusion"] if work.hazards else [],
        **names,
    )
