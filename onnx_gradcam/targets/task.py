"""What the model does, where it is no classifier: its outputs become one score a class, `[N, K]`, in the graph.

Everything behind this module knows class scores alone. Each task appends an output `target_scores` that holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value

from .axes import follow

__all__ = ["SCORES", "BoxFormat", "Mask", "Task", "detection", "segmentation", "similarity"]

Task = Literal["classification", "regression", "segmentation", "detection", "embedding"]
Mask = Literal["own", "all", "input"]
BoxFormat = Literal["scores", "yolov5", "yolov8"]

SCORES = "target_scores"
"""The name of the output that holds one score a class."""

_VIEWS = {"Softmax", "LogSoftmax", "Identity", "Cast", "ArgMax"}


def segmentation(t: Builder, output: str | None, mask: Mask) -> None:
    """The sum of each class's logits over a part of the picture.

    Args:
        t: the graph.
        output: the output that holds one map a class, where several would do.
        mask: `own` sums where the class is the best one, `all` everywhere, `input` where the new input `target_mask`,
            `float32 [N, h, w]` at the output's resolution, is one.

    Raises:
        TargetError: no output holds one map a class.
    """
    maps = _class_maps(t, output)
    layout = follow(t)[maps.core]
    kinds = [axis.kind if axis is not None else "" for axis in layout]
    channel, places = kinds.index("C"), [i for i, kind in enumerate(kinds) if kind == "S"]
    if mask == "own":
        best = t.op("ArgMax", maps, axis=channel, keepdims=1)
        count = t.op("Squeeze", t.op("Shape", maps, start=channel, end=channel + 1))
        every = t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))
        shape = [1] * maps.rank
        shape[channel] = -1
        chosen = t.cast(t.op("Equal", best, t.op("Reshape", every, t.ints(*shape))), maps.dtype)
        maps = t.op("Mul", maps, chosen)
    elif mask == "input":
        sizes = tuple(maps.shape[i] for i in (0, *places))
        given = t.input("target_mask", np.float32, sizes)
        maps = t.op("Mul", maps, t.cast(t.op("Unsqueeze", given, t.ints(channel)), maps.dtype))
    _expose(t, t.sum(maps, places, keepdims=False))


def _class_maps(t: Builder, name: str | None) -> Value:
    """The tensor with one map a class, before a Softmax or an ArgMax."""
    layouts = follow(t)
    found = []
    for output in [t.wrap(o) for o in t.graph.outputs]:
        source = output
        while (node := source.core.producer()) is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
            source = t.wrap(node.inputs[0])
        kinds = sorted(axis.kind if axis is not None else "" for axis in layouts.get(source.core) or ())
        if kinds == ["C", "N", "S", "S"] and source.is_float:
            found.append((output.name, source))
    names = [known for known, _ in found]
    if name is not None:
        if name not in names:
            raise TargetError(
                f"output {name!r} holds no map for each class{near_matches(name, names)} (those that do: {names})"
            )
        return dict(found)[name]
    if len(found) != 1:
        raise TargetError(
            f"{len(found)} outputs hold a map for each class ({', '.join(map(repr, names)) or 'none'}), so which one "
            "is to be explained cannot be told; name it with --output"
        )
    return found[0][1]


def detection(t: Builder, outputs: Sequence[str], form: BoxFormat, *, rank: int, index: int | None) -> None:
    """The score of one box for each class: the one of a rank among the class's boxes, or the one of an index.

    Args:
        t: the graph.
        outputs: what holds a score for every box and class; several (the levels of a pyramid) are put one behind the
            other.
        form: `scores` is `[N, boxes, K]`; `yolov5` is `[N, boxes, 5 + K]`: a box, its objectness and class scores that
            are multiplied with it; `yolov8` is `[N, 4 + K, boxes]`.
        rank: 0 for the box with the highest score of the class, 1 for the next ...
        index: the number of the box, in place of a rank.

    Raises:
        TargetError: an output is not there or of another form.
    """
    names = [str(o.name) for o in t.graph.outputs]
    tables = []
    for name in outputs:
        if name not in names:
            raise TargetError(f"the model has no output {name!r}{near_matches(name, names)} (outputs: {names})")
        value = next(t.wrap(o) for o in t.graph.outputs if o.name == name)
        if value.known_shape is None or value.rank != 3 or not value.is_float:
            raise TargetError(
                f"output {name!r} of shape {value.known_shape} is no table of boxes and classes of rank 3; name "
                "another with --output"
            )
        tables.append(_by_class(t, value, form))
    if not tables:
        raise TargetError(f"name the output that holds the scores of the boxes with --output (there are {names})")
    table = tables[0] if len(tables) == 1 else t.op("Concat", *tables, axis=1)
    boxes = table.shape[1]
    place = rank if index is None else index
    if place < 0 or (isinstance(boxes, int) and place >= boxes):
        raise TargetError(f"there is no box {place}; the model gives boxes 0 to {boxes}, the last one left out")
    if index is None:
        best, _ = t.ops("TopK", table, t.ints(rank + 1), outputs=2, axis=1)
        table = best
    _expose(t, t.op("Gather", table, t.const(place, np.int64), axis=1))


def _by_class(t: Builder, value: Value, form: BoxFormat) -> Value:
    """`[N, boxes, K]`."""
    if form == "scores":
        return value
    if form == "yolov8":
        return t.transpose(_from(t, value, 4, axis=1), [0, 2, 1])
    objectness = t.op("Slice", value, t.ints(4), t.ints(5), t.ints(2))
    return t.op("Mul", _from(t, value, 5, axis=2), objectness)


def _from(t: Builder, value: Value, start: int, axis: int) -> Value:
    size = value.shape[axis]
    if isinstance(size, int) and size <= start:
        raise TargetError(f"output {value.name!r} of shape {list(value.shape)} has no room for class scores")
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
    flat = np.asarray(reference, np.float64).reshape(-1)
    length = float(np.linalg.norm(flat))
    if not np.isfinite(length) or length == 0:
        raise TargetError("the reference embedding is zero or not finite, so nothing can be similar to it")
    candidates = [v for v in map(t.wrap, t.graph.outputs) if v.is_float and v.known_shape and v.shape[-1] == flat.size]
    named = [v for v in candidates if output in {None, v.name}]
    if len(named) != 1:
        shown = ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.outputs))
        raise TargetError(
            f"which output holds the embedding of {flat.size} numbers cannot be told (outputs: {shown}); name it with "
            "--output"
        )
    embedding = t.op("Reshape", named[0], t.ints(-1, flat.size))
    norm = t.op("Sqrt", t.sum(t.op("Mul", embedding, embedding), [1]))
    wanted = t.const((flat / length).reshape(-1, 1), embedding.dtype)
    _expose(t, (embedding @ wanted) / t.op("Max", norm, float(np.finfo(np.float16).tiny)))


def _expose(t: Builder, scores: Value) -> None:
    if t.taken(SCORES):
        raise TargetError(f"the model has a tensor {SCORES!r} already; rename it")
    t.output(scores, SCORES)
