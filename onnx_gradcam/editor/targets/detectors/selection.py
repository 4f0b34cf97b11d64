"""Where chosen boxes come from: the table that NMS or TopK chooses from, in the graph or in a plugin of TensorRT.

Rows that were chosen have one score each, and perhaps there are none. The table in front of the choice has a score for
every box and class, so it is what is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_gradcam.editor.targets.axes import follow
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import RESHAPES, node_inputs

from .columns import columns, kind_of, moved_axis, source_of
from .tables import copied

__all__ = ["Kept", "Origin", "Plugin", "all_rows", "cut_off", "find_kept", "find_plugin", "origin_of", "origins"]
__all__ += ["why_no_classes"]

_CHOOSING = {"Gather", "GatherElements", "GatherND", "Slice", "Pad", "Compress", "Expand"}
_FOLLOWED = {*_CHOOSING, *RESHAPES, "ScatterND", "Split", "Concat", "Cast", "Transpose", "Identity", "Tile", "Where"}
_FOLLOWED |= {"Mod", "Div", "Add", "Sub", "Mul", "Min", "Max", "Clip", "TopK"}
_MOVING = {"ReduceMax", "TopK", "ScatterND", "Identity", "Cast", "Transpose"}
_COUNTING = {"NonZero", "NonMaxSuppression", "TopK", "Compress", "Unique", "If"}
"""Operators that decide which boxes are chosen, and how many; torchvision's NMS is a branch of an If."""

_PLUGINS = ("EfficientNMS", "BatchedNMS", "NMSRotated", "TRTBatchedNMS")


@dataclass(frozen=True, eq=False)
class Origin:
    """The table that boxes were chosen from.

    Attributes:
        scores: the scores.
        axis: their axis of classes.
    """

    scores: Value
    axis: int


@dataclass(frozen=True, eq=False)
class Plugin:
    """A node that suppresses overlaps, which only TensorRT runs.

    Attributes:
        node: the node.
        boxes: its input of boxes, `[N, boxes, 4]`.
        scores: its input of scores, `[N, boxes, K]`.
        logits: the plugin applies a sigmoid to the scores.
        background: the class that is none; `None` if there is none.
    """

    node: ir.Node
    boxes: Value
    scores: Value
    logits: bool
    background: int | None


@dataclass(frozen=True, eq=False)
class Kept:
    """Scores above a threshold, for which torchvision's detectors have neither a batch axis nor a fixed number.

    Attributes:
        output: the output with the score of each chosen box, `[M]`.
        tables: what they were chosen from, each `[boxes, K]`, one behind the other.
        first: the first class that is chosen; those before it are the background.
    """

    output: Value
    tables: Sequence[Value]
    first: int


def find_kept(t: Builder) -> Kept | None:
    """The scores that a model chooses by a threshold, if one of its outputs holds them."""
    if not any(node.op_type == "NonZero" for node in t.nodes):
        return None
    for output in map(t.wrap, t.graph.outputs):
        if not output.is_float or output.known_shape is None or output.rank != 1:
            continue
        found = _chosen_by_threshold(t, output)
        if not found or any(kind_of(t, table) != "score" for table, _ in found):
            continue
        tables = list(dict.fromkeys(table for table, _ in found))
        firsts = {first for _, first in found if first is not None}
        # One class after the other is chosen from the same table, or all classes from one level after the other.
        if len(tables) == 1 or len(tables) == len(found):
            return Kept(output, tables, min(firsts, default=0))
    return None


def _chosen_by_threshold(t: Builder, value: Value) -> list[tuple[Value, int | None]]:
    """The tables `[boxes, K]` that scores are chosen from, each with the (first) class; empty if they are none."""
    node, source = value.core.producer(), source_of(value.core.producer())
    if node is None or source is None or t.wrap(source).known_shape is None:
        return []
    before = t.wrap(source)
    if node.op_type == "Concat":
        parts = [_chosen_by_threshold(t, t.wrap(i)) for i in node.inputs if i is not None]
        return [one for part in parts for one in part] if all(parts) else []
    index = t.wrap(node.inputs[1]).array() if node.op_type == "Gather" and node.inputs[1] is not None else None
    if index is not None:
        of_one_class = before.rank == 2 and node.attributes.get_int("axis", 0) % 2 == 1 and index.size == 1
        return [(before, int(index.reshape(-1)[0]))] if of_one_class else []
    if node.op_type in RESHAPES and before.rank == 2:
        return [_uncut(t, before)]
    if node.op_type in {"Gather", "GatherND", "TopK", "Identity", *RESHAPES}:
        return _chosen_by_threshold(t, before)
    return []


def _uncut(t: Builder, table: Value) -> tuple[Value, int]:
    """A table of scores with the classes that were cut off in front, and how many these are.

    The rows of the only image are all rows.
    """
    first = 0
    while (node := table.core.producer()) is not None and node.op_type == "Slice":
        source = source_of(node)
        starts, axes, steps = (_constant(t, node, i) for i in (1, 3, 4))
        if source is None or starts is None or len(starts) != 1 or (steps or [1]) != [1]:
            break
        if (axes or [0])[0] % 2:
            first += starts[0]
        elif starts[0]:
            break
        table = t.wrap(source)
    return table, first


def _constant(t: Builder, node: ir.Node, index: int) -> list[int] | None:
    """The integers of an input; `None` if it is missing or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    array = None if value is None else t.wrap(value).array()
    return None if array is None else [int(i) for i in array.reshape(-1)]


def all_rows(t: Builder, boxes: Value, tables: Sequence[Value]) -> Value | None:
    """The boxes of all rows of `tables`, of which `boxes` `[M, 4]` are chosen; appended.

    What the graph computes of the chosen ones is repeated for all. `None` where the boxes themselves are chosen by.
    """
    behind, chosen = {table.core for table in tables}, set[ir.Value]()
    for node in t.nodes:
        reads = set(node_inputs(node))
        behind.update(node.outputs if reads & behind else ())
        chosen.update(node.outputs if reads & chosen or (node.op_type in _COUNTING and reads & behind) else ())
    return _Unchosen(t, chosen).of(boxes.core)


class _Unchosen:
    """Tensors as they would be if all rows were chosen."""

    def __init__(self, t: Builder, chosen: set[ir.Value]) -> None:
        self.t, self.chosen = t, chosen
        self.done: dict[ir.Value, Value | None] = {}

    def of(self, value: ir.Value) -> Value | None:
        if value not in self.chosen:
            return self.t.wrap(value)
        node = value.producer()
        if value not in self.done and node is not None:
            self.done.update(zip(node.outputs, self._outputs(node), strict=True))
        return self.done.get(value)

    def _outputs(self, node: ir.Node) -> Sequence[Value | None]:
        nothing = [None] * len(node.outputs)
        if node.op_type in _COUNTING:
            return nothing
        source = source_of(node)
        if source is not None and node.op_type in {"Gather", "GatherND"} and node.inputs[1] in self.chosen:
            return nothing if node.attributes.get_int("axis", 0) else [self.of(source)]
        inputs = [None if i is None else self.of(i) for i in node.inputs]
        if any(new is None and old is not None for new, old in zip(inputs, node.inputs, strict=True)):
            return nothing
        if node.op_type == "Concat" and len(set(inputs)) == 1:
            # The boxes of one class after the other are all the same.
            return inputs[:1]
        return copied(self.t, node, inputs)


def find_plugin(t: Builder) -> Plugin | None:
    """The plugin at the end of the graph, if there is one."""
    for node in t.nodes:
        if node.domain and str(node.op_type).startswith(_PLUGINS) and len(node.inputs) > 1:
            boxes, scores = node.inputs[:2]
            names = ("background_class", "backgroundLabelId", "background_label_id")
            background = max(node.attributes.get_int(name, -1) for name in names)
            if boxes is not None and scores is not None and t.wrap(scores).known_shape is not None:
                logits = bool(node.attributes.get_int("score_activation", 0))
                return Plugin(node, t.wrap(boxes), t.wrap(scores), logits, background if background >= 0 else None)
    return None


def cut_off(t: Builder, plugin: Plugin) -> None:
    """Remove a plugin and what reads it, in place; what it read become outputs of the model."""
    gone = set(plugin.node.outputs)
    nodes = [plugin.node]
    for node in t.nodes:
        if any(i in gone for i in node.inputs):
            nodes.append(node)
            gone.update(node.outputs)
    for output in [o for o in t.graph.outputs if o in gone]:
        t.graph.outputs.remove(output)
    for node in reversed(nodes):
        t.graph.remove(node, safe=True)
    t.expose(plugin.boxes)
    t.expose(plugin.scores)


def why_no_classes(t: Builder, value: Value, axis: int) -> str:
    """Why the numbers of an output along an axis are no scores of classes, in words; empty where they may be."""
    if _is_chosen(t, value):
        return "holds boxes that were chosen in the graph"
    kind = kind_of(t, value)
    parts = columns(t, value, axis) if value.probe_shape is not None else []
    if (value.is_float or value.rank == 1) and (kind == "id" or any(part.kind == "id" for part in parts)):
        return "holds the numbers of classes or boxes"
    if value.rank == 2 and _flattened(t, value, None)[1] is not None and kind == "score" and not _of_channels(t, value):
        return "holds one number for each class of each box"
    if value.rank == 3:
        layout = follow(t).get(value.core)
        kinds = [axis.kind if axis is not None else "" for axis in layout or ()]
        if "C" in kinds and kinds[axis] != "C" and value.shape[axis] != 1:
            return "holds one number for each of the boxes or positions"
    return ""


def _of_channels(t: Builder, value: Value) -> bool:
    """Whether the numbers `[N, K]` are channels behind pooled positions, as where groups of classes are flattened."""
    layout = follow(t).get(value.core)
    return layout is not None and layout[1] is not None and layout[1].kind == "C"


def _is_chosen(t: Builder, value: Value) -> bool:
    """Whether NMS, a plugin, or a TopK over boxes decides which numbers a tensor holds and in which order."""
    seen: set[ir.Value] = set()
    todo = [value.core]
    while todo:
        one = todo.pop()
        node = one.producer()
        if one in seen or node is None:
            continue
        seen.add(one)
        if node.op_type in {"NonMaxSuppression", "NonZero"} or str(node.op_type).startswith(_PLUGINS):
            return True
        source = source_of(node)
        if node.op_type == "TopK" and source is not None and _flattened(t, t.wrap(source), None)[1] is not None:
            return True
        if node.op_type in _FOLLOWED:
            todo += [i for i in node.inputs if i is not None]
    return False


def origins(t: Builder) -> list[Origin]:
    """The tables that NMS, TopK, or the highest class of each box choose from, each once."""
    starts: list[tuple[Value, int | None]] = []
    for node in t.nodes:
        source = node.inputs[1] if node.op_type == "NonMaxSuppression" else source_of(node)
        if node.domain or source is None or (value := t.wrap(source)).known_shape is None:
            continue
        if node.op_type == "NonMaxSuppression":
            starts.append((value, 1))
        elif node.op_type == "ReduceMax":
            starts.append((t.wrap(node.outputs[0]), None))
        elif node.op_type == "ArgMax":
            starts.append((value, node.attributes.get_int("axis", 0) % value.rank))
        elif node.op_type == "TopK":
            starts.append(_flattened(t, value, None))
    result: dict[ir.Value, Origin] = {}
    for value, axis in starts:
        origin = origin_of(t, value, axis)
        if origin is not None:
            result.setdefault(_moved_from(origin.scores), origin)
    return list(result.values())


def _moved_from(value: Value) -> ir.Value:
    """The tensor that a transposed one is a view of."""
    node, source = value.core.producer(), source_of(value.core.producer())
    return source if node is not None and source is not None and node.op_type == "Transpose" else value.core


def origin_of(t: Builder, value: Value, axis: int | None = None) -> Origin | None:
    """The table that scores were chosen from; `axis` is that of their classes, if they have one.

    `None` where the way back leads elsewhere.
    """
    for _ in range(len(t.nodes) + 1):
        node = value.core.producer()
        if axis is not None and (node is None or node.op_type not in _CHOOSING - {"Slice"}):
            parts = columns(t, value, axis) if value.probe_shape is not None else []
            if value.rank > 1 and parts and all(part.kind == "score" for part in parts):
                return Origin(value, axis)
        if node is None or (step := _step(t, node, value, axis)) is None:
            return None
        value, axis = step
    return None


def _step(t: Builder, node: ir.Node, value: Value, axis: int | None) -> tuple[Value, int | None] | None:
    """The tensor in front of a choice, and its axis of classes; `None` in front of anything else."""
    source = node.inputs[2] if node.op_type == "ScatterND" else source_of(node)
    if source is None or node.op_type not in {*_CHOOSING, *RESHAPES, *_MOVING}:
        return None
    before = t.wrap(source)
    if node.op_type == "ReduceMax":
        axes = t.wrap(node.inputs[1]).array() if len(node.inputs) > 1 and node.inputs[1] is not None else None
        return None if axes is None or axes.size != 1 else (before, int(axes.reshape(-1)[0]) % before.rank)
    if node.op_type == "TopK":
        return _flattened(t, before, axis)
    if axis is None or node.op_type in {"ScatterND", "Identity", "Cast"}:
        return before, axis
    if node.op_type == "GatherElements" and node.attributes.get_int("axis", 0) % before.rank != axis:
        return before, axis
    moved = moved_axis(value, before, axis)
    return None if moved is None and node.op_type in _CHOOSING else (before, moved)


def _flattened(t: Builder, before: Value, axis: int | None) -> tuple[Value, int | None]:
    """In front of a TopK over boxes times classes: the table that was flattened for it."""
    node, source = before.core.producer(), source_of(before.core.producer())
    if axis is None and node is not None and source is not None and node.op_type in RESHAPES:
        table = t.wrap(source)
        shape, flat = table.probe_shape, before.probe_shape
        if shape is not None and flat is not None and len(shape) == len(flat) + 1 == 3 and min(shape[1:]) > 1:
            return (before, axis) if _is_rearranged(t, table, flat) else (table, 2)
    return before, axis


def _is_rearranged(t: Builder, table: Value, flat: tuple[int, ...]) -> bool:
    """Whether a table only shows columns of a matrix in another order, as a shuffle of channels does."""
    while (node := table.core.producer()) is not None and node.op_type in {*RESHAPES, "Transpose"}:
        before = node.inputs[0]
        if before is None:
            return False
        table = t.wrap(before)
        if table.probe_shape == flat:
            return True
    return False
