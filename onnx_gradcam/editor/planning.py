"""Decide what is explained and how: options completed by what the file says, then everything that a plan holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.backward import carries_gradient, missing_rules
from onnx_gradcam.autodiff.expand import expand_missing
from onnx_gradcam.autodiff.providers import find_profile
from onnx_gradcam.errors import InputError, ModelError, TargetError, UnsupportedError, near_matches
from onnx_gradcam.feeds import Declared, read_constant
from onnx_gradcam.files import ModelSource
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.decompose import unknown_operator
from onnx_gradcam.graph.hazards import hazards
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import Carries, between, carries_content
from onnx_gradcam.graph.read import invalid_models_refused
from onnx_gradcam.images.preprocessing import MAX_PIXELS, parse_preprocessing
from onnx_gradcam.metadata import OWN, Carried, Metadata
from onnx_gradcam.options import Options

from .head import Head, read_head
from .methods.catalogue import Method, Variable, find_method
from .origins import Statements, read_statements
from .plan import Plan, modified
from .presets import find_preset
from .targets.axes import Layout, channels_first, label_input, letters
from .targets.classes import check_class, check_labels, find_class, read_labels
from .targets.extent import CUTS, edges, follow_extents
from .targets.layer import Candidate, Layer, blocked, follow_paths
from .targets.levels import find_layers
from .targets.score import (
    OBJECTIVES,
    Aim,
    Score,
    aimed_score,
    alone,
    find_image,
    find_score,
    has_single_image,
    image_inputs,
    input_layout,
    input_name,
    scores_at,
    single_scores,
    unranked,
    with_batch_axis,
)
from .targets.task import SCORES, USUAL_TASK, Task, expose, find_task, usual_task

__all__ = ["as_exported", "chosen_method", "image_input", "make_plan", "with_class_scores"]


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
    if options.bake:
        _bake(model, options.bake, options.image or Carried.from_props(model.metadata).image_input or None)
    with_batch_axis(model, options.image or Carried.from_props(model.metadata).image_input or None)
    options = as_exported(model, options, statements)
    task = find_task(options.task or USUAL_TASK)
    completed = _resolved(statements, options, task)
    names = completed.labels or (statements.labels if task.names_apply else None)
    options, aim = with_class_scores(model, replace(completed, labels=names), task)
    options = replace(options, labels=completed.labels)
    plan = _plan(Builder(model), options, task, aim)
    targets = [value.name for value in plan.targets]
    ends = [plan.image.name] if _from_image(plan.method) else targets
    if plan.problems and plan.weights != "linear" and expand_missing(model, [plan.score.tensor.name], ends):
        # Expanded operators contain tensors that look like layers, so the earlier choice is kept.
        expanded = _plan(Builder(model), replace(options, layer=targets), task, aim)
        pairs = zip(expanded.layers, plan.layers, strict=True)
        layers = tuple(replace(new, reason=old.reason) for new, old in pairs)
        plan = replace(expanded, options=options, layers=layers)
    return _completed(plan, statements, chosen)


def _from_image(method: Method) -> bool:
    """Whether a method looks at all nodes from the image on, and not only behind the layer."""
    return method.differentiates("image") or method.of_attention


def _bake(model: Model, given: Mapping[str, Any], image: str | None) -> None:
    """Make inputs constants, in place; what has a row for every image is repeated for each of them."""
    t = Builder(model)
    photos = [v for v in image_inputs(t) if v.name not in given and image in {None, v.name}]
    batch = photos[0].shape[0] if len(photos) == 1 and photos[0].rank == 4 else None
    inputs = {v.name: v for v in map(t.wrap, t.graph.inputs)}
    for name, value in given.items():
        info = inputs.get(name)
        if info is None or name == image:
            raise TargetError(
                f"there is no other input {name!r} to bake{near_matches(name, inputs) or f'; it has {[*inputs]}'}"
            )
        shape = info.known_shape
        if shape is None or info.dtype is None:
            raise TargetError(
                f"the input {name!r} has no declared type and shape, so no constant fits; feed it instead"
            )
        by_row = batch is not None and bool(shape) and shape[0] == batch
        dtype = "string" if info.dtype.kind == "O" else info.dtype.name
        array = read_constant(value, Declared(name, dtype, tuple(shape)), by_row=by_row)
        constant = t.const(np.repeat(array, batch, axis=0) if by_row and isinstance(batch, int) else array)
        if by_row and not isinstance(batch, int):
            sizes = t.op("Concat", t.op("Shape", photos[0], start=0, end=1), t.ints(*array.shape[1:]), axis=0)
            constant = t.sized_as(info.core, t.op("Expand", constant, sizes))
        ir.convenience.replace_all_uses_with(info.core, constant.core)
        t.graph.inputs.remove(info.core)
    t.finish()
    t.graph.sort()


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
    words = Carried.from_props(plan.t.model.metadata).probabilities
    return replace(plan, labels=labels, preprocessing=described, probabilities=words, remarks=remarks)


def _refuse_names(options: Options) -> None:
    """Refuse classes given by names that turned out not to be the model's."""
    for name in (options.target, None if options.against in OBJECTIVES else options.against):
        if name is not None:
            find_class(name, None)


def image_input(source: ModelSource, image: str | None = None) -> tuple[str, str]:
    """The name of the image input, and its axes as in `Metadata.layout`; `image` names one of several."""
    model = load(source)
    with_batch_axis(model, image)
    t = Builder(model)
    value = find_image(t, image)
    return input_name(value), input_layout(value, _image_layout(t, value, at_layer=False))


def _plan(t: Builder, options: Options, task: Task, aim: Aim | None) -> Plan:
    method, preset = chosen_method(options), find_preset(options.preset)
    find_profile(options.profile)
    image = find_image(t, options.image)
    assert options.output is None or isinstance(options.output, str)  # noqa: S101 - `with_class_scores` leaves one
    if aim is None:
        score = find_score(t, options.output, options.score or preset.score, added=_added(t, task, options))
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
    modifier = options.modifier or method.modifier or preset.modifier
    table = modified(t, image, options.profile, modifier)
    problems = missing_rules(t, score.tensor, [image] if _from_image(method) else targets, table)
    weights = _weights(options, method, None if modifier else head, problems)
    batches = {v.probe_shape[0] for v in (image, score.tensor) if v.probe_shape is not None}
    if len(batches) > 1:
        raise TargetError(
            f"the first axis of the score {score.tensor.name!r} {list(score.tensor.shape)} is not the batch of the "
            f"input {image.name!r}, as where frames or tiles are folded into the batch; name another output with "
            "--output, or export the model with one row of scores for each sample"
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
    if letters(layout) not in {"NCHW", "NHWC"}:
        return [], next(node for node in path if node.op_type in CUTS)
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
    if image.rank == 4 and not letters(layout).startswith("N"):
        raise TargetError(
            f"convolutions read the first axis of the input {input_name(image)!r} as {letters(layout)[0]!r} of "
            f"{letters(layout)}, as where frames are folded into the batch; export the model for one frame"
        )
    if letters(layout) == "NDHW" and image.shape[1] in {1, 3}:
        raise TargetError(
            f"the model makes an image of each channel of the input {image.name!r}, {list(image.shape)}, so a "
            "map has no place for them; choose a method that looks at no layer with --method, such as saliency"
        )
    if image.rank == 4 and letters(layout) not in {"NCHW", "NHWC", "NDHW"}:
        raise TargetError(
            f"the axes of the input {input_name(image)!r} are {letters(layout)}, but images are given as NCHW or NHWC; "
            "export the model with its height before its width"
        )
    sizes = [d for d, axis in zip(image.shape, layout, strict=True) if axis and axis.kind == "S" and isinstance(d, int)]
    if math.prod(sizes) > MAX_PIXELS:
        raise TargetError(
            f"the input {image.name!r} is an image of {' x '.join(map(str, sizes))} pixels, above the limit of "
            f"{MAX_PIXELS} pixels; export the model for a smaller image"
        )
    return layout


def as_exported(model: Model, options: Options, statements: Statements) -> Options:
    """The image, and the task with its outputs, that the model was exported for, where the user names none.

    Class names tell what the outputs of a detector are; `statements` may bring them.
    """
    carried = Carried.from_props(model.metadata)
    own = carried.task
    if not own:
        labels = statements.labels if options.labels is None else read_labels(options.labels)
        own = USUAL_TASK if options.task else usual_task(Builder(model), replace(options, labels=labels))
    task = options.task or own
    outputs = carried.outputs if task == own else []
    return replace(
        options, task=task, output=options.output or outputs or None, image=options.image or carried.image_input or None
    )


def _resolved(statements: Statements, options: Options, task: Task) -> Options:
    """Class names and preprocessing read, the names of classes as indices; without those that others stored."""
    known = statements.labels if task.names_apply else None
    own = statements.origin("labels") == OWN
    labels = (known if own else None) if options.labels is None else read_labels(options.labels)
    against, target = options.against, options.target
    if against is not None and against not in OBJECTIVES:
        against = find_class(against, labels or known)
    if target is not None:
        target = find_class(target, labels or known)
    described = statements.preprocessing if statements.origin("preprocessing") == OWN else None
    if options.preprocess is not None:
        described = parse_preprocessing(options.preprocess).to_dict()
    return replace(options, labels=labels, preprocess=described, against=against, target=target)


def chosen_method(options: Options) -> Method:
    """The method that the options name, else the task's own, else the first that the preset stands for."""
    if options.method is not None:
        return find_method(options.method)
    preset, own = find_preset(options.preset), find_task(options.task or USUAL_TASK).method
    return find_method(own if preset.methods is None or own in preset.methods else next(iter(preset.methods)))


def with_class_scores(model: Model, options: Options, task: Task) -> tuple[Options, Aim | None]:
    """Append one score per class for a task that has none; the options that explain these, and what it aims at."""
    outputs = [options.output] if isinstance(options.output, str) else list(options.output or ())
    if len(outputs) > 1 and not task.several_outputs:
        raise TargetError(
            f"--output was given {len(outputs)} times, but only a detector's scores are in several outputs"
        )
    t = Builder(model)
    if options.at is not None and task.scores is not None:
        raise TargetError(f"--at chooses among the scores of a classifier, and the task is {task.name}; leave it out")
    if task.scores is not None:
        aim = task.scores(t, options, options.score or find_preset(options.preset).score)
        t.finish()
        return replace(options, output=SCORES), aim
    output = outputs[0] if outputs else None
    if options.at is not None:
        usual_task(t, options)
        single: Value | None = scores_at(t, options.at, output)
    else:
        single = single_scores(t, output) if has_single_image(t, options.image) else alone(t, output)
    if single is not None:
        expose(t, single)
        t.finish()
        return replace(options, output=SCORES), None
    scores = unranked(t, output) if task.classes_compete else None
    if scores is None:
        return replace(options, output=output), None
    if scores.core.is_graph_output():
        return replace(options, output=scores.name), None
    expose(t, scores)
    t.finish()
    return replace(options, output=SCORES), None


def _added(t: Builder, task: Task, options: Options) -> str:
    """What the output with the scores holds, if it was added to the model."""
    if options.output != SCORES:
        return ""
    if task.scores is not None:
        return f"added for this task: {task.about}"
    if options.at is not None:
        return f"added: the scores at place {options.at}"
    return f"added: the scores {'with a batch axis' if has_single_image(t, options.image) else 'that outputs rank'}"
