"""Boxes of a detector in one image: listed after suppressing overlaps, and chosen for an explanation.

A detector's table has many rows for one object. Here the rows of one class that overlap with a surer one are left out
(non-maximum suppression), so that a box in the list is an object, and ranks count objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, NothingFoundError, TargetError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.options import check_word

from .answers import Box, class_of

__all__ = ["EMPTY_TABLE", "Detections", "Selection", "overlaps", "parse_selection", "suppressed"]

Array = npt.NDArray[Any]
EMPTY_TABLE: Final = "specified axis dim value [0]"
"""What ONNX Runtime says of the best box of a table without any, which NMS in the graph may leave."""

Which = Literal["index", "number", "rank", "all", "sum"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which boxes of an image are explained.

    Attributes:
        which: `index`: the box at an index of the table; `number`: a box of the list, which starts at 0; `rank`: of the
            objects of the class, 0 for the surest; `all`: a map for each box of the list; `sum`: one map, the sum of
            the raw maps of all boxes of the class.
        value: the index, number or rank.
        least: boxes below this score are not in the list.
        overlap: intersection over union above which the less sure of two boxes of one class is left out.
        most: the largest number of boxes that `all` explains, `None` for all of them.

    Raises:
        InputError: a value is out of range.

    Example::

        explanation = Explainer("detector.onnx")("street.jpg", box=Selection(which="all", least=0.4))
    """

    which: Which
    value: int = 0
    least: float = 0.25
    overlap: float = 0.45
    most: int | None = 12

    def __post_init__(self) -> None:
        check_word("which", self.which, ("index", "number", "rank", "all", "sum"))
        for name in ("least", "overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; choose a number from 0 to 1")
        for name, lowest in (("value", 0), ("most", 1)):
            value = getattr(self, name)
            if value is None and name == "most":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
                raise InputError(f"{name} is {value!r}; choose a whole number from {lowest} on")

    @property
    def listed(self) -> bool:
        """Whether only boxes of the list can be chosen, which have at least the score `least`."""
        return self.which in {"number", "all", "sum"}


def parse_selection(box: int | str | Box | Selection | None, *, most: int | None = Selection.most) -> Selection | None:
    """A selection as users write it: a box, its index in the table, `all` (at most so many) or `sum`."""
    if box is None or isinstance(box, Selection):
        return box
    if isinstance(box, str):
        check_word("box", box, ("all", "sum"))
        return Selection(which="all" if box == "all" else "sum", most=most)
    return Selection(which="index", value=box.index if isinstance(box, Box) else box)


@dataclass(frozen=True, eq=False)
class Detections:
    """The table of all boxes in one image.

    Attributes:
        scores: the probabilities, `[boxes, K]`.
        corners: x0 y0 x1 y1 in pixels of the image, `[boxes, 4]`; `None` where the model does not tell them. No box is
            suppressed then.
        labels: class names, or `None`.
        size: height and width of the image.
    """

    scores: Array
    corners: Array | None
    labels: Sequence[str] | None
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        scores: Array,
        boxes: Array | None,
        inputs: tuple[int, int],
        placement: Placement,
        labels: Sequence[str] | None,
    ) -> Detections:
        """The table in one row of the outputs.

        `boxes` are in pixels of the model's input, whose height and width are `inputs`.
        """
        corners = None
        if boxes is not None:
            left, top, right, bottom = placement.box
            across, down = (right - left) / inputs[1], (bottom - top) / inputs[0]
            corners = boxes.astype(np.float64) * (across, down, across, down) + (left, top, left, top)
        return cls(scores, corners, labels, (placement.height, placement.width))

    def box(self, index: int, target: int, n: int | None = None) -> Box:
        """The box at an index of the table, as one of a class."""
        xyxy = None
        if self.corners is not None and np.isfinite(self.corners[index]).all():
            height, width = self.size
            x0, y0, x1, y1 = np.clip(self.corners[index], 0, (width, height, width, height)).tolist()
            xyxy = (x0, y0, x1, y1)
        return Box(n, index, class_of(target, self.scores[index], self.labels), xyxy)

    def listed(
        self,
        classes: Sequence[int] | None = None,
        *,
        least: float = 0.25,
        overlap: float = 0.45,
        most: int | None = None,
    ) -> list[Box]:
        """The boxes, numbered from 0, the surest first; each of its best class, or those of some classes."""
        rows, targets = _candidates(self.scores, classes, least)
        kept = suppressed(
            self.scores[rows, targets], None if self.corners is None else self.corners[rows], targets, overlap, most
        )
        return [self.box(int(rows[i]), int(targets[i]), n) for n, i in enumerate(kept)]

    def chosen(self, selection: Selection, classes: Sequence[int] | None, best: int) -> list[Box]:
        """The boxes that a selection stands for; `best` is the class where none are named and one is needed.

        Raises:
            TargetError: the table has no such box.
            NothingFoundError: the list has no such box, or none with the score that is asked for.
        """
        if selection.which == "index":
            return [self._at(selection.value, target) for target in classes or [-1]]
        if selection.which in {"rank", "sum"}:
            classes = classes or [best]
        if selection.which == "rank":
            return [self._ranked(selection, target) for target in classes or ()]
        boxes = self.listed(classes, least=selection.least, overlap=selection.overlap)
        if not boxes:
            raise NothingFoundError(self._nothing(selection.least, classes))
        if selection.which != "number":
            return boxes[: selection.most] if selection.which == "all" else boxes
        if selection.value >= len(boxes):
            raise NothingFoundError(
                f"there is no box {selection.value} in this image; the list of those with a score of at least "
                f"{selection.least:g} ends with {len(boxes) - 1}"
            )
        return [boxes[selection.value]]

    def notes(self, selection: Selection, boxes: Sequence[Box], classes: Sequence[int] | None = None) -> list[str]:
        """What users should know of a choice from a list of boxes, which are of some classes or all."""
        notes = []
        if selection.which == "all" and selection.most is not None and len(boxes) > selection.most:
            notes.append(f"{selection.most} of {len(boxes)} boxes are explained, the surest; raise --least for fewer")
        if selection.which in {"all", "sum"} and boxes and classes is not None:
            found = {box.target.index for box in boxes}
            notes += [self._nothing(selection.least, [target]) for target in classes if target not in found]
        if self.corners is None and selection.which != "index":
            notes.append("where this model's boxes are cannot be told, so those that overlap count as several")
        return notes

    def _at(self, index: int, target: int) -> Box:
        if index >= len(self.scores):
            raise TargetError(f"there is no box {index}; the model has boxes 0 to {len(self.scores) - 1}")
        return self.box(index, int(self.scores[index].argmax()) if target < 0 else target)

    def _ranked(self, selection: Selection, target: int) -> Box:
        boxes = self.listed([target], least=0.0, overlap=selection.overlap, most=selection.value + 1)
        if selection.value >= len(boxes):
            raise NothingFoundError(
                f"there is no box of rank {selection.value}; this image has {len(boxes)} of the class"
            )
        return boxes[selection.value]

    def _nothing(self, least: float, classes: Sequence[int] | None) -> str:
        """Why a list is empty, in words."""
        scores = self.scores if classes is None else self.scores[:, list(classes)]
        best = float(scores.max()) if scores.size else 0.0
        what = (
            "nothing" if classes is None else f"no {self._name(classes[0])}" if len(classes) == 1 else "none of these"
        )
        finds = f"the model finds {what} with a score of at least {least:g}; the highest is {best:.3g}"
        return f"{finds} (check --preprocess if there should be something)" if classes is None else finds

    def _name(self, target: int) -> str:
        return repr(class_of(target, self.scores[0], self.labels).label) if len(self.scores) else f"class {target}"


def _candidates(scores: Array, classes: Sequence[int] | None, least: float) -> tuple[Array, Array]:
    """Rows and classes with a score of at least `least`; each row with its best class, or with each of some classes."""
    if classes is None:
        targets = scores.argmax(1) if scores.size else np.zeros(0, np.int64)
        rows = np.arange(len(scores))
    else:
        rows, targets = np.repeat(np.arange(len(scores)), len(classes)), np.tile(np.asarray(classes), len(scores))
    good = scores[rows, targets] >= max(least, np.finfo(np.float32).tiny)
    return rows[good], targets[good]


def suppressed(
    scores: Array, corners: Array | None, targets: Array, overlap: float, most: int | None = None
) -> list[int]:
    """Class-wise non-maximum suppression: which boxes are kept, the surest first, at most `most`.

    Args:
        scores: `[n]`.
        corners: x0 y0 x1 y1, `[n, 4]`; `None` keeps all boxes.
        targets: the class of each box, `[n]`.
        overlap: intersection over union above which the less sure of two boxes of one class is left out.
        most: the largest number of boxes to keep.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    kept: list[int] = []
    while len(order) and (most is None or len(kept) < most):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        if corners is not None:
            others = corners[order]
            order = order[(overlaps(corners[best], others) <= overlap) | (targets[order] != targets[best])]
    return kept


def overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of a box and others, `[n]`; NaN for two that are infinite."""
    with np.errstate(invalid="ignore"):
        low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(1) + np.clip(box[2:] - box[:2], 0, None).prod()
        result: Array = shared / np.maximum(areas - shared, 1e-12)
    return result
