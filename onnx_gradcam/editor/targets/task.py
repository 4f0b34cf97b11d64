"""What the model does, where it is no classifier: its outputs become one score a class, `[N, K]`, in the graph.

Everything behind this module knows class scores alone. Each task appends an output `target_scores` that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import QUANTISATION

from .axes import Layout, follow

__all__ = ["MASK", "SCORES", "BoxFormat", "Mask", "Task", "candidates", "detection", "segmentation", "similarity"]

Task = Literal["classification", "regression", "segmentation", "detection", "embedding"]
Mask = Literal["own", "all", "input"]
BoxFormat = Literal["scores", "yolov5", "yolov8"]

SCORES = "target_scores"
"""The name of the output that holds one score a class."""

MASK = "target_mask"
"""The name of the input that says where a segmentation is explained."""

_BEFORE_MAPS = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "Identity", "Cast", "Transpose", *QUANTISATION}
"""What may lie between the logits of a segmentation and its output."""


def segmentation(t: Builder, output: str | None, mask: Mask, kind: Literal["logit", "output"] = "logit") -> None:
    """The sum of each class's scores over a part of the image, as pytorch-grad-cam's SemanticSegmentationTarget.

    A single map decides between two classes: 1 is the map itself, 0 its complement, the negated map. A class without
    a place of its own scores zero, and less than every class that has one where these are negative.

    Args:
        t: the graph.
        output: the output that holds one map a class, or the best class of every place, where several would do.
        mask: `own` sums where the class is the best one, `all` everywhere, `input` where the new input `target_mask`,
            `float32 [N, h, w]` at the output's resolution, is one.
        kind: `logit` sums what lies before a trailing Softmax, LogSoftmax, Sigmoid or ArgMax, `output` the output.

    Raises:
        TargetError: no output holds one map a class, or several do.
    """
    maps, layout = _class_maps(t, output, kind)
    kinds = [axis.kind if axis is not None else "" for axis in layout]
    channel, places = kinds.index("C"), [i for i, axis in enumerate(kinds) if axis == "S"]
    if maps.shape[channel] == 1:
        probability = any(_made_by(value) == "Sigmoid" for value in _backwards(t, maps))
        complement = 1.0 - maps if probability else -maps
        maps = t.op("Concat", complement, maps, axis=channel)
    if mask == "own":
        _expose(t, _over_own(t, maps, channel, places))
        return
    if mask == "input":
        _free(t, MASK)
        given = t.input(MASK, np.float32, tuple(maps.shape[i] for i in (0, *places)))
        maps = t.op("Mul", maps, t.cast(t.op("Unsqueeze", given, t.ints(channel)), maps.dtype))
    _expose(t, t.sum(maps, places, keepdims=False))


def candidates(t: Builder) -> dict[str, list[str]]:
    """Which outputs could be explained as what, by their shapes and axes; tasks without any are left out."""
    layouts = follow(t)
    outputs = [t.wrap(o) for o in t.graph.outputs]
    found = {
        "segmentation": [v.name for v in outputs if any(_is_class_map(layouts.get(b.core)) for b in _backwards(t, v))],
        "detection": [v.name for v in outputs if _unquantised(t, v).is_float and len(v.known_shape or ()) == 3],
        "embedding": [v.name for v in outputs if v.is_float and len(v.known_shape or ()) == 2],
    }
    return {task: names for task, names in found.items() if names}


def _over_own(t: Builder, maps: Value, channel: int, places: Sequence[int]) -> Value:
    """The sum of every class over the places where it is the best one, `[N, K]`."""
    best = t.op("ArgMax", maps, axis=channel, keepdims=1)
    count = t.op("Squeeze", t.op("Shape", maps, start=channel, end=channel + 1))
    every = t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))
    shape = [1] * maps.rank
    shape[channel] = -1
    chosen = t.cast(t.op("Equal", best, t.op("Reshape", every, t.ints(*shape))), maps.dtype)
    total = t.sum(t.op("Mul", maps, chosen), places, keepdims=False)
    present = t.reduce("ReduceMax", chosen, places, keepdims=False) > 0.0
    # No derivative crosses the rounding, which is what a class that is not there should have.
    lowest = t.op("Floor", t.op("Min", t.reduce("ReduceMin", total, [1]), 0.0) * 2.0)
    return t.op("Where", present, total, lowest)


def _class_maps(t: Builder, name: str | None, kind: Literal["logit", "output"]) -> tuple[Value, Layout]:
    """The tensor with one map a class, and the meaning of its axes."""
    layouts = follow(t)
    found: dict[str, tuple[Value, Layout]] = {}
    for output in map(t.wrap, t.graph.outputs):
        chain = [v for v in _backwards(t, output) if v.is_float and _is_class_map(layouts.get(v.core))]
        if chain:
            source = chain[0 if kind == "output" else -1]
            found[output.name] = source, layouts[source.core]
    if name is not None:
        if name not in found:
            raise TargetError(
                f"output {name!r} holds no map for each class{near_matches(name, found)} (those that do: "
                f"{list(found) or 'none'}; outputs: {_shown(t)})"
            )
        return found[name]
    if len({source.core for source, _ in found.values()}) != 1:
        which = "no output holds" if not found else f"several outputs ({', '.join(map(repr, found))}) hold"
        raise TargetError(
            f"{which} a map for each class, [N, K, h, w] or [N, h, w, K] behind convolutions (outputs: {_shown(t)}); "
            "name one with --output"
        )
    return next(iter(found.values()))


def _backwards(t: Builder, value: Value) -> Iterator[Value]:
    """A tensor, and what it is an activation, a view or the best class of."""
    yield value
    while (node := value.core.producer()) is not None and node.op_type in _BEFORE_MAPS and node.inputs[0] is not None:
        value = t.wrap(node.inputs[0])
        yield value


def _is_class_map(layout: Layout | None) -> bool:
    return sorted(axis.kind if axis is not None else "" for axis in layout or ()) == ["C", "N", "S", "S"]


def _made_by(value: Value) -> str:
    node = value.core.producer()
    return "" if node is None else str(node.op_type)


def detection(t: Builder, outputs: Sequence[str], form: BoxFormat, *, rank: int, index: int | None) -> None:
    """The score of one box for each class: the one of a rank among the class's boxes, or the one of an index.

    Args:
        t: the graph.
        outputs: what holds a score for every box and class; several (the levels of a pyramid) are put one behind the
            other; none for the only output of that form.
        form: `scores` is `[N, boxes, K]`, or `[N, boxes]` for boxes that a suppression of overlaps has chosen
            already, which have one score each; `yolov5` is `[N, boxes, 5 + K]`: a box, its objectness and class
            scores that are multiplied with it; `yolov8` is `[N, 4 + K, boxes]`.
        rank: 0 for the box with the highest score of the class, 1 for the next ...
        index: the number of the box, in place of a rank.

    Raises:
        TargetError: an output is not there or of another form, or there are fewer boxes.
    """
    tables = [_by_class(t, value, form) for value in _tables(t, outputs, form)]
    widths = {(table.shape[0], table.shape[2]) for table in tables}
    if len(widths) > 1:
        shown = ", ".join(f"{name!r} {list(table.shape)}" for name, table in zip(outputs, tables, strict=True))
        raise TargetError(
            f"the outputs do not hold scores of the same classes as [N, boxes, K] ({shown}); name those that do with "
            "--output"
        )
    table = tables[0] if len(tables) == 1 else t.op("Concat", *tables, axis=1)
    boxes = table.shape[1]
    place = rank if index is None else index
    if place < 0 or (isinstance(boxes, int) and place >= boxes):
        upto = f"boxes 0 to {boxes - 1}" if isinstance(boxes, int) else "boxes from 0 on"
        raise TargetError(f"there is no box {place}; the model gives {upto}")
    if index is None:
        table, _ = t.ops("TopK", table, t.ints(rank + 1), outputs=2, axis=1)
    _expose(t, t.op("Gather", table, t.const(place, np.int64), axis=1))


def _tables(t: Builder, outputs: Sequence[str], form: BoxFormat) -> list[Value]:
    """The outputs that hold the scores of the boxes, before they were quantised."""
    by_name = {str(o.name): _unquantised(t, t.wrap(o)) for o in t.graph.outputs}
    ranks = {2, 3} if form == "scores" else {3}
    if not outputs:
        # A table of four columns is most likely the boxes themselves.
        fitting = [n for n, v in by_name.items() if v.is_float and v.known_shape and v.rank == 3 and v.shape[2] != 4]
        if len(fitting) != 1:
            raise TargetError(
                f"which output holds the scores of the boxes cannot be told (outputs: {_shown(t)}); name it with "
                "--output, several times where they lie in several"
            )
        outputs = fitting
    found = []
    for name in outputs:
        if name not in by_name:
            raise TargetError(f"the model has no output {name!r}{near_matches(name, by_name)} (outputs: {_shown(t)})")
        value = by_name[name]
        if value.known_shape is None or value.rank not in ranks or not value.is_float:
            form_of = {"scores": "[N, boxes, K]", "yolov5": "[N, boxes, 5 + K]", "yolov8": "[N, 4 + K, boxes]"}[form]
            raise TargetError(
                f"output {name!r} is no table {form_of} of scores (outputs: {_shown(t)}); name another with --output, "
                "or say with --boxes how the scores lie"
            )
        found.append(value)
    return found


def _unquantised(t: Builder, value: Value) -> Value:
    """The floating-point tensor that an output of whole numbers was rounded from."""
    node = value.core.producer()
    if value.is_float or node is None or node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return value
    return t.wrap(node.inputs[0])


def _by_class(t: Builder, value: Value, form: BoxFormat) -> Value:
    """`[N, boxes, K]`."""
    if form == "scores":
        return value if value.rank == 3 else t.op("Unsqueeze", value, t.ints(2))
    if form == "yolov8":
        return t.transpose(_from(t, value, 4, axis=1), [0, 2, 1])
    objectness = t.op("Slice", value, t.ints(4), t.ints(5), t.ints(2))
    return t.op("Mul", _from(t, value, 5, axis=2), objectness)


def _from(t: Builder, value: Value, start: int, axis: int) -> Value:
    size = value.shape[axis]
    if isinstance(size, int) and size <= start:
        raise TargetError(
            f"output {value.name!r} of shape {list(value.shape)} has no room for class scores behind the first {start} "
            "numbers of a box; say with --boxes how they lie"
        )
    return t.op("Slice", value, t.ints(start), t.ints(np.iinfo(np.int64).max), t.ints(axis))


def similarity(t: Builder, output: str | None, reference: npt.NDArray[np.floating]) -> None:
    """The cosine of the angle between an embedding and a reference.

    Args:
        t: the graph.
        output: the output that holds the embedding, where several would do.
        reference: the embedding to be similar to, `[D]`.

    Raises:
        TargetError: no output holds an embedding of that size, or the reference has no direction.
    """
    try:
        flat = np.asarray(reference, np.float64).reshape(-1)
    except (TypeError, ValueError) as exc:
        raise TargetError(
            "the reference is no embedding of numbers; the command line and Explainer read images"
        ) from exc
    length = float(np.linalg.norm(flat))
    if not np.isfinite(length) or length == 0:
        raise TargetError("the reference embedding is zero or not finite, so nothing can be similar to it")
    fitting = [v for v in map(t.wrap, t.graph.outputs) if v.is_float and _holds(v, flat.size)]
    named = [v for v in fitting if output in {None, v.name}]
    if len(named) != 1:
        names = [v.name for v in map(t.wrap, t.graph.outputs)]
        near = near_matches(output, names) if output is not None and output not in names else ""
        raise TargetError(
            f"which output holds an embedding of {flat.size} numbers cannot be told{near} (outputs: {_shown(t)}); "
            "name it with --output, and give a reference of its size"
        )
    batch = named[0].shape[0]
    embedding = t.op("Reshape", named[0], t.ints(-1, flat.size), shape=(batch, flat.size))
    norm = t.op("Sqrt", t.sum(t.op("Mul", embedding, embedding), [1]))
    wanted = t.const((flat / length).reshape(-1, 1), embedding.dtype)
    _expose(t, (embedding @ wanted) / t.op("Max", norm, float(np.finfo(np.float16).tiny)))


def _holds(value: Value, size: int) -> bool:
    """Whether a tensor holds one vector of a size a sample: `[N, D]`, or with axes of size one."""
    shape = value.known_shape
    return shape is not None and len(shape) > 1 and [d for d in shape[1:] if d != 1] == ([size] if size != 1 else [])


def _shown(t: Builder) -> str:
    return ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.outputs))


def _expose(t: Builder, scores: Value) -> None:
    _free(t, SCORES)
    t.output(scores, SCORES)


def _free(t: Builder, name: str) -> None:
    if t.taken(name):
        raise TargetError(f"the model has a tensor {name!r} already, which this task adds; rename it")
