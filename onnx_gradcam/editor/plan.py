"""Decide what is explained and how, and refuse what cannot be explained, before any node is added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient, missing_rules
from onnx_gradcam.autodiff.expand import expand_missing
from onnx_gradcam.autodiff.modifiers import MODIFIERS
from onnx_gradcam.autodiff.providers import find_profile
from onnx_gradcam.autodiff.registry import Table
from onnx_gradcam.errors import InputError, ModelError, TargetError, UnsupportedError
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.decompose import unknown_operator
from onnx_gradcam.graph.hazards import hazards
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import Carries, between, carries_content, row_coupling
from onnx_gradcam.graph.read import invalid_models_refused
from onnx_gradcam.images.preprocessing import MAX_PIXELS, parse_preprocessing
from onnx_gradcam.metadata import ONE_AT_A_TIME, Carried, Metadata
from onnx_gradcam.options import Combine, Options

from .head import Head, read_head
from .methods.catalogue import Method, Variable
from .origins import Statements, read_statements
from .presets import Preset, find_preset
from .resolution import added, as_exported, chosen_method, resolved, with_class_scores
from .targets.axes import Layout, channels_first, label_input, letters
from .targets.classes import check_class, check_labels, find_class, read_labels
from .targets.extent import CUTS, edges, follow_extents
from .targets.layer import Candidate, Layer, blocked, follow_paths
from .targets.layer_names import biases_of
from .targets.levels import find_layers
from .targets.score import OBJECTIVES, Aim, Detections, Objective, Score, against, aimed_score, find_image, find_score
from .targets.task import SCORES, USUAL_TASK, Task, find_task

__all__ = ["Plan", "image_input", "make_plan"]

_ALL_AT_ONCE = ("gradcam", "hirescam")
"""Methods whose map is the product of weights and activation maps if the head is linear."""

_TRAINING = {
    "BatchNormalization": "normalizes by the statistics of the batch",
    "Dropout": "is an active Dropout, which ONNX Runtime leaves out",
}
"""What nodes in training mode do."""

_MERGED = {"merged": "merged", "unknown": "may have merged"}
"""What exporters did with biases, by the state of `Biases`."""

_QUANTISING = ("QuantizeLinear", "DynamicQuantize", "QLinear", "Sign")


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Everything that is decided before a node is added.

    Attributes:
        options: the options, names resolved.
        task: what the model does.
        t: the builder over the normalized model.
        image: the image input.
        layout: the meaning of its axes.
        score: what is differentiated.
        layers: the target tensors and the other candidates; the image for methods that look at no layer.
        path: the nodes between the target tensors and the score.
        head: the head behind global pooling, if there is one.
        weights: how the gradient of the layer is computed; `none` if the method needs none.
        problems: why the gradient cannot be computed, one sentence for each node on the path without a rule.
        hazards: optimizations of ONNX Runtime that this graph has to do without, with the reason.
        dropped: the operator that was cut off, since only another runtime has it; empty for none.
        detections: the boxes, for a detector.
        method: the method.
        preset: the conventions.
        labels: the class names, if known.
        preprocessing: how an image becomes the model's input, if known.
        extent: the part of the image that the layer's maps cover, as in `Metadata.extent`.
        cut: the node whose crop or padding of the image cannot be followed to the layer, if any.
        remarks: what the file or its neighbours say that is not used, one sentence each.
    """

    options: Options
    task: Task
    t: Builder
    image: Value
    layout: Layout
    score: Score
    layers: tuple[Layer, ...]
    path: Sequence[ir.Node]
    head: Head | None
    weights: Literal["linear", "gradient", "finite", "none"]
    problems: Sequence[str]
    hazards: Mapping[str, str]
    dropped: str
    detections: Detections | None
    method: Method
    preset: Preset
    labels: list[str] | None
    preprocessing: dict[str, Any] | None
    extent: list[list[float]]
    cut: ir.Node | None
    remarks: Sequence[str] = field(default=())

    @property
    def layer(self) -> Layer:
        """The (first) target tensor."""
        return self.layers[0]

    @property
    def targets(self) -> list[Value]:
        """The target tensors."""
        return [layer.chosen.tensor for layer in self.layers]

    @property
    def combine(self) -> Combine | None:
        """How the maps of several layers become one; `None` for the preset's way."""
        chosen = self.options.combine or self.method.combine
        if chosen is None and self.has_levels and self.method.additive and self.preset.methods is None:
            return "sum"
        return chosen

    @property
    def has_levels(self) -> bool:
        """Whether the layers are a set that was chosen together."""
        automatic = self.options.layer == "auto" or list(self.options.layer) == ["auto"]
        return automatic and len(self.layers) > 1

    @property
    def image_candidate(self) -> Candidate:
        """The image input, as a candidate like a layer."""
        return Candidate(self.image, self.layout, every_path=True)

    @property
    def modifier(self) -> str | None:
        """How rectifiers pass the gradient back."""
        return self.options.modifier or self.method.modifier or self.preset.modifier

    @property
    def objective(self) -> Objective | None:
        """What is differentiated instead of the score of one class; `None` for that score."""
        other = self.options.against
        if other is None:
            return None if self.method.objective == "class" else OBJECTIVES[self.method.objective]
        return against(other) if isinstance(other, int) else OBJECTIVES[other]

    @property
    def fixed_class(self) -> int | None:
        """The class that is fixed in the model, if any."""
        target = self.options.target
        return None if target is None else int(target)

    def table(self, modifier: str | None) -> Table:
        """The rules of the backward pass."""
        table = find_profile(self.options.profile).rules()
        return table if modifier is None else MODIFIERS[modifier](table)

    @property
    def refusal(self) -> str | None:
        """Why the plan cannot be carried out; `None` where it can."""
        return next(self._refusals(), None)

    def _refusals(self) -> Iterator[str]:
        yield from self._not_the_librarys
        yield from self._without_boxes
        title, head = self.method.title, self.head
        if self.method.linear_head and self.weights != "linear":
            yield (
                f"{title} is defined for models that end in pooling and one linear layer; "
                "use --method gradcam, which computes the same map there and supports every head"
            )
        if self.task.takes_mask(self.options) and self.method.runs_often:
            yield f"{title} runs the model many times and cannot pass a region to it; use --mask own or all"
        if self.options.class_input == "all" and (why := self._not_all_at_once):
            yield f"the maps of all classes at once {why}; explain one class at a time with --class-input optional"
        if self.weights == "gradient" and self.problems:
            yield f"{self.problems[0]}; choose a later layer with --layer"
        if self.method.reruns_head and (self.objective is not None or len(self.layers) > 1):
            yield f"{title} runs the head of one layer for the score of one class; name one layer, without a comparison"
        if self.options.eigen_smooth and not self.method.smoothable:
            yield f"eigen smoothing applies to methods that sum weighted activation maps, and {title} is not one"
        if self.weights == "finite" and self.method.second_order:
            yield f"{title} needs derivatives of derivatives; use --weights gradient"
        if self.weights in {"linear", "finite"} and self.modifier is not None:
            yield f"--weights {self.weights} has no rectifier to change for {self.modifier}; use --weights gradient"
        if self.weights in {"linear", "finite"} and head is None:
            yield (
                f"--weights {self.weights} needs global average pooling right behind the layer; use --weights gradient"
            )
        if self.weights == "finite" and self.quantised is not None:
            yield (
                f"--weights finite sees nothing through the rounding of {self.quantised.op_type} "
                f"({self.quantised.outputs[0].name!r}); use --weights gradient"
            )
        if self.weights == "linear" and head is not None and not head.linear:
            yield f"--weights linear is not possible: {head.why}; use --weights gradient"

    @property
    def _not_the_librarys(self) -> list[str]:
        """Why the numbers would not be those of the preset's library; empty if they are."""
        if self.preset.detectors and not self.task.boxes:
            return [
                f"--preset {self.preset.name} stands for the maps of detectors, and this model is none; leave it out"
            ]
        producer = self.layer.chosen.tensor.core.producer()
        why = self.preset.refusal(
            self.method.name,
            len(self.layers),
            "" if producer is None else producer.op_type,
            eigen_smooth=self.options.eigen_smooth,
        )
        return [why] if why else []

    @property
    def _without_boxes(self) -> list[str]:
        """Why boxes cannot be compared."""
        if not self.method.of_boxes or (self.detections is not None and self.detections.boxes):
            return []
        what = f"{self.method.title} compares the places of boxes, which this model does not tell"
        return [f"{what}; use --method rise or hirescam"]

    @property
    def _not_all_at_once(self) -> str:
        """Why one product cannot compute the maps of all classes; empty if it can."""
        if self.weights != "linear":
            return "need a head of pooling and one linear layer, and this model has another one"
        if self.method.name not in _ALL_AT_ONCE or self.preset.cotangent is not None or self.options.eigen_smooth:
            return f"need {' or '.join(_ALL_AT_ONCE)} with plain gradients"
        if self.objective is not None:
            return "leave no class to compare with"
        return ""

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        coupled = [ONE_AT_A_TIME] if self.couples_rows else []
        caution = [self.preset.caution] if self.preset.caution else []
        asides = [*self._hazard, *self._missing, *self._training, *coupled, *self._unfollowed, *self._scattered]
        asides += self._merged
        return [*self.remarks, *asides, *caution]

    @property
    def _scattered(self) -> list[str]:
        if not self.task.boxes or self.method.name != "gradcam":
            return []
        averaged = "Grad-CAM averages gradients over all positions, so that the map of one box marks other objects too"
        return [f"{averaged}; --method hirescam does not"]

    @property
    def _merged(self) -> list[str]:
        """That biases which the method needs apart were merged, by the exporter's record or else by names."""
        if not self.method.per_bias:
            return []
        recorded = Carried.from_props(self.t.model.metadata).biases
        nodes = {biases_of(node): node for node in reversed(self.path)}
        states = (recorded,) if recorded else nodes
        verb = next((verb for state, verb in _MERGED.items() if state in states), None)
        if verb is None:
            return []
        node = nodes.get("merged", nodes.get("unknown"))
        where = "" if node is None else f" (node {str(node.name or node.outputs[0].name)[:99]!r})"
        what = f"the exporter {verb} biases of convolutions{where} with those of the batch normalizations behind them"
        remedy = "export the model with its normalizations, from PyTorch with --keep-normalization"
        return [f"{what}, and {self.method.title} counts a merged pair once; {remedy}"]

    @property
    def _training(self) -> list[str]:
        active = {node.op_type: node for node in reversed(self.t.nodes) if self._trains(node)}
        if not active:
            return []
        named = ", ".join(
            f"{str(node.name or node.outputs[0].name)!r} {_TRAINING[kind]}" for kind, node in active.items()
        )
        return [f"the model was exported in training mode ({named}); export it for inference, as with model.eval()"]

    def _trains(self, node: ir.Node) -> bool:
        """Whether a node computes what it computes in training."""
        if node.op_type == "Dropout":
            mode = None if len(node.inputs) < 3 or node.inputs[2] is None else self.t.wrap(node.inputs[2]).array()
            return mode is not None and bool(mode.any())
        return node.op_type == "BatchNormalization" and bool(node.attributes.get_int("training_mode", 0))

    @property
    def couples_rows(self) -> bool:
        """Whether the model's results for a row depend on the other rows of a batch."""
        return self.image.shape[0] != 1 and row_coupling(self.t.nodes) is not None

    @property
    def _missing(self) -> list[str]:
        if not self.dropped:
            return []
        reason = "since ONNX Runtime has no such operator; what it reads are outputs instead"
        return [f"{self.dropped} and its outputs are not part of the explained model, {reason}"]

    @property
    def _hazard(self) -> list[str]:
        remedy = "is disabled; this package disables it, other servers need to be configured"
        return [f"{why} unless its optimization {name} {remedy}" for name, why in self.hazards.items()]

    @property
    def _unfollowed(self) -> list[str]:
        if self.cut is None:
            return []
        node = f"{self.cut.op_type} (node {self.cut.name or self.cut.outputs[0].name!r})"
        unfollowed = (
            f"how {node} crops or pads the image cannot be followed, so the heatmap is stretched over the whole input; "
            "crop before the model instead"
        )
        return [unfollowed]

    @property
    def quantised(self) -> ir.Node | None:
        """A node between target tensor and score that rounds, so that the gradient is a surrogate."""
        return next((node for node in self.path if node.op_type.startswith(_QUANTISING)), None)

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """Where the image's height and width are among the axes of the input."""
        shown = letters(self.layout)
        return shown.index("H"), shown.index("W")


def make_plan(source: ModelSource, options: Options | None = None) -> Plan:
    """Decide what is explained and how.

    Raises:
        InputError: class names or preprocessing that cannot be read or do not fit the model.
        ModelError: the file is not a usable model.
        TargetError: the score, image or layer cannot be determined, or the model has no such thing.
        UnsupportedError: an unknown operator hides the shapes behind it, or step functions stop every gradient.
    """
    options = options or Options()
    with invalid_models_refused(source):
        model = load(source)
        automatic = options.layer == "auto" and options.output is None
        hidden = unknown_operator(model, model.core.graph) if automatic else None
        try:
            plan = _planned(model, options)
        except (ModelError, TargetError) as exc:
            if hidden is None:
                raise
            raise UnsupportedError(hidden) from exc
        if hidden is not None:
            path, _ = between(plan.t.nodes, [plan.image.core], [plan.score.tensor.core], carries_content)
            hidden = unknown_operator(model, path)
        if hidden is not None:
            raise UnsupportedError(hidden)
        return plan


def _planned(model: Model, options: Options) -> Plan:
    metadata = Metadata.from_props(model.metadata)
    if metadata is not None:
        raise TargetError(
            f"the model is explained already (layer {metadata.target_tensor!r}, method {metadata.method}); "
            "start from the original model to explain it in another way"
        )
    statements, chosen = read_statements(model.metadata, model.folder), options
    if options.labels is not None:
        options = replace(options, labels=read_labels(options.labels))
    options = as_exported(model, options, statements)
    task = find_task(options.task or USUAL_TASK)
    completed = resolved(statements, options, task)
    names = completed.labels or (statements.labels if task.names_apply else None)
    options, aim = with_class_scores(model, replace(completed, labels=names), task)
    options = replace(options, labels=completed.labels)
    plan = _plan(Builder(model), options, task, aim)
    targets = [value.name for value in plan.targets]
    ends = [plan.image.name] if plan.method.differentiates("image") else targets
    if plan.problems and plan.weights != "linear" and expand_missing(model, [plan.score.tensor.name], ends):
        # Expanded operators contain tensors that look like layers, so the earlier choice is kept.
        expanded = _plan(Builder(model), replace(options, layer=targets), task, aim)
        pairs = zip(expanded.layers, plan.layers, strict=True)
        layers = tuple(replace(new, reason=old.reason) for new, old in pairs)
        plan = replace(expanded, options=options, layers=layers)
    return _completed(plan, statements, chosen)


def _completed(plan: Plan, statements: Statements, chosen: Options) -> Plan:
    """The plan with what the file and its neighbours say, where the user chose nothing and it fits the model."""
    labels, described = plan.labels, plan.preprocessing
    remarks = [] if chosen.labels is not None and chosen.preprocess is not None else statements.remarks
    if labels is None and plan.task.names_apply and statements.labels is not None:
        try:
            check_labels(statements.labels, plan.score.classes)
            labels = statements.labels
        except InputError as exc:
            remarks.append(f"the class names of {statements.origin('labels')} are not used: {exc}")
            _refuse_names(chosen)
    if described is None and statements.preprocessing is not None:
        image = plan.image
        try:
            parsed = parse_preprocessing(statements.preprocessing)
            parsed.for_input(letters(plan.layout), image.shape, str(image.dtype))
            described = parsed.to_dict()
        except InputError as exc:
            remarks.append(f"the preprocessing of {statements.origin('preprocessing')} is not used: {exc}")
    if chosen.task is None and statements.task not in {"", plan.task.name}:
        remarks.append(
            f"{statements.origin('task')} says that the model does {statements.task}, but it is explained as "
            f"{plan.task.name}; choose with --task"
        )
    return replace(plan, labels=labels, preprocessing=described, remarks=remarks)


def _refuse_names(options: Options) -> None:
    """Refuse classes given by names that turned out not to be the model's."""
    for name in (options.target, None if options.against in OBJECTIVES else options.against):
        if name is not None:
            find_class(name, None)


def image_input(source: ModelSource, image: str | None = None) -> tuple[str, str]:
    """The name of the image input, and its axes, `NCHW` or `NHWC`; `image` names one of several."""
    t = Builder(load(source))
    value = find_image(t, image)
    return value.name, letters(_image_layout(t, value, at_layer=False))


def _plan(t: Builder, options: Options, task: Task, aim: Aim | None) -> Plan:
    method, preset = chosen_method(options), find_preset(options.preset)
    find_profile(options.profile)
    image = find_image(t, options.image)
    assert options.output is None or isinstance(options.output, str)  # noqa: S101 - `with_class_scores` leaves one
    if aim is None:
        score = find_score(t, options.output, options.score or preset.score, added=added(task, options))
    else:
        score = aimed_score(t, SCORES, aim)
    if score.single_logit and not task.classes_compete:
        score = _one_value(score)
    carries = _carries(t, image, score.tensor, method)
    layout = _image_layout(t, image, at_layer=method.needs_layer)
    layers = _layers(t, Candidate(image, layout, every_path=True), score, carries, method, options, task)
    targets = [layer.chosen.tensor for layer in layers]
    path, _ = between(t.nodes, [v.core for v in targets], [score.tensor.core], carries)
    extent, cut = _extent(t, image, layout, targets, carries, method)
    alone = len(layers) == 1 and method.needs_layer
    head = read_head(t, layers[0].chosen, score.tensor, path) if alone else None
    problems = missing_rules(t, score.tensor, [image] if method.differentiates("image") else targets)
    modified = (options.modifier or method.modifier or preset.modifier) is not None
    weights = _weights(options, method, None if modified else head, problems)
    batches = {v.probe_shape[0] for v in (image, score.tensor) if v.probe_shape is not None}
    if len(batches) > 1:
        raise TargetError(
            f"the first axis of the score {score.tensor.name!r} {list(score.tensor.shape)} is not the batch of the "
            f"input {image.name!r}; name another output with --output"
        )
    _check_other_class(score, options, method)
    labels = cast("list[str] | None", options.labels)
    check_labels(labels, score.classes)
    return Plan(
        options=options,
        task=task,
        t=t,
        image=image,
        layout=layout,
        score=score,
        layers=layers,
        path=path,
        head=head,
        weights=weights,
        problems=problems,
        hazards=hazards(t),
        dropped=aim.cut if aim is not None else "",
        detections=aim.detections if aim is not None else None,
        method=method,
        preset=preset,
        labels=labels,
        preprocessing=cast("dict[str, Any] | None", options.preprocess),
        extent=extent,
        cut=cut,
    )


def _extent(
    t: Builder, image: Value, layout: Layout, targets: Sequence[Value], carries: Carries, method: Method
) -> tuple[list[list[float]], ir.Node | None]:
    """The part of the image that the targets cover; and the node where that cannot be told."""
    path, _ = between(t.nodes, [image.core], [v.core for v in targets], carries)
    if not any(node.op_type in CUTS for node in path):
        return [], None
    found, lost = follow_extents(t, image, layout)
    on_path = set(path)
    cut = next((node for node in lost if node in on_path), None)
    missing = any(v.core not in found for v in targets)
    extents = [edges(found[v.core]) if v.core in found else [] for v in targets]
    if any(extent != extents[0] for extent in extents):
        raise UnsupportedError(
            "the layers cover different parts of the image, which the model crops or pads; name layers of one part"
        )
    if extents[0] and method.family == "attribution":
        raise UnsupportedError(
            f"{method.title} spreads the layer's map over the whole image, which the model crops or pads; use --method "
            "gradcam"
        )
    return extents[0], cut if missing else None


def _carries(t: Builder, image: Value, score: Value, method: Method) -> Carries:
    """What a path is for a method: differentiable operators if it takes a gradient, or if there is such a path anyway.

    A path of differentiable operators leaves out ranks, masks and indices, which makes for later layers.
    """
    carries = carries_gradient(t)
    if between(t.nodes, [image.core], [score.core], carries)[0]:
        return carries
    if method.differentiates("image"):
        raise UnsupportedError(blocked(t, image, score, carries))
    return carries if any(ingredient.gradient_of for ingredient in method.ingredients) else carries_content


def _one_value(score: Score) -> Score:
    """A single number that decides between no classes: the one class is the number itself."""
    reason = score.reason.replace("class 1 is the number itself, class 0 its complement", "it is explained itself")
    return replace(score, single_logit=False, classes=1, reason=reason)


def _check_other_class(score: Score, options: Options, method: Method) -> None:
    """Refuse a comparison without a second class."""
    if options.against is None and method.objective == "class":
        return
    if score.single_logit:
        raise TargetError("with a single logit each class is the other's opposite; leave out the comparison")
    other = options.against
    if isinstance(other, str) and other not in OBJECTIVES:
        raise TargetError(f"there is no class or objective {other!r} to compare with; give the number of a class")
    if isinstance(other, int):
        check_class(other, score.classes)


def _layers(
    t: Builder, image: Candidate, score: Score, carries: Carries, method: Method, options: Options, task: Task
) -> tuple[Layer, ...]:
    """The target tensors, each once."""
    if not method.needs_layer:
        return (Layer(image, f"{method.title} looks at the image", ()),)
    carried = Carried.from_props(t.model.metadata)
    # The maps of a segmentation are its answer; the layer is one they are computed from.
    classes = score.classes if task.maps_are_scores else None
    paths = follow_paths(t, image.tensor, score.tensor, carries)
    layers: dict[str, Layer] = {}
    for name in [options.layer] if isinstance(options.layer, str) else options.layer:
        exported = carried.target_layer if name == "auto" else ""
        found = find_layers(
            paths, exported or name, carried.tensors, classes, boxes=task.boxes, several=method.combines
        )
        if exported:
            found = tuple(
                replace(layer, reason=f"layer {exported!r}, which the model was exported with") for layer in found
            )
        for layer in found:
            _check_positions(layer.chosen)
            layers.setdefault(layer.chosen.tensor.name, layer)
    return tuple(layers.values())


def _check_positions(chosen: Candidate) -> None:
    """Refuse activation maps that damaged sizes make larger than any image."""
    sizes = [d for d in chosen.grid if isinstance(d, int)]
    if math.prod(sizes) > MAX_PIXELS:
        raise TargetError(
            f"layer {chosen.tensor.name!r} has {' x '.join(map(str, sizes))} positions, more than an image has pixels; "
            "choose another layer"
        )


def _weights(
    options: Options, method: Method, head: Head | None, problems: Sequence[str]
) -> Literal["linear", "gradient", "finite", "none"]:
    """How the gradient of the layer is computed: as the user says, else the first way that applies."""
    if not any(map(method.differentiates, get_args(Variable))):
        return "none"
    if options.weights != "auto":
        return options.weights
    if not method.differentiates("layer") or method.differentiates("image") or head is None:
        return "gradient"
    if head.linear:
        return "linear"
    return "finite" if problems else "gradient"


def _image_layout(t: Builder, image: Value, *, at_layer: bool) -> Layout:
    """The layout of the image input; without convolutions it is NCHW for methods that look at no layer."""
    layout = label_input(t, image)
    if layout is None and image.shape[1] in {1, 3}:
        if at_layer:
            raise TargetError(
                f"no convolution or pooling reads the input {image.name!r}, so there is no tensor with spatial "
                "positions; choose a method that looks at no layer, such as saliency, gradient or occlusion"
            )
        layout = channels_first(image.rank)
    if layout is None:
        raise TargetError(
            f"which axes of the input {image.name!r} are height and width cannot be told: "
            "no convolution or pooling reads it; export the model from images of layout NCHW or NHWC"
        )
    if letters(layout) not in {"NCHW", "NHWC"}:
        raise TargetError(
            f"the axes of the input {image.name!r} are {letters(layout)}, but images are given as NCHW or NHWC; "
            "export the model with its height before its width"
        )
    sizes = [d for d, axis in zip(image.shape, layout, strict=True) if axis and axis.kind == "S" and isinstance(d, int)]
    if math.prod(sizes) > MAX_PIXELS:
        raise TargetError(
            f"the input {image.name!r} is an image of {' x '.join(map(str, sizes))} pixels, above the limit of "
            f"{MAX_PIXELS} pixels; export the model for a smaller image"
        )
    return layout
