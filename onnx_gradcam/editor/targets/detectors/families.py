"""Which table of boxes a model outputs, and which of its numbers are the scores.

Evidence counts in this order: a plugin or operator that suppresses overlaps says itself what its scores are; then what
the graph computes in every column of a table; then how many classes have names; the names of outputs at last, and only
where two readings are left. Where these decide nothing the reading is refused, and the message names both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import between, carries_content
from onnx_gradcam.options import Background

from .columns import Part, columns, kind_of, producer_of, source_of
from .coordinates import Boxes, Encoding
from .selection import cut_off, find_kept, find_plugin, origins
from .tables import Activation, Factor, Table, factors_of, joined, narrowed, rearranged, unactivated

__all__ = ["Hints", "Reading", "recognize"]

_POINTS = {4, 8, 10, 12, 14, 15, 16, 18, 32, 34, 51, 64, 68}
"""How many numbers describe a box: corners, with landmarks, or bins of distances to its sides."""


_BOX_WORDS = ("box", "loc", "reg", "dis", "delta", "coord")
_SCORE_WORDS = ("score", "cls", "class", "conf", "prob", "logit", "label")

_SELECTIONS = {"NonMaxSuppression", "TopK", "NonZero"}

_LEAST_BINS = 20
"""The fewest numbers that are bins of distances to four sides; there are tables of 16 landmarks."""

_COARSE = 0.5
"""Steps of quantization from which on a probability is rounded to zero or one."""


@dataclass(frozen=True)
class Hints:
    """What is known besides the graph.

    Attributes:
        classes: how many classes have names; `None` if none have.
        background: where the class "none" is, if the user says so.
    """

    classes: int | None = None
    background: Background | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """How the outputs of a detector are read, before a node is appended.

    Attributes:
        family: the kind of table, in words.
        evidence: what it was concluded from.
        outputs: the outputs that were read.
        classes: the number of classes; `None` if it is free.
        table: appends the normal form of the scores.
        boxes: the numbers of the boxes, where the family tells.
        cut: the operator that is cut off, since only another runtime has it; empty for none.
    """

    family: str
    evidence: str
    outputs: Sequence[str]
    classes: int | None
    table: Callable[[], Table] = field(repr=False)
    boxes: Boxes | None = None
    cut: str = ""

    @property
    def reason(self) -> str:
        """The family and why, as one phrase."""
        return f"{self.family} ({self.evidence})"


def recognize(t: Builder, hints: Hints) -> Reading | None:
    """How the outputs are read; `None` if they are no tables of boxes that this package knows.

    Raises:
        TargetError: there are two readings, and an option has to decide.
    """
    return next((reading for rule in _RULES if (reading := rule(t, hints)) is not None), None)


def _outputs(t: Builder) -> list[Value]:
    return [value for value in map(t.wrap, t.graph.outputs) if value.probe_shape is not None]


def _size(value: Value, axis: int) -> int | None:
    size = value.shape[axis]
    return size if isinstance(size, int) else None


# ----- boxes that the graph chooses ------------------------------------------------


def _plugin(t: Builder, hints: Hints) -> Reading | None:  # noqa: ARG001 - the signature of a rule
    plugin = find_plugin(t)
    if plugin is None:
        return None
    scores, width = plugin.scores, _size(plugin.scores, 2)

    def table() -> Table:
        factors = (Factor(scores, "sigmoid"),) if plugin.logits else factors_of(t, scores, 2)
        cut_off(t, plugin)
        return Table(_without(t, factors, plugin.background, width))

    return Reading(
        f"scores {scores.name!r} that the plugin {plugin.node.op_type} would choose from",
        "the plugin, which only TensorRT runs, is cut off",
        [str(o.name) for o in t.graph.outputs],
        width if width is None or plugin.background is None else width - 1,
        table,
        Boxes([(plugin.boxes, 2)]) if plugin.boxes.rank == 3 else None,
        cut=str(plugin.node.op_type),
    )


def _without(t: Builder, factors: Sequence[Factor], background: int | None, width: int | None) -> tuple[Factor, ...]:
    """The factors without the column of the background, which is the first or the last."""
    if background is None or width is None:
        return tuple(factors)
    return tuple(f.kept(t, 1 if background == 0 else 0, width - 1) for f in factors)


def _thresholded(t: Builder, hints: Hints) -> Reading | None:  # noqa: ARG001 - the signature of a rule
    """Tables of which the scores above a threshold are chosen, as of torchvision's detectors."""
    kept = find_kept(t)
    if kept is None:
        return None
    shown = ", ".join(f"{v.name!r} {list(v.shape)}" for v in kept.tables)
    width = _size(kept.tables[0], 1)

    def table() -> Table:
        parts = [factors_of(t, value, 1) for value in kept.tables]
        return joined(t, [Table(tuple(f.without_first(kept.first) for f in factors)) for factors in parts])

    floats = [v for v in map(t.wrap, t.graph.outputs) if v.is_float and v.known_shape is not None]
    boxes = [v for v in floats if v.rank == 2 and v.shape[1] == 4]
    aside = f", and class {kept.first - 1} as the background" if kept.first else ""
    return Reading(
        f"scores {shown} that a threshold chooses from, as of torchvision's detectors",
        f"the graph{aside}",
        _behind_selection(t),
        width,
        table,
        Boxes([(boxes[0], 1)], "chosen", rows_of=kept.tables) if len(boxes) == 1 else None,
    )


def _chosen(t: Builder, hints: Hints) -> Reading | None:
    """A table in front of NMS or TopK."""
    kinds = {str(node.op_type) for node in t.nodes} & _SELECTIONS
    outputs = [t.wrap(o) for o in t.graph.outputs]
    rows = any(kind_of(t, v) == "id" or _holds_ids(t, v) for v in outputs)
    if not kinds or not (rows or "NonMaxSuppression" in kinds):
        return None
    tables = [origin for origin in origins(t) if origin.scores.rank == 3]
    if len(tables) != 1:
        return None
    (origin,) = tables
    width = _size(origin.scores, origin.axis)
    first, classes = _classes_of(t, origin.scores, origin.axis, hints)
    by = "NonMaxSuppression" if "NonMaxSuppression" in kinds else "TopK"
    return Reading(
        f"scores {origin.scores.name!r} {list(origin.scores.shape)} that {by} chooses boxes from",
        "the graph",
        _behind_selection(t),
        classes,
        lambda: Table(_kept(t, factors_of(t, origin.scores, origin.axis), first, classes, width)),
        _chosen_queries(t, origin.scores, origin.axis) if by == "TopK" else None,
    )


def _behind_selection(t: Builder) -> list[str]:
    """The outputs that depend on what NMS or TopK chooses."""
    chosen = [o for node in t.nodes if node.op_type in _SELECTIONS for o in node.outputs]
    _, behind = between(t.nodes, chosen, t.graph.outputs, carries_content)
    return [str(o.name) for o in t.graph.outputs if o in behind]


def _chosen_queries(t: Builder, scores: Value, axis: int) -> Boxes | None:
    """The boxes of queries that TopK chooses from: as many sigmoids of four numbers as there are scores."""
    rows = (scores.probe_shape or (0, 0, 0))[3 - axis]
    tables = [
        v
        for node in t.nodes
        if node.op_type == "Sigmoid" and (v := t.wrap(node.outputs[0])).probe_shape is not None
        if v.rank == 3 and (v.probe_shape or ())[1:] == (rows, 4) and v is not scores
    ]
    return Boxes([(tables[-1], 2)], "queries") if tables else None


def _holds_ids(t: Builder, value: Value) -> bool:
    """Whether a column of an output holds class numbers."""
    if value.probe_shape is None or value.rank < 2:
        return kind_of(t, value) == "mixed"
    return any(part.kind in {"id", "mixed"} for part in columns(t, value, value.rank - 1))


# ----- one table ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Where the scores are among the columns of a table, and where the boxes and how they are written."""

    family: str
    start: int
    classes: int
    objectness: int | None = None
    powers: tuple[float, float] = (1.0, 1.0)
    encoding: Encoding = "decoded"
    box: int = 0


def _single(t: Builder, hints: Hints) -> Reading | None:  # noqa: ARG001 - the signature of a rule
    """A table whose columns are parts of a box and scores."""
    for value in _outputs(t):
        if not value.is_float or value.rank not in {3, 4}:
            continue
        for axis in (1,) if value.rank == 4 else (1, 2):
            parts = columns(t, value, axis)
            layout = _grid_layout(parts) if value.rank == 4 else _layout(parts)
            if layout is not None:
                return _of_columns(t, value, axis, parts, layout)
    return None


def _check_steps(t: Builder, value: Value) -> None:
    """Refuse a table whose boxes and scores were quantised together, so that its scores are all zero or one."""
    node = value.core.producer()
    while node is not None and node.op_type in {"DequantizeLinear", "QuantizeLinear", "Transpose", "Identity"}:
        scale = t.wrap(node.inputs[1]).array() if "Linear" in node.op_type and node.inputs[1] is not None else None
        if scale is not None and scale.size == 1 and float(scale.reshape(-1)[0]) >= _COARSE:
            raise TargetError(
                f"the scores of output {value.name!r} were lost when they were quantized together with the boxes: one "
                f"step is {float(scale.reshape(-1)[0]):.3g}, and scores are at most 1; quantize the model again "
                "without its last operators"
            )
        source = source_of(node)
        node = None if source is None else source.producer()


def _of_columns(t: Builder, value: Value, axis: int, parts: Sequence[Part], layout: _Layout) -> Reading:
    _check_steps(t, value)
    shown = ", ".join(f"{part.size} {_WORDS[part.kind]}" for part in parts)

    def table() -> Table:
        activations = _activations(t, parts)
        logits = unactivated(t, value)
        factors = []
        spans = [(layout.objectness, 1)] if layout.objectness is not None else []
        spans.append((layout.start, layout.classes))
        for (start, size), power in zip(spans, layout.powers[-len(spans) :], strict=True):
            activation = activations[start]
            source = value if activation == "none" else logits
            cut = narrowed(t, source, axis, start, start + size)
            factors.append(Factor(rearranged(t, cut, axis), activation, power))
        return Table(tuple(factors))

    return Reading(
        f"{layout.family}, output {value.name!r} {list(value.shape)}",
        f"along axis {axis} the graph joins {shown}",
        [value.name],
        layout.classes,
        table,
        Boxes([(value, axis)], layout.encoding, layout.box),
    )


_WORDS = {
    "score": "scores",
    "box": "of a box",
    "raw": "without an activation",
    "id": "class numbers",
    "constant": "constant",
    "mixed": "of several kinds",
}


def _activations(t: Builder, parts: Sequence[Part]) -> list[Activation]:
    """The activation of every column."""
    names: dict[str, Activation] = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
    return [names.get(producer_of(t.wrap(p.source)), "none") for p in parts for _ in range(p.size)]


def _grid_layout(parts: Sequence[Part]) -> _Layout | None:
    """The layout of the channels of a grid: an objectness, the box, and a softmax over the classes."""
    if [part.kind for part in parts] != ["score", "raw", "score"] or [part.size for part in parts[:2]] != [1, 4]:
        return None
    return _Layout("a dense grid as FastestDet's", 5, parts[2].size, 0, (0.6, 0.4), "dense", 1)


def _layout(parts: Sequence[Part]) -> _Layout | None:
    """The layout of the columns of a table, by its parts."""
    kinds = [part.kind for part in parts]
    first = next((i for i, kind in enumerate(kinds) if kind == "score"), len(parts))
    if kinds[:2] == ["score", "score"] and parts[0].size == 4:
        family = "boxes and scores of queries, as of Ultralytics' RT-DETR"
        return _Layout(family, 4, parts[1].size, encoding="queries")
    if first in {0, len(parts)}:
        return None
    head, scores, rest = parts[:first], parts[first], parts[first + 1 :]
    if sum(part.size for part in head) == 5 and head[-1].kind == "constant" and head[-1].size == 1:
        return _Layout("boxes, an objectness of one, and classes, as of YOLOv6", 5, scores.size)
    if sum(part.size for part in head) != 4 or any(part.kind not in {"box", "raw"} for part in head):
        return None
    if scores.size == 1 and rest and rest[0].kind == "score":
        return _Layout("boxes, objectness and classes, as of YOLOX", 5, rest[0].size, 4, encoding=_encoding(head))
    return _one_score(head, scores)


def _one_score(head: Sequence[Part], scores: Part) -> _Layout | None:
    """Whether scores that the graph does not part begin with an objectness: the kind of boxes in front tells."""
    decoded = any(part.kind == "box" for part in head)
    if decoded and not any(_is_anchored(part) for part in head):
        return _Layout("boxes and classes, as of YOLOv8", 4, scores.size)
    family = f"boxes, objectness and classes, as of {'YOLOv5' if decoded else 'YOLOX'}"
    return _Layout(family, 5, scores.size - 1, 4, encoding=_encoding(head)) if scores.size > 1 else None


def _encoding(head: Sequence[Part]) -> Encoding:
    """How the boxes of a YOLO are written: those that no arithmetic decodes are offsets to a grid."""
    return "decoded" if any(part.kind == "box" for part in head) else "grid"


def _is_anchored(part: Part) -> bool:
    """Whether a part of a box is computed from a Sigmoid, as the offsets to anchors of YOLOv3 to YOLOv7 are."""
    todo, seen = [part.source], set()
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type == "Sigmoid":
            return True
        if node.op_type in {"Add", "Sub", "Mul", "Div", "Pow", "Slice", "Split", "Concat", "Reshape", "Transpose"}:
            todo += [i for i in node.inputs if i is not None]
    return False


# ----- scores and boxes apart ----------------------------------------------------------


def _apart(t: Builder, hints: Hints) -> Reading | None:
    """Scores and boxes in outputs of their own, perhaps one pair for each level of a pyramid."""
    batch = max(((v.probe_shape or (1,))[0] for v in map(t.wrap, t.graph.inputs) if v.known_shape), default=1)
    tables = [v for v in _outputs(t) if v.is_float and v.rank in {2, 3, 4}]
    # Without an axis of the batch the first axis is that of the boxes; with one it holds vectors of a sample.
    tables = [v for v in tables if v.rank > 2 or (v.probe_shape or (0,))[0] > batch]
    boxes = [(v, axis) for v in tables if (axis := _box_axis(t, v)) is not None]
    levels = []
    for value in tables:
        partners = [(box, axis) for box, axis in boxes if box is not value]
        places = [place for box, axis in partners if (place := _class_axis(t, value, box, axis)) is not None]
        levels += [(value, place) for place in places[:1]]
    scored = [(v, axis) for v, axis in levels if all(part.kind == "score" for part in columns(t, v, axis))]
    raw = [(v, axis) for v, axis in levels if kind_of(t, v) == "raw"]
    scored = _not_boxes(scored, raw)
    if scored:
        return _scores(t, scored, [v for v, _ in levels], _partners(t, [v for v, _ in scored], boxes), hints)
    raw = [(v, axis) for v, axis in raw if (v, axis) not in boxes or v.shape[axis] == 4] if len(raw) > 1 else raw
    return _logits(t, raw, hints) if len(raw) == 1 else None


def _box_axis(t: Builder, value: Value) -> int | None:
    """The axis of the numbers of a box, in a table that may hold boxes."""
    shape = value.probe_shape or ()
    if kind_of(t, value) in {"id", "constant"}:
        return None
    if len(shape) in {2, 4}:
        return 1 if shape[1] in _POINTS else None
    return 2 if shape[2] in _POINTS else 1 if shape[1] == 4 else None


def _class_axis(t: Builder, value: Value, box: Value, axis: int) -> int | None:
    """The axis of classes of a table with as many rows as a table of boxes."""
    shape, other = value.probe_shape or (), box.probe_shape or ()
    if len(shape) != len(other):
        return None
    rows = [size for i, size in enumerate(other) if i != axis]
    axes = [i for i in range(1, len(shape)) if [size for k, size in enumerate(shape) if k != i] == rows]
    if len(shape) == 4:
        return 1 if 1 in axes and shape[1] == 2 and kind_of(t, value) == "score" else None
    return axes[-1] if axes else None


def _not_boxes(scored: list[tuple[Value, int]], raw: list[tuple[Value, int]]) -> list[tuple[Value, int]]:
    """Without boxes that a Sigmoid computes: four numbers beside other scores, or beside logits.

    Four numbers with a Sigmoid beside as many as a box has without one can be either; the names of the outputs decide.
    """
    others = [(v, axis) for v, axis in scored if v.shape[axis] != 4]
    if others or not scored or not raw:
        return others or scored
    if all(v.shape[axis] not in _POINTS for v, axis in raw):
        return []
    activated, plain = ([v.name for v, _ in tables] for tables in (scored, raw))
    are_scores = _like(activated, _SCORE_WORDS) or _like(plain, _BOX_WORDS)
    are_boxes = _like(activated, _BOX_WORDS) or _like(plain, _SCORE_WORDS)
    if are_scores == are_boxes:
        raise TargetError(
            f"output {activated[0]!r} {list(scored[0][0].shape)} could be the scores of {scored[0][0].shape[-1]} "
            f"classes with the boxes in {plain[0]!r} {list(raw[0][0].shape)}, or the boxes with the scores in "
            f"{plain[0]!r}; name the scores with --output"
        )
    return scored if are_scores else []


def _like(names: Sequence[str], words: Sequence[str]) -> bool:
    return any(word in name.lower() for name in names for word in words)


def _partners(t: Builder, scored: Sequence[Value], boxes: Sequence[tuple[Value, int]]) -> Boxes | None:
    """The tables of boxes beside tables of scores, one each: four numbers, or bins of the distances to four sides."""
    tables = []
    for scores in scored:
        others = [(v, axis) for v, axis in boxes if v not in scored and _class_axis(t, scores, v, axis) is not None]
        widths = {_size(v, axis): (v, axis) for v, axis in others}
        binned = [
            w for w in widths if w is not None and w % 4 == 0 and w >= _LEAST_BINS and kind_of(t, widths[w][0]) == "raw"
        ]
        width = 4 if 4 in widths else binned[0] if len(binned) == 1 else None
        if width is None or sum(_size(v, axis) == width for v, axis in others) != 1:
            return None
        tables.append((*widths[width], width))
    bins = {width != 4 for *_, width in tables}
    if len(bins) != 1:
        return None
    return Boxes([(v, axis) for v, axis, _ in tables], "bins" if bins == {True} else "decoded")


def _scores(
    t: Builder, scored: list[tuple[Value, int]], levels: Sequence[Value], boxes: Boxes | None, hints: Hints
) -> Reading | None:
    widths = {(v.shape[axis], v.rank, axis) for v, axis in scored}
    if len(widths) != 1:
        return None
    value, axis = scored[0]
    names = [v.name for v, _ in scored]
    if len(names) > 1 and _rows(value, axis) == _rows(*scored[1]):
        raise TargetError(
            f"outputs {', '.join(map(repr, names))} could all hold the scores of the same boxes; name those that do "
            "with --output"
        )
    width = _size(value, axis)
    quality = [v for v in levels if v.shape[axis] == 1 and v.name not in names and kind_of(t, v) == "raw"]
    first, classes = _classes_of(t, value, axis, hints)

    def table() -> Table:
        parts = [Table(_kept(t, factors_of(t, v, a), first, classes, width)) for v, a in scored]
        if len(quality) == 1:
            (iou,) = quality
            clipped = t.op("Clip", rearranged(t, iou, axis), t.const(0, iou.dtype), t.const(1, iou.dtype))
            halves = [Factor(f.value, f.activation, 0.5, f.first, f.classes) for f in parts[0].factors]
            return Table((*halves, Factor(clipped, "none", 0.5)))
        return joined(t, parts)

    shown = ", ".join(f"{v.name!r} {list(v.shape)}" for v, _ in scored)
    family = "scores and boxes apart" if len(scored) == 1 else f"scores and boxes of {len(scored)} levels apart"
    shown += f", each the square root of a product with {quality[0].name!r}" if len(quality) == 1 else ""
    evidence = "an activation computes the scores, and other outputs with as many rows hold boxes"
    return Reading(f"{family}, scores {shown}", evidence, names, classes, table, boxes)


def _rows(value: Value, axis: int) -> list[int | str | None]:
    return [size for i, size in enumerate(value.shape) if i != axis]


def _logits(t: Builder, raw: list[tuple[Value, int]], hints: Hints) -> Reading | None:
    """Scores without an activation: of DETR and its like, BlazeFace, RetinaNet."""
    ((value, axis),) = raw
    width = _size(value, axis)
    if width is None or value.rank != 3:
        return None
    names = {v.name for v in map(t.wrap, t.graph.outputs)}
    background, why = hints.background, "as requested"
    if background is None:
        background, why = _background(width, names, hints)
    if background is None:
        raise TargetError(
            f"output {value.name!r} {list(value.shape)} holds {width} logits a box, and whether one of them is the "
            f"background cannot be told: the last (a softmax over {width - 1} classes, as of DETR), the first (as of "
            f"SSD), or none ({width} classes with a sigmoid each, as of RT-DETR); say so with --background, or give "
            "the class names with --labels"
        )
    sigmoid = background == "none"

    def table() -> Table:
        factor = Factor(rearranged(t, value, axis), "sigmoid" if sigmoid else "softmax")
        return Table((factor if sigmoid else factor.kept(t, int(background == "first"), width - 1),))

    kind = "a sigmoid each" if sigmoid else f"a softmax with the background {background}"
    return Reading(
        f"logits {value.name!r} {list(value.shape)} with {kind}, boxes apart",
        why,
        [value.name],
        width if sigmoid else width - 1,
        table,
        _queries(t, names),
    )


_QUERIES = ({"logits", "pred_boxes"}, {"dets", "labels"})
"""The outputs of DETR and its like."""


def _queries(t: Builder, names: set[str]) -> Boxes | None:
    """The boxes of queries, whose outputs are told by their names."""
    if not any(usual <= names for usual in _QUERIES):
        return None
    values = [v for v in _outputs(t) if v.name in {"pred_boxes", "dets"} and v.rank == 3 and v.shape[2] == 4]
    return Boxes([(values[0], 2)], "queries") if len(values) == 1 else None


def _background(width: int, names: set[str], hints: Hints) -> tuple[Background | None, str]:
    """Where the background is among logits, by the number of class names or by the names of outputs."""
    if width == 1:
        return "none", "a single logit a box"
    if _QUERIES[1] <= names:
        return "none", "the names of the outputs are RF-DETR's"
    if hints.classes == width:
        return "none", f"there are {width} class names"
    if hints.classes == width - 1 and _QUERIES[0] <= names:
        return "last", f"there are {width - 1} class names for {width} logits"
    return None, ""


def _classes_of(t: Builder, value: Value, axis: int, hints: Hints) -> tuple[int, int | None]:
    """The first class and the number of classes among activated scores; a softmax has a background."""
    width = _size(value, axis)
    if width is None or not _is_softmax(t, value, axis) or width < 2:
        return 0, width
    background = hints.background or ("first" if width == 2 else None)
    if background is None and hints.classes == width:
        background = "none"
    if background is None:
        raise TargetError(
            f"{value.name!r} {list(value.shape)} is a softmax over {width} numbers, and which of them is the "
            "background cannot be told: the first (as of SSD), the last (as of DETR), or none; say so with --background"
        )
    return (0, width) if background == "none" else (int(background == "first"), width - 1)


def _is_softmax(t: Builder, value: Value, axis: int) -> bool:
    return all(producer_of(t.wrap(part.source)) == "Softmax" for part in columns(t, value, axis))


def _kept(
    t: Builder, factors: Sequence[Factor], first: int, classes: int | None, width: int | None
) -> tuple[Factor, ...]:
    if classes is None or (first == 0 and classes == width):
        return tuple(factors)
    return tuple(f.kept(t, first, classes) for f in factors)


# ----- heads of grids --------------------------------------------------------------------


def _anchored(t: Builder, hints: Hints) -> Reading | None:  # noqa: ARG001 - the signature of a rule
    """Logits of anchors on several grids, `[N, anchors, h, w, 5 + K]`."""
    floats = [v for v in _outputs(t) if v.is_float]
    grids = [v for v in floats if v.rank == 5 and kind_of(t, v) == "raw" and producer_of(v) in {"Transpose", "Reshape"}]
    if len(grids) < 2 or len(grids) != len(floats) or len({v.shape[4] for v in grids}) != 1:
        return None
    width = _size(grids[0], 4)
    if width is None or width < 6:
        return None

    def table() -> Table:
        parts = []
        for grid in grids:
            rows = rearranged(t, grid, 4)
            spans = ((4, 5), (5, width))
            cuts = [t.op("Slice", rows, t.ints(start), t.ints(end), t.ints(2)) for start, end in spans]
            parts.append(Table(tuple(Factor(cut, "sigmoid") for cut in cuts)))
        return joined(t, parts)

    shown = ", ".join(f"{v.name!r} {list(v.shape)}" for v in grids)
    return Reading(
        f"logits of a box, objectness and classes on {len(grids)} grids, as of YOLOv7: {shown}",
        "five axes, and as many logits on each",
        [v.name for v in grids],
        width - 5,
        table,
    )


_RULES = (_plugin, _thresholded, _chosen, _single, _apart, _anchored)
