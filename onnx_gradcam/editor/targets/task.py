"""Tasks: what a model does, and how its outputs become one score per class, `[N, K]`, in the graph.

The rest of the editor knows class scores only. To add a task, add an entry to `TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_gradcam.errors import TargetError, near_matches
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.paths import QUANTISATION, between, carries_content
from onnx_gradcam.options import Options, ScoreKind

from .axes import Layout, channels_first, follow, label_input, letters
from .detectors.columns import producer_of
from .detectors.coordinates import Coordinates, ImageInput, find_coordinates
from .detectors.families import Hints, Reading, recognize
from .detectors.layouts import hints_of, read_boxes
from .score import Aim, Detections, find_image, find_score

__all__ = ["MASK", "SCORES", "TASKS", "USUAL_TASK", "Task", "candidates", "expose", "find_task", "outputs_for"]
__all__ += ["free_name", "usual_task"]

SCORES = "target_scores"
"""The name of the output that holds one score per class."""

USUAL_TASK = "classification"
DETECTION = "detection"
"""What a model does where neither the user nor the model says it."""

LOGITS = "target_logits"
"""The name of the tensor whose gradient is taken, where it is not the output."""

BOX = "target_box"
"""The name of the input that chooses the explained box."""

MASK = "target_mask"
"""The name of the input that says where a segmentation is explained."""

_BEFORE_MAPS = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "Identity", "Cast", "Transpose", *QUANTISATION}
"""Operators between the logits of a segmentation and its output."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model does.

    Attributes:
        name: its identifier.
        about: what is explained, as a phrase.
        scores: `(builder, options, score kind)` appends `target_scores`, and says what of it is differentiated, if that
            is another tensor; `None` where an output holds the class scores.
        answers: `(builder, output, layouts)`: whether an output could be explained so; `None` where any could.
        method: the method where the user names none.
        several_outputs: the scores may be in several outputs.
        classes_compete: the scores are those of classes, so that a single one decides between two.
        names_apply: the class names that a model carries are names of its scores.
        maps_are_scores: the outputs are maps of classes, so that maps with one channel a class are no layer.
        boxes: the outputs describe boxes, so that what follows the last convolution is no layer.
        needs_reference: the score is a similarity to a reference, which is known only when a model is explained.
    """

    name: str
    about: str
    scores: Callable[[Builder, Options, ScoreKind], Aim | None] | None = None
    answers: Callable[[Builder, Value, Mapping[ir.Value, Layout]], bool] | None = None
    method: str = "gradcam"
    several_outputs: bool = False
    classes_compete: bool = False
    names_apply: bool = True
    maps_are_scores: bool = False
    boxes: bool = False
    needs_reference: bool = False

    @property
    def has_probabilities(self) -> bool:
        """Whether the probabilities of the classes follow from the scores."""
        return self.classes_compete and self.scores is None

    def takes_mask(self, options: Options) -> bool:
        """Whether the region to explain is an input of the explained model."""
        return self.maps_are_scores and options.mask == "input"


def _segmentation(t: Builder, options: Options, kind: ScoreKind) -> None:
    """The sum of each class's scores over a part of the image, as pytorch-grad-cam's SemanticSegmentationTarget.

    A single map decides between two classes: 1 is the map itself, 0 its complement, the negated map. A class that is
    predicted nowhere scores zero, and less than every predicted class if these are negative. The mask `own` sums where
    the class is predicted, `all` everywhere, `input` with the weights of the new input `target_mask`, `float32 [N, h,
    w]` at the output's resolution. The kind `logit` sums what comes before a trailing Softmax, LogSoftmax, Sigmoid or
    ArgMax.
    """
    maps, layout = _class_maps(t, _one_output(options), kind)
    channel, spatial = _map_axes(layout)
    if maps.shape[channel] == 1:
        probability = any(producer_of(value) == "Sigmoid" for value in _backwards(t, maps))
        complement = 1.0 - maps if probability else -maps
        maps = t.op("Concat", complement, maps, axis=channel)
    if options.mask == "own":
        expose(t, _over_own(t, maps, channel, spatial))
        return
    if options.mask == "input":
        maps = t.op("Mul", maps, _region(t, maps, channel, spatial))
    expose(t, t.sum(maps, spatial, keepdims=False))


def _over_own(t: Builder, maps: Value, channel: int, spatial: Sequence[int]) -> Value:
    """The sum of every class over the positions where it is predicted, `[N, K]`."""
    best = t.op("ArgMax", maps, axis=channel, keepdims=1)
    count = t.op("Squeeze", t.op("Shape", maps, start=channel, end=channel + 1))
    every = t.op("Range", t.const(0, np.int64), count, t.const(1, np.int64))
    shape = [1] * maps.rank
    shape[channel] = -1
    chosen = t.cast(t.op("Equal", best, t.op("Reshape", every, t.ints(*shape))), maps.dtype)
    total = t.sum(t.op("Mul", maps, chosen), spatial, keepdims=False)
    present = t.reduce("ReduceMax", chosen, spatial, keepdims=False) > 0.0
    # No gradient crosses the rounding, as it should be for a class that is predicted nowhere.
    lowest = t.op("Floor", t.op("Min", t.reduce("ReduceMin", total, [1]), 0.0) * 2.0)
    return t.op("Where", present, total, lowest)


def _values_of_maps(t: Builder, options: Options, kind: ScoreKind) -> None:  # noqa: ARG001 - the signature of a task
    """The mean of each map of values over the positions, or over a region.

    A value has no class whose positions it could be restricted to, so the masks `own` and `all` are the same. With
    `input`, positions have the weights of the new input `target_mask`, `float32 [N, h, w]` at the output's resolution.
    """
    maps, layout = _class_maps(t, _one_output(options), "output")
    channel, spatial = _map_axes(layout)
    if options.mask == "input":
        region = _region(t, maps, channel, spatial)
        size = t.op("Max", t.sum(region, spatial, keepdims=False), float(np.finfo(np.float16).tiny))
        expose(t, t.sum(t.op("Mul", maps, region), spatial, keepdims=False) / size)
        return
    expose(t, t.mean(maps, spatial, keepdims=False))


def _map_axes(layout: Layout) -> tuple[int, list[int]]:
    """Where the classes or values and where the positions are among the axes of maps."""
    kinds = [axis.kind if axis is not None else "" for axis in layout]
    return kinds.index("C"), [i for i, axis in enumerate(kinds) if axis == "S"]


def _region(t: Builder, maps: Value, channel: int, spatial: Sequence[int]) -> Value:
    """The new input `target_mask`, as factors of maps."""
    if len(spatial) != 2:
        raise TargetError("--mask input weighs the positions of images, and these maps are volumes; use --mask own")
    _free(t, MASK)
    weights = t.input(MASK, np.float32, tuple(maps.shape[i] for i in (0, *spatial)))
    return t.cast(t.op("Unsqueeze", weights, t.ints(channel)), maps.dtype)


def _class_maps(t: Builder, name: str | None, kind: ScoreKind) -> tuple[Value, Layout]:
    """The tensor with one map per class, and the meaning of its axes."""
    layouts = follow(t)
    maps: dict[str, tuple[Value, Layout]] = {}
    for output in map(t.wrap, t.graph.outputs):
        chain = [v for v in _backwards(t, output) if v.is_float and _is_class_map(layouts.get(v.core))]
        if chain:
            source = chain[0 if kind == "output" else -1]
            maps[output.name] = source, layouts[source.core]
    if name is not None:
        if name not in maps:
            raise TargetError(
                f"output {name!r} holds no map for each class{near_matches(name, maps)} (those that do: "
                f"{list(maps) or 'none'}; outputs: {_shown(t)})"
            )
        return maps[name]
    if len({source.core for source, _ in maps.values()}) != 1:
        which = "no output holds" if not maps else f"several outputs ({', '.join(map(repr, maps))}) hold"
        raise TargetError(
            f"{which} a map for each class, [N, K, h, w] or [N, h, w, K] behind convolutions, or of a volume "
            f"(outputs: {_shown(t)}); name one with --output"
        )
    return next(iter(maps.values()))


def _backwards(t: Builder, value: Value) -> Iterator[Value]:
    """A tensor, and the tensors before it that it is an activation, a view or the ArgMax of."""
    yield value
    while (node := value.core.producer()) is not None and node.op_type in _BEFORE_MAPS and node.inputs[0] is not None:
        value = t.wrap(node.inputs[0])
        yield value


def _is_class_map(layout: Layout | None) -> bool:
    kinds = sorted(axis.kind if axis is not None else "" for axis in layout or ())
    return kinds in (["C", "N", "S", "S"], ["C", "N", "S", "S", "S"])


def _detection(t: Builder, options: Options, kind: ScoreKind) -> Aim | None:
    """The score of one box for each class: of a rank among the boxes of the class, 0 for the highest, or of an index.

    How the outputs are read says `detectors.layouts`; several (the levels of a pyramid) are one behind the other. What
    is differentiated is the logit of the probability that is shown. The input `target_box`, `int64 [1]` or `[N]`,
    chooses another box where it is not negative. The outputs `detection_scores`, `[N, boxes, K]`, and where they are
    known `detection_boxes`, `[N, boxes, 4]`, are the table of all boxes.
    """
    reading = read_boxes(t, options)
    table = reading.table()
    rows = table.factors[0].value.shape[1]
    count = rows if isinstance(rows, int) else None
    index = options.box_rank if options.box is None else options.box
    if index < 0 or (count is not None and index >= count):
        numbers = f"boxes 0 to {count - 1}" if count is not None else "boxes from 0 on"
        raise TargetError(f"there is no box {index}; the model has {numbers}")
    fixed = np.array([-1 if options.box is None else options.box], np.int64)
    box_input = "" if options.class_input in {"none", "all"} else free_name(t, BOX)
    one = table.of_one_box(t, options.box_rank, t.default_input(box_input, fixed) if box_input else t.const(fixed))
    expose(t, one.shown)
    tensor = one.shown if kind == "output" else one.logits
    if tensor is not one.shown:
        _free(t, LOGITS)
        t.rename(tensor, LOGITS)
    placed = _coordinates(t, options, reading, count)
    scores = t.output(t.cast(table.scores(t), np.float32), free_name(t, "detection_scores"))
    boxes = placed and t.output(t.cast(placed.boxes(), np.float32), free_name(t, "detection_boxes"))
    which = f"the box of rank {options.box_rank} among those of the class" if options.box is None else f"box {index}"
    what = f"explained is the {'score itself, as requested,' if tensor is one.shown else 'logit'} of {which}"
    where = f"boxes are {placed.how}" if placed else "where its boxes are cannot be told, so none are drawn"
    return Aim(
        tensor.name,
        f"{reading.reason}; {what}; {where}",
        tensor is one.shown or table.comparable,
        reading.cut,
        Detections(one.indices.name, box_input, scores.name, boxes.name if boxes else ""),
    )


def _coordinates(t: Builder, options: Options, reading: Reading, rows: int | None) -> Coordinates | None:
    """Where the boxes of a reading are, if that can be told."""
    image = find_image(t, options.image)
    layout = letters(label_input(t, image) or channels_first(image.rank))
    if not {"H", "W"} <= set(layout):
        return None
    return find_coordinates(t, ImageInput(image, layout.index("H"), layout.index("W")), reading.boxes, rows)


def _similarity(t: Builder, options: Options, kind: ScoreKind) -> None:  # noqa: ARG001 - the signature of a task
    """The cosine similarity of an embedding, of the output if named, and a reference `[D]`."""
    output = _one_output(options)
    if options.reference is None:
        raise TargetError("the similarity of embeddings needs a reference to be similar to; give one with --reference")
    try:
        flat = np.asarray(options.reference, dtype=np.float64).reshape(-1)
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
    unit = t.const((flat / length).reshape(-1, 1), embedding.dtype)
    expose(t, (embedding @ unit) / t.op("Max", norm, float(np.finfo(np.float16).tiny)))


def _holds(value: Value, size: int) -> bool:
    """Whether a tensor holds one vector of a size per sample: `[N, D]`, or with axes of size one."""
    shape = value.known_shape
    return shape is not None and len(shape) > 1 and [d for d in shape[1:] if d != 1] == ([size] if size != 1 else [])


def _shown(t: Builder) -> str:
    return ", ".join(f"{v.name!r} {list(v.known_shape or ())}" for v in map(t.wrap, t.graph.outputs))


def expose(t: Builder, scores: Value) -> None:
    """Make `scores`, `[N, K]`, the output `target_scores`; refused if a tensor has this name already."""
    _free(t, SCORES)
    t.output(scores, SCORES)


def _free(t: Builder, name: str) -> None:
    if t.taken(name):
        raise TargetError(f"the model has a tensor {name!r} already, which this task adds; rename it")


def free_name(t: Builder, name: str) -> str:
    """`name`, with a prefix if the model has a tensor of that name."""
    while t.taken(name):
        name = f"gradcam_{name}"
    return name


def _holds_class_maps(t: Builder, output: Value, layouts: Mapping[ir.Value, Layout]) -> bool:
    return any(_is_class_map(layouts.get(value.core)) for value in _backwards(t, output))


def _holds_boxes(t: Builder, output: Value, layouts: Mapping[ir.Value, Layout]) -> bool:  # noqa: ARG001
    try:
        reading = recognize(t, Hints())
    except TargetError:
        reading = None
    if reading is not None:
        return output.name in reading.outputs
    return output.is_real and len(output.known_shape or ()) == 3


def _holds_embedding(t: Builder, output: Value, layouts: Mapping[ir.Value, Layout]) -> bool:  # noqa: ARG001
    return output.is_float and len(output.known_shape or ()) == 2


def _one_output(options: Options) -> str | None:
    outputs = options.output
    return outputs if isinstance(outputs, str) or outputs is None else next(iter(outputs), None)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="classification", about="the score of a class", classes_compete=True),
        Task(name="regression", about="a value that the model outputs"),
        Task(
            name="segmentation",
            about="the scores of a class, summed over a part of the image",
            scores=_segmentation,
            answers=_holds_class_maps,
            method="hirescam",
            classes_compete=True,
            maps_are_scores=True,
        ),
        Task(
            name="dense-regression",
            about="a map of values, such as depth, averaged over a part of the image",
            scores=_values_of_maps,
            answers=_holds_class_maps,
            method="hirescam",
            maps_are_scores=True,
        ),
        Task(
            name=DETECTION,
            about="the score of one box",
            scores=_detection,
            answers=_holds_boxes,
            method="hirescam",
            several_outputs=True,
            boxes=True,
        ),
        Task(
            name="embedding",
            about="the cosine similarity to a reference",
            scores=_similarity,
            answers=_holds_embedding,
            names_apply=False,
            needs_reference=True,
        ),
    )
}
"""The tasks by name."""


def find_task(name: str) -> Task:
    """The task called `name`."""
    if name not in TASKS:
        raise TargetError(f"there is no task {name!r}{near_matches(name, TASKS)}; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def usual_task(t: Builder, options: Options) -> str:
    """The task of a model whose user names none: detection where the graph holds tables of boxes.

    Raises:
        TargetError: the graph holds tables of boxes that can be read in two ways, or class scores beside them.
    """
    if options.boxes is not None or options.background is not None:
        return DETECTION
    doubt: TargetError | None = None
    try:
        reading = recognize(t, hints_of(options))
    except TargetError as exc:
        reading, doubt = None, exc
    if options.at is not None:
        if reading is not None or doubt is not None:
            family = "" if reading is None else f" ({reading.family})"
            raise TargetError(f"the model outputs boxes{family}, no classes at places; leave out --at") from doubt
        return USUAL_TASK
    named = _named_outputs(options.output)
    if named and (reading is None or not set(named) <= set(reading.outputs)):
        return USUAL_TASK
    if reading is None and doubt is None:
        return USUAL_TASK
    classified = not named and _holds_class_scores(t, reading.outputs if reading is not None else ())
    if reading is not None and classified:
        raise TargetError(
            f"the model could be a classifier or a detector of {reading.family}; say which with --task classification "
            "or --task detection"
        )
    if doubt is not None and not classified:
        raise doubt
    return USUAL_TASK if classified else DETECTION


def _holds_class_scores(t: Builder, others: Sequence[str]) -> bool:
    """Whether an output that depends on the inputs holds class scores, and is none of `others`."""
    try:
        output = find_score(t).output
    except TargetError:
        return False
    # How many boxes there are may be a constant.
    return output.name not in others and bool(between(t.nodes, t.graph.inputs, [output.core], carries_content)[0])


def outputs_for(t: Builder, task: Task, named: str | Sequence[str] | None = None) -> list[str]:
    """The outputs that a task explains: those named, else those whose shapes and axes fit; empty where any could."""
    outputs = {str(value.name): t.wrap(value) for value in t.graph.outputs}
    if named := _named_outputs(named):
        unknown = next((name for name in named if name not in outputs), None)
        if unknown is not None:
            raise TargetError(
                f"the model has no output {unknown!r}{near_matches(unknown, outputs)} (outputs: {_shown(t)})"
            )
        return named
    if task.answers is None:
        return []
    layouts = follow(t)
    fitting = [name for name, value in outputs.items() if task.answers(t, value, layouts)]
    if not fitting or (task.needs_reference and len(fitting) > 1):
        raise TargetError(
            f"which output a model for {task.name} is explained by cannot be told (outputs: {_shown(t)}); name it with "
            "--output"
        )
    return fitting


def _named_outputs(outputs: str | Sequence[str] | None) -> list[str]:
    return [outputs] if isinstance(outputs, str) else list(outputs or ())


def candidates(t: Builder) -> dict[str, list[str]]:
    """The outputs that each task could explain, by their shapes and axes; tasks without any are left out."""
    layouts = follow(t)
    outputs = [t.wrap(output) for output in t.graph.outputs]
    names = {
        task.name: [value.name for value in outputs if task.answers(t, value, layouts)]
        for task in TASKS.values()
        if task.answers is not None
    }
    return {task: fitting for task, fitting in names.items() if fitting}
