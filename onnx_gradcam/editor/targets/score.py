"""What is differentiated: the tensor with the class scores, and functions of several scores (objectives)."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.paths import QUANTISATION, RESHAPES, VIEWS, keeps_order
from onnx_gradcam.graph.shapes import TensorInfo

from .axes import Layout, label_input, letters
from .detectors.columns import kind_of
from .detectors.selection import why_no_classes

__all__ = [
    "OBJECTIVES",
    "WEIGHED",
    "Aim",
    "Detections",
    "Objective",
    "Score",
    "against",
    "aimed_score",
    "find_image",
    "find_score",
]
__all__ += [
    "alone",
    "has_single_image",
    "image_inputs",
    "input_layout",
    "input_name",
    "scores_at",
    "single_scores",
    "unranked",
    "with_batch_axis",
]

Activation = Literal["softmax", "logsoftmax", "sigmoid", ""]

_RANKINGS = {"TopK", "ArgMax", "ReduceMax"}
"""Operators that leave the highest of the class scores, or their classes."""

_ACTIVATIONS: dict[str, Activation] = {"Softmax": "softmax", "LogSoftmax": "logsoftmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True, eq=False)
class Score:
    """What is explained.

    Attributes:
        output: the model's output with the scores.
        tensor: the tensor that is differentiated: before a trailing activation, or the output itself.
        class_axis: the axis of classes in `tensor`; 1 also where a single value per sample has no such axis.
        classes: the number of classes; `None` if unknown.
        single_logit: a single number decides between two classes: 1 is the number, 0 its complement.
        activation: the last activation before `output`, empty for none; `tensor` is its input unless the output
            itself is explained.
        reason: why this output and this tensor, in words.
        compared: what is highest for the predicted class, if that is not `tensor`.
    """

    output: Value
    tensor: Value
    class_axis: int
    classes: int | None
    single_logit: bool
    activation: Activation
    reason: str
    compared: Value | None = None


@dataclass(frozen=True)
class Aim:
    """What a task differentiates that the output of its scores does not lead to.

    Attributes:
        tensor: name of the tensor, `[N, K]`.
        reason: why, in words.
        comparable: whether the highest number of the tensor is the predicted class, as the highest score is. Logits of
            a softmax are not where each is that of another box.
        cut: the operator that was cut off, since only another runtime has it; empty for none.
        detections: the boxes, for a detector.
    """

    tensor: str
    reason: str
    comparable: bool = True
    cut: str = ""
    detections: Detections | None = None


@dataclass(frozen=True)
class Detections:
    """What a detector's graph has of all boxes, by the names of tensors.

    Attributes:
        indices: the index of the explained box for every class, `int64 [N, K]`.
        box_input: the input that chooses the box; empty if it is fixed.
        scores: the output with the probabilities of all boxes, `[N, boxes, K]`.
        boxes: the output with their coordinates, `[N, boxes, 4]`; empty where these are unknown.
    """

    indices: str
    box_input: str
    scores: str
    boxes: str


def aimed_score(t: Builder, output: str, aim: Aim) -> Score:
    """The score of a task that says what is differentiated."""
    shown, tensor = t.find(output), t.find(aim.tensor)
    assert shown is not None  # noqa: S101 - the task appended both
    assert tensor is not None  # noqa: S101
    size = tensor.shape[1]
    classes = size if isinstance(size, int) else None
    return Score(
        shown,
        tensor,
        1,
        classes,
        single_logit=False,
        activation="",
        reason=aim.reason,
        compared=None if aim.comparable else shown,
    )


def image_inputs(t: Builder) -> list[Value]:
    """The graph inputs that may hold images: rank 4, or if there is none an image without a batch axis.

    Where there is none either, signals and volumes, `[N, T]`, `[N, C, T]` or `[N, C, D, H, W]` in any order, that
    convolutions or pools read.
    """
    inputs = [v for v in map(t.wrap, t.graph.inputs) if v.known_shape is not None]
    images = [v for v in inputs if v.rank == 4] or [v for v in inputs if v.rank == 3 and _is_single(t, v)]
    return images or [v for v in inputs if v.rank in {2, 3, 5} and v.is_float and _is_spatial(label_input(t, v))]


def _is_spatial(layout: Layout | None) -> bool:
    """Whether a layout has a batch axis, positions, at most one axis of channels, and nothing else."""
    kinds = [axis.kind if axis is not None else "" for axis in layout or ()]
    return kinds.count("N") == 1 and kinds.count("C") <= 1 and "S" in kinds and set(kinds) <= {"N", "C", "S"}


def _is_single(t: Builder, value: Value) -> bool:
    """Whether an input is an image `[C, H, W]` or `[H, W, C]` that the graph makes a batch of one."""
    layout = label_input(t, value) if value.is_real and value.rank == 3 else None
    return layout is not None and letters(layout) in {"CHW", "HWC"}


def with_batch_axis(model: Model, name: str | None = None) -> None:
    """Let the model read an image without a batch axis from a batch of one, in place; its input stays as it is."""
    t = Builder(model)
    for image in image_inputs(t):
        if _is_single(t, image) and name in {None, image.name} and _batch_of(t, image) is None:
            uses = list(image.core.uses())
            batch = t.op("Unsqueeze", image, t.ints(0), shape=(1, *image.shape))
            if not t.taken(shown := f"{image.name}_batch"):
                t.rename(batch, shown)
            sizes = image.probe_shape
            replace(TensorInfo.of(batch.core), probe_shape=sizes and (1, *sizes)).keep_on(batch.core)
            single = t.sized_as(image.core, t.op("Squeeze", batch, t.ints(0)))
            for use in uses:
                use.node.replace_input_with(use.idx, single.core)
            t.graph.sort()


def has_single_image(t: Builder, name: str | None = None) -> bool:
    """Whether the image input has no batch axis."""
    return any(_is_single(t, v) and name in {None, v.name} for v in image_inputs(t))


def _batch_of(t: Builder, image: Value) -> Value | None:
    """The batch of one that all nodes read in place of an image without a batch axis."""
    nodes = [use.node for use in image.core.uses()]
    added = nodes[0].inputs[1] if len(nodes) == 1 and nodes[0].op_type == "Unsqueeze" else None
    axes = None if added is None else t.wrap(added).array()
    return t.wrap(nodes[0].outputs[0]) if axes is not None and axes.reshape(-1).tolist() == [0] else None


def input_name(image: Value) -> str:
    """The name of the graph input that an image is, or is a batch of one of."""
    node = image.core.producer()
    source = image.core if node is None else node.inputs[0]
    assert source is not None  # noqa: S101 - `_batch_of` has looked
    return str(source.name)


def input_layout(image: Value, layout: Layout) -> str:
    """The axes of the graph input that an image of a layout is, in letters; it may lack the batch axis."""
    shown = letters(layout)
    return shown if input_name(image) == image.name else shown.replace("N", "")


def find_image(t: Builder, name: str | None = None) -> Value:
    """The graph input that takes images, or the batch of one that `with_batch_axis` makes of it.

    `name` is needed if there are several, unless one has three channels and the others have one.
    """
    candidates = image_inputs(t)
    inputs = ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.inputs))
    if name is not None:
        named = [v for v in candidates if v.name == name]
        if not named:
            near = near_matches(name, [v.name for v in candidates])
            raise TargetError(f"the model has no image input {name!r}{near} (inputs: {inputs})")
        candidates = named
    if len(candidates) > 1:
        candidates = _beside_planes(candidates) or candidates
    if len(candidates) != 1:
        unfollowed = [v for v in map(t.wrap, t.graph.inputs) if v.known_shape and v.rank in {3, 5} and v.is_float]
        if unfollowed and not candidates:
            raise TargetError(
                f"which axes of the input {unfollowed[0].name!r} {list(unfollowed[0].shape)} are positions cannot be "
                "followed to a convolution or pool, as where frames come before the batch; name another with --input, "
                "or export the model with an axis of samples first"
            )
        if candidates:
            raise TargetError(
                f"the model has several inputs that could take an image (inputs: {inputs}); name one with --input"
            )
        raise TargetError(
            f"the model has no input of rank 4 that could take an image, nor one for signals or volumes (inputs: "
            f"{inputs}); name one with --input, or export the model with an axis of samples"
        )
    (image,) = candidates
    return (_batch_of(t, image) or image) if _is_single(t, image) else image


def _beside_planes(candidates: Sequence[Value]) -> list[Value]:
    """The only input of three channels among inputs of one, such as depth or thermal images."""
    channels = [next((n for n in (v.shape[1], v.shape[-1]) if n in {1, 3}), None) for v in candidates]
    colored = [v for v, n in zip(candidates, channels, strict=True) if n == 3]
    return colored if len(colored) == 1 and channels.count(1) == len(candidates) - 1 else []


def find_score(
    t: Builder, output: str | None = None, kind: Literal["logit", "output"] = "logit", *, added: str = ""
) -> Score:
    """Choose the output and the tensor to differentiate; `output` is needed if several hold class scores.

    `kind` is `logit` for the tensor before a trailing Softmax, LogSoftmax or Sigmoid, `output` for the output itself.
    An output `[N]` holds one value per sample; it is chosen by itself only where no output has an axis of classes.
    `added` says what the output holds if this package has added it.
    """
    outputs = [t.wrap(o) for o in t.graph.outputs]
    if output is not None:
        chosen = next((o for o in outputs if o.name == output), None)
        if chosen is None:
            names = [o.name for o in outputs]
            raise TargetError(
                f"the model has no output {output!r}{near_matches(output, names)} (outputs: {_list(outputs)})"
            )
        why = f"output {output!r}, {added or 'as requested'}"
        if (axis := _class_axis(chosen)) is None:
            raise TargetError(f"output {output!r} of shape {_shape(chosen)} does not hold one score per class")
        if why_not := why_no_classes(t, chosen, axis):
            raise TargetError(
                f"output {output!r} of shape {_shape(chosen)} {why_not}, no score per class; explain the boxes with "
                "--task detection"
            )
    else:
        single = [o for o in outputs if _class_axis(o) is not None and o.rank == 1 and _ranked(t, o) is None]
        single = [o for o in single if not why_no_classes(t, o, 0)]
        chosen = _only(t, _tables(t) or single, outputs)
        holds = "one value per sample" if chosen.rank == 1 else "one score per class"
        why = f"output {chosen.name!r} of shape {_shape(chosen)} holds {holds}"
    return _before_activation(t, chosen, kind, why)


def unranked(t: Builder, output: str | None = None) -> Value | None:
    """The scores of all classes, where outputs (or the one named `output`) hold only the highest or their classes.

    `None` where an output holds the scores of all classes itself.
    """
    if output is None and _tables(t):
        return None
    named = [o for o in map(t.wrap, t.graph.outputs) if output in {None, o.name}]
    sources = [source for o in named if (source := _ranked(t, o)) is not None]
    tensors = {_origin(t, _walk_back(t, source)[0]) for source in sources}
    return sources[0] if len(tensors) == 1 else None


def single_scores(t: Builder, output: str | None = None) -> Value | None:
    """The class scores `[1, K]` of an image without a batch axis, whose outputs have none either; appended.

    `None` where an output has the axis. A trailing activation is repeated behind them, so that it can be left out.
    """
    outputs = [o for o in map(t.wrap, t.graph.outputs) if output in {None, o.name} and o.is_real and o.known_shape]
    if any((o.shape[0] == 1 or not o.rank) and _class_axis(o) is not None and o.rank > 1 for o in outputs):
        return None
    rows = [o for o in outputs if sum(size != 1 for size in o.shape) <= 1 and not why_no_classes(t, o, 0)]
    if len({_origin(t, o) for o in rows}) != 1:
        return None
    if (row := _row_before(t, rows[0])) is not None:
        return row
    scores, activation = _walk_back(t, rows[0])
    row = _row_before(t, scores) or t.op("Reshape", scores, t.ints(1, -1))
    return _activated(t, row, activation)


def alone(t: Builder, output: str | None = None) -> Value | None:
    """The score `[1, 1]` of outputs that are one number without any axis; appended. `None` where there is another."""
    outputs = [o for o in map(t.wrap, t.graph.outputs) if output in {None, o.name} and o.is_float]
    if len(outputs) != 1 or outputs[0].known_shape != ():
        return None
    number, activation = _walk_back(t, outputs[0])
    return _activated(t, t.op("Reshape", number, t.ints(1, 1)), activation)


def scores_at(t: Builder, place: int, output: str | None = None) -> Value:
    """The class scores `[N, K]` at a place of an output `[N, places, K]`, an activation over classes behind; appended.

    Raises:
        TargetError: there is no such output, several, or no such place.
    """
    outputs = [o for o in map(t.wrap, t.graph.outputs) if output in {None, o.name} and o.known_shape is not None]
    fitting = [o for o in outputs if _has_places(t, o)]
    if len(fitting) != 1:
        raise TargetError(
            f"--at chooses a place of an output [N, places, classes], and {'several are' if fitting else 'none is'} "
            f"one (outputs: {_list(fitting or outputs)}); {'name it with --output' if fitting else 'leave it out'}"
        )
    (table,) = fitting
    if why := why_no_classes(t, table, 2):
        raise TargetError(f"output {table.name!r} of shape {_shape(table)} {why}, no classes at places; leave out --at")
    places = table.shape[1]
    if isinstance(places, int) and place >= places:
        raise TargetError(
            f"there is no place {place} in the output {table.name!r} {_shape(table)}; give 0 to {places - 1} with --at"
        )
    node = table.core.producer()
    x = node.inputs[0] if node is not None and node.op_type in _ACTIVATIONS and not node.domain else None
    activation: Activation = ""
    if (
        node is not None
        and x is not None
        and (node.op_type == "Sigmoid" or node.attributes.get_int("axis", -1) % 3 == 2)
    ):
        table, activation = t.wrap(x), _ACTIVATIONS[node.op_type]
    return _activated(t, t.op("Gather", table, t.const(np.array(place, np.int64)), axis=1), activation)


def _has_places(t: Builder, output: Value) -> bool:
    """Whether an output may hold the scores of classes at several places, `[N, places, K]`."""
    shape = output.known_shape
    return output.is_float and shape is not None and len(shape) == 3 and shape[0] != 0 and kind_of(t, output) != "id"


def _activated(t: Builder, scores: Value, activation: Activation) -> Value:
    """Scores `[N, K]` behind an activation, which can be left out again."""
    operator = next((op for op, name in _ACTIVATIONS.items() if name == activation), None)
    if operator is None:
        return scores
    return t.op(operator, scores) if operator == "Sigmoid" else t.op(operator, scores, axis=1)


def _row_before(t: Builder, scores: Value) -> Value | None:
    """The tensor `[1, K]` that scores `[K]` are a view of, if there is one."""
    node = scores.core.producer()
    views = node is not None and node.op_type in {*RESHAPES, "Gather"} and not node.attributes.get_int("axis", 0)
    source = node.inputs[0] if node is not None and views else None
    row = None if source is None else t.wrap(source)
    return row if row is not None and row.known_shape is not None and row.shape == (1, *scores.shape) else None


def _ranked(t: Builder, output: Value) -> Value | None:
    """The class scores of which `output` holds the highest or their classes; `None` for any other output."""
    node = output.core.producer()
    x = node.inputs[0] if node is not None and node.inputs else None
    if node is None or x is None:
        return None
    if node.op_type in VIEWS | QUANTISATION:
        return _ranked(t, t.wrap(x))
    if node.op_type not in _RANKINGS or node.domain:
        return None
    scores = t.wrap(x)
    classes = _class_axis(scores)
    if classes is None or _ranked_axis(t, node, len(scores.known_shape or ())) != classes:
        return None
    return None if why_no_classes(t, scores, classes) else scores


def _ranked_axis(t: Builder, node: ir.Node, rank: int) -> int | None:
    """The axis along which a node ranks; `None` for several."""
    if node.op_type != "ReduceMax":
        return node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0) % rank
    axes = t.wrap(node.inputs[1]).array() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return None if axes is None or axes.size != 1 else int(axes.reshape(-1)[0]) % rank


def _tables(t: Builder) -> list[Value]:
    """The outputs with an axis of classes, `[N, K]`."""
    outputs = map(t.wrap, t.graph.outputs)
    fitting = [o for o in outputs if _class_axis(o) is not None and o.rank > 1 and _ranked(t, o) is None]
    scores = [o for o in fitting if not why_no_classes(t, o, _class_axis(o) or 0)]
    return [o for o in scores if kind_of(t, o) != "constant"] or scores


def _only(t: Builder, candidates: Sequence[Value], outputs: Sequence[Value]) -> Value:
    places = [o for o in outputs if _has_places(t, o)]
    if not candidates and places:
        raise TargetError(
            f"no output holds one score per class (outputs: {_list(outputs)}); if {places[0].name!r} holds the scores "
            f"of {places[0].shape[2]} classes at {places[0].shape[1]} places (tasks, steps of time, words), choose one "
            "with --at, else say with --task what the model does"
        )
    if not candidates:
        raise TargetError(
            f"no output looks like class scores of shape [batch, classes] (outputs: {_list(outputs)}); "
            "say with --task what else the model does, or choose a model with one score per class"
        )
    tensors = {_origin(t, _walk_back(t, o)[0]) for o in candidates}
    if len(tensors) > 1:
        raise TargetError(
            f"several outputs look like class scores ({_list(candidates)}); name the one to explain with --output"
        )
    return candidates[0]


def _before_activation(t: Builder, output: Value, kind: str, why: str) -> Score:
    tensor, activation = _walk_back(t, output)
    if kind == "output":
        if not output.is_float:
            raise TargetError(f"output {output.name!r} is {output.dtype}, which has no gradient; use --score logit")
        tensor, why = output, f"{why}; the output itself is explained, as requested"
    elif tensor is not output:
        left = f"the {activation} before it" if activation else "its quantisation"
        why = f"{why}; {left} is left out, so that the logit {tensor.name!r} is explained"
    axis = _class_axis(tensor)
    if axis is None:
        raise TargetError(f"tensor {tensor.name!r} of shape {_shape(tensor)} does not hold one score per class")
    size = tensor.shape[axis] if axis < tensor.rank else 1
    single = size == 1 and activation in {"", "sigmoid"}
    if single:
        why += "; a single number: class 1 is the number itself, class 0 its complement"
    elif size == 1:
        why += f"; the {activation} over one class is the same for every image, so there is class 0 alone"
    classes = 2 if single else size if isinstance(size, int) else None
    return Score(output, tensor, axis, classes, single, activation, why)


def _walk_back(t: Builder, output: Value) -> tuple[Value, Activation]:
    """The tensor before the last activation, and that activation; the output itself if there is none."""
    value = output
    while True:
        node = value.core.producer()
        x = node.inputs[0] if node is not None and node.inputs else None
        if node is None or x is None:
            break
        if node.op_type in _ACTIVATIONS and node.domain == "":
            before = _float_source(t, t.wrap(x))
            if node.op_type == "Sigmoid" or _along_classes(t, node, before):
                # The name of the tensor before Reshapes tells the user more.
                return _origin(t, before, RESHAPES), _ACTIVATIONS[node.op_type]
            break
        if not _is_view(t, node):
            break
        value = t.wrap(x)
    return _float_source(t, output), ""


def _along_classes(t: Builder, node: ir.Node, before: Value) -> bool:
    attribute = node.attributes.get("axis")
    axis = attribute.as_int() if attribute is not None else -1
    shape = t.wrap(node.inputs[0]).known_shape if node.inputs[0] is not None else None
    if shape is None:
        return True
    axis %= len(shape)
    return (axis > 0 or len(shape) == 1) and (shape[axis] != 1 or _class_axis(before) == axis)


def _origin(t: Builder, value: Value, views: Container[str] = VIEWS) -> Value:
    """The tensor that `value` is a copy or a view of."""
    node = value.core.producer()
    if node is None or node.op_type not in views or not keeps_order(t, node) or node.inputs[0] is None:
        return value
    source = t.wrap(node.inputs[0])
    # A number without axes is no row of scores.
    return value if source.known_shape == () else _origin(t, source, views)


def _float_source(t: Builder, value: Value) -> Value:
    """The scores before quantization: rounding ties them, and clipped ones have no gradient."""
    node = value.core.producer()
    x = node.inputs[0] if node is not None and node.inputs else None
    if node is None or x is None or (value.is_float and node.op_type != "DequantizeLinear"):
        return value
    if not _is_view(t, node):
        return value
    source = _float_source(t, t.wrap(x))
    return source if source.is_float and _class_axis(source) is not None else value


def _is_view(t: Builder, node: ir.Node) -> bool:
    """Whether a node changes only the shape or dtype of scores and keeps the order of classes."""
    return node.op_type in VIEWS | QUANTISATION and keeps_order(t, node)


def _class_axis(value: Value) -> int | None:
    """The only axis besides the batch that is not of size one; axis 1 if all are, or if there is the batch alone."""
    shape = value.known_shape
    if not shape or value.dtype is None or value.dtype.kind not in "fiuV":
        return None
    if value.dtype.itemsize > 4 and value.dtype.kind in "iu":
        return None
    wide = [axis for axis, size in enumerate(shape) if axis > 0 and size != 1]
    if len(wide) > 1:
        return None
    return wide[0] if wide else 1


def _shape(value: Value) -> str:
    shape = value.known_shape
    return "unknown" if shape is None else "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def _list(values: Sequence[Value]) -> str:
    return ", ".join(f"{v.name!r} {_shape(v)}" for v in values)


Objective = Callable[[Builder, Value, Value], Value]

_SIMILAR = 3
"""Number of classes Finer-CAM compares with, as in pytorch-grad-cam."""


def runner_up(t: Builder, scores: Value, classes: Value) -> Value:
    """The lead of the class's score over the highest other one."""
    return _own_score(t, scores, classes) - t.reduce("ReduceMax", _others(t, scores, classes), [1], keepdims=False)


def against(other: int) -> Objective:
    """An objective: the lead of the class's score over that of class `other`."""

    def difference(t: Builder, scores: Value, classes: Value) -> Value:
        reference = t.op("Gather", scores, t.const(other, np.int64), axis=1)
        return _own_score(t, scores, classes) - reference

    return difference


def finer(t: Builder, scores: Value, classes: Value) -> Value:
    """The lead over the three classes with the nearest scores, each weighted by its probability.

    Zhang et al. 2025, eq. 4; pytorch-grad-cam utils/model_targets.py, FinerWeightedTarget, with alpha = 1.
    """
    own = t.op("Unsqueeze", _own_score(t, scores, classes), t.ints(1))
    distance = t.op("Abs", scores - own)
    width = scores.shape[1]
    count = min(_SIMILAR + 1, width) if isinstance(width, int) else _SIMILAR + 1
    _, nearest = t.ops("TopK", distance, t.ints(count), outputs=2, axis=1, largest=0)
    others = t.op("Slice", nearest, t.ints(1), t.ints(count), t.ints(1))
    weights = t.op("GatherElements", t.op("Softmax", scores, axis=1), others, axis=1)
    lead = own - t.op("GatherElements", scores, others, axis=1)
    return t.sum(t.op("Mul", weights, lead), [1], keepdims=False) / (t.sum(weights, [1], keepdims=False) + 1e-9)


def _own_score(t: Builder, scores: Value, classes: Value) -> Value:
    """The score of each sample's class, `[N]`."""
    picked = t.op("GatherElements", scores, t.op("Unsqueeze", classes, t.ints(1)), axis=1)
    return t.op("Squeeze", picked, t.ints(1))


def _others(t: Builder, scores: Value, classes: Value) -> Value:
    """The scores, with the class's own far below all others."""
    depth = t.op("Shape", scores, start=1, end=2)
    values = t.const(np.array([0, -1e30], np.float32))
    return scores + t.cast(t.op("OneHot", classes, depth, values, axis=1), scores.dtype)


def contrast(t: Builder, scores: Value, classes: Value) -> Value:
    """The lead over all other classes together, S_c - log sum_(k != c) exp(S_k): the log odds of their softmax."""
    rest = _others(t, scores, classes)
    top = t.reduce("ReduceMax", rest, [1])
    together = t.op("Log", t.sum(t.op("Exp", rest - top), [1], keepdims=False)) + t.op("Squeeze", top, t.ints(1))
    return _own_score(t, scores, classes) - together


OBJECTIVES: dict[str, Objective] = {"finer": finer, "runner-up": runner_up, "others": contrast}
"""Objectives by name, `(builder, scores [N, K], classes int64 [N]) -> [N]`; `class` itself needs no function."""

WEIGHED = frozenset({"finer"})
"""Objectives in which scores are weighed by probabilities, so that they are no differences of scores."""
