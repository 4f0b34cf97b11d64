"""Which reading of a detector counts: the one that the user names, else the one that the model itself tells.

A format that the user names is taken at its word where its widths fit the output. Where the graph joins the columns of
another one the format is refused, with both numbers of columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.options import BoxFormat, Options

from .columns import Part, columns
from .coordinates import Boxes
from .families import Hints, Reading, recognize
from .tables import Table, factors_of, joined

__all__ = ["hints_of", "read_boxes", "shown_outputs"]


@dataclass(frozen=True)
class _Format:
    """A layout that `--boxes` names.

    Attributes:
        shape: the shape, in letters.
        axis: the axis of the numbers of one box.
        start: where the scores of the classes start.
        objectness: the column of a score that these are multiplied with.
        ranks: how many axes the output has.
    """

    shape: str
    axis: int
    start: int
    objectness: int | None = None
    ranks: tuple[int, ...] = (3,)


_FORMATS: dict[BoxFormat, _Format] = {
    "scores": _Format("[N, boxes, K]", 2, 0, ranks=(2, 3)),
    "yolov5": _Format("[N, boxes, 5 + K]", 2, 5, 4),
    "yolov8": _Format("[N, 4 + K, boxes]", 1, 4),
}


def hints_of(options: Options) -> Hints:
    """What the options tell about a detector."""
    labels = options.labels
    return Hints(len(labels) if isinstance(labels, list) else None, options.background)


def read_boxes(t: Builder, options: Options) -> Reading:
    """How the outputs are read: in the format and with the outputs of the options, else as the graph says.

    Raises:
        TargetError: no reading fits, or two do.
    """
    named = [options.output] if isinstance(options.output, str) else list(options.output or ())
    if options.boxes is not None:
        return _requested(t, named, options.boxes, hints_of(options))
    if named:
        unknown = next((name for name in named if all(o.name != name for o in t.graph.outputs)), None)
        if unknown is not None:
            raise TargetError(_missing(t, unknown))
        reading = _recognized(t, options, named)
        if reading is not None and set(named) == set(reading.outputs) and not _is_list(t, named):
            return reading
        return _requested(t, named, "scores", hints_of(options))
    reading = recognize(t, hints_of(options))
    return _requested(t, named, "scores", hints_of(options)) if reading is None else reading


def _recognized(t: Builder, options: Options, named: Sequence[str]) -> Reading | None:
    """What the graph says, unless it leaves two readings between which the named outputs decide."""
    try:
        return recognize(t, hints_of(options))
    except TargetError:
        outputs = [v for v in map(t.wrap, t.graph.outputs) if v.known_shape is not None]
        ranks = {v.rank for v in outputs if v.name in named}
        if options.background is None and len({v.shape[-1] for v in outputs if v.rank in ranks}) > 1:
            raise
        return None


def _is_list(t: Builder, named: Sequence[str]) -> bool:
    """Whether one output was named that holds one score for each of the boxes that were chosen."""
    values = [v for v in map(t.wrap, t.graph.outputs) if v.name in named]
    return len(values) == 1 and values[0].known_shape is not None and values[0].rank == 2


def _requested(t: Builder, outputs: Sequence[str], form: BoxFormat, hints: Hints) -> Reading:
    layout = _FORMATS[form]
    values = _named(t, outputs, form)
    spans = [_span(t, value, layout, hints) for value in values]
    sizes = {(value.shape[0], size) for value, size in zip(values, spans, strict=True)}
    if len(sizes) > 1:
        shown = ", ".join(f"{name!r} {list(v.shape)}" for name, v in zip(outputs, values, strict=True))
        raise TargetError(
            f"the outputs do not hold scores of the same classes as [N, boxes, K] ({shown}); name those that do with "
            "--output"
        )

    def table() -> Table:
        return joined(t, [_table(t, v, layout, size) for v, size in zip(values, spans, strict=True)])

    names = [str(name) for name in outputs] or [v.name for v in values]
    shown = ", ".join(f"{name!r} {list(v.shape)}" for name, v in zip(names, values, strict=True))
    classes = spans[0] if isinstance(spans[0], int) else None
    boxes = Boxes([(values[0], layout.axis)]) if layout.start and len(values) == 1 else None
    return Reading(f"{layout.shape}, output {shown}", f"format {form}", names, classes, table, boxes)


def _table(t: Builder, value: Value, layout: _Format, size: int | None) -> Table:
    if value.rank == 2:
        value, axis = t.op("Unsqueeze", value, t.ints(2)), 2
        return Table(factors_of(t, value, axis))
    factors = factors_of(t, value, layout.axis)
    scores = tuple(factor.kept(t, layout.start, size) for factor in factors) if layout.start or size else factors
    if layout.objectness is None:
        return Table(scores)
    return Table((*(f.kept(t, layout.objectness, 1) for f in factors), *scores))


def _span(t: Builder, value: Value, layout: _Format, hints: Hints) -> int | None:
    """How many classes a format leaves room for; `None` for all columns of a free number."""
    if value.rank == 2:
        return None
    width = value.shape[layout.axis]
    other = value.shape[3 - layout.axis]
    parts = columns(t, value, layout.axis) if value.probe_shape is not None else []
    if isinstance(width, int) and width <= layout.start:
        raise TargetError(
            f"output {value.name!r} of shape {list(value.shape)} has no room for class scores behind the first "
            f"{layout.start} numbers of a box; describe the table with --boxes"
        )
    if layout.start and (count := _joined_elsewhere(t, value, layout)):
        raise TargetError(
            f"output {value.name!r} {list(value.shape)} is no table {layout.shape}: the graph joins the numbers of a "
            f"box along axis {3 - layout.axis} ({count} of {other}), not along axis {layout.axis} ({width}); describe "
            "the table with another --boxes, or leave the option out"
        )
    room = width - layout.start if isinstance(width, int) else None
    if hints.classes is not None and room is not None and hints.classes > room and layout.start:
        raise TargetError(
            f"output {value.name!r} {list(value.shape)} as {layout.shape} has {room} classes, but there are "
            f"{hints.classes} class names; describe the table with another --boxes"
        )
    return _scores_alone(parts, layout, room)


def _scores_alone(parts: Sequence[Part], layout: _Format, room: int | None) -> int | None:
    """The number of classes without what follows the scores: coefficients of masks, keypoints, an angle."""
    at = 0
    for part in parts:
        if layout.start and at == layout.start and part.kind == "score":
            return part.size
        at += part.size
    return room


def _joined_elsewhere(t: Builder, value: Value, layout: _Format) -> int:
    """How many columns the graph joins along the other axis, if scores follow a box there; else 0."""
    if value.probe_shape is None or value.rank != 3:
        return 0
    parts = columns(t, value, 3 - layout.axis)
    own = columns(t, value, layout.axis)
    kinds = [part.kind for part in parts]
    mixed = len(own) == 1 or all(part.kind == "mixed" for part in own)
    return sum(part.size for part in parts) if mixed and "score" in kinds and kinds[0] in {"box", "raw"} else 0


def _named(t: Builder, outputs: Sequence[str], form: BoxFormat) -> list[Value]:
    """The outputs that hold the scores of the boxes, before they were quantised."""
    layout = _FORMATS[form]
    by_name = {str(o.name): _unquantised(t, t.wrap(o)) for o in t.graph.outputs}
    if not outputs:
        # A table of four columns most likely holds the boxes themselves.
        fitting = [n for n, v in by_name.items() if v.is_float and v.known_shape and v.rank == 3 and v.shape[2] != 4]
        if len(fitting) != 1 or (form == "scores" and not _may_be_scores(t, by_name[fitting[0]])):
            raise TargetError(
                f"which output holds the scores of the boxes cannot be told (outputs: {shown_outputs(t)}); name it "
                "with --output, several times if there are several, or describe the table with --boxes"
            )
        outputs = fitting
    tables = []
    for name in outputs:
        if name not in by_name:
            raise TargetError(_missing(t, name))
        value = by_name[name]
        if value.known_shape is None or value.rank not in layout.ranks or not value.is_float:
            raise TargetError(
                f"output {name!r} is no table {layout.shape} of scores (outputs: {shown_outputs(t)}); name another "
                "with --output, or describe the table with --boxes"
            )
        tables.append(value)
    return tables


def _may_be_scores(t: Builder, value: Value) -> bool:
    """Whether all columns of a table can be scores of classes."""
    parts = columns(t, value, 2) if value.probe_shape is not None else []
    return all(part.kind in {"score", "raw"} for part in parts) and len(parts) <= 1


def _unquantised(t: Builder, value: Value) -> Value:
    """The floating-point tensor before an output's quantization."""
    node = value.core.producer()
    if value.is_float or node is None or node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return value
    return t.wrap(node.inputs[0])


def _missing(t: Builder, name: str) -> str:
    names = [str(o.name) for o in t.graph.outputs]
    return f"the model has no output {name!r}{near_matches(name, names)} (outputs: {shown_outputs(t)})"


def shown_outputs(t: Builder) -> str:
    """The outputs with their shapes, for a message."""
    return ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.outputs))
