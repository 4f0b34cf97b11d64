"""An image on its way from the file to its explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, NothingFoundError
from onnx_gradcam.images.decoding import Placement
from onnx_gradcam.images.views import View
from onnx_gradcam.metadata import Metadata

from .answers import Box, probabilities
from .detections import Detections, Selection
from .explanation import ClassMap, Explanation

__all__ = ["Pending", "Prepared"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for the model.

    Attributes:
        image: the image, `uint8 [H, W, 3]` RGB.
        tensor: the model's input made from it, without a batch axis.
        placement: which part of the image the model sees.
        view: how an array (a signal, a volume, a clip) is drawn; `None` for an image.
        feeds: values of the model's other inputs, where they are known already.
    """

    image: npt.NDArray[np.uint8]
    tensor: Array
    placement: Placement
    view: View | None = None
    feeds: Mapping[str, Array] | None = None


@dataclass(eq=False)
class Pending:
    """An image that is being explained; `heatmaps` and `cams` are of all classes if the model gives them at once.

    `best` is the class that the model explains first; `feeds` are the values of the model's other inputs; `shared` is
    the forward pass, where several boxes are explained.
    """

    prepared: Prepared
    scores: Array = field(default_factory=lambda: np.zeros(0))
    best: int = -1
    heatmaps: Array = field(default_factory=lambda: np.zeros(0))
    cams: Array = field(default_factory=lambda: np.zeros(0))
    maps: list[ClassMap] = field(default_factory=list)
    table: Detections | None = None
    boxes: list[Box] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: NothingFoundError | None = None
    feeds: Mapping[str, Array] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)

    def note_low_score(self) -> None:
        """Say that a box was explained which users of the detector would not see."""
        lowest = min((m.target.score for m in self.maps), default=1.0)
        if lowest < Selection.least:
            self.notes.append(
                f"the box has a score of {lowest:.3g} only, below {Selection.least:g}, so there may be nothing in it"
            )

    def listed(self, index: int, target: int) -> Box:
        """The box of an index and a class, numbered if it is in the list."""
        assert self.table is not None  # noqa: S101 - the caller has looked
        same = (box for box in self.boxes if (box.index, box.target.index) == (index, target))
        return next(same, None) or self.table.box(index, target)

    def finished(
        self, labels: Sequence[str] | None, metadata: Metadata, *, one_layer: bool
    ) -> Explanation | InputError:
        """The explanation, or why there is none."""
        if self.problem is not None:
            return self.problem
        box = metadata.box_in(*self.maps[0].heatmap.shape) if metadata.extent else None
        return Explanation(
            self.prepared.image,
            self.prepared.placement,
            self.scores,
            labels,
            self.maps,
            metadata.preset,
            one_layer,
            box,
            self.boxes,
            self.notes,
            probabilities(self.scores, metadata),
            self.prepared.view,
        )
