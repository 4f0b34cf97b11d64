"""Ways to run an explained model on a batch: as it is, in batches of a fixed size, and augmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ModelError, TargetError
from onnx_gradcam.feeds import NOTHING, Fed
from onnx_gradcam.images.decoding import read_region
from onnx_gradcam.metadata import Metadata

from .session import InputInfo, Session

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Attached",
    "Augmented",
    "Choice",
    "Halved",
    "Runner",
    "chosen_inputs",
    "fixed_size",
    "image_feed",
    "image_input",
    "in_batches",
    "in_type",
]
__all__ += ["other_inputs", "paired", "without_tables"]

Array = npt.NDArray[Any]
_LARGEST_BATCH = 2**30
"""Numbers in a batch of a fixed size that is filled up with copies of its last row."""

Choice = tuple[int, "int | None"]
"""The class of a row, -1 for the predicted one, and the index of its box, `None` for the best one."""

Run = Callable[[Array, Sequence[Choice], dict[str, Array]], dict[str, Array]]
"""Runs rows of the image, what is chosen of each, and the other inputs' values by name."""


class Runner(Protocol):
    """Explains batches.

    Attributes:
        metadata: what the explained model says about itself.
        session: the model that is run.
        results: name, dtype and shape of each output of `run`.
    """

    metadata: Metadata
    session: Session
    results: list[InputInfo]

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,
        *,
        tables: bool = False,
        maps: bool = True,
        fed: Fed = NOTHING,
    ) -> dict[str, Array]:
        """Explain every row of a batch for its class, -1 for the predicted one; all outputs by name.

        A detector explains the boxes of these indices, by default the best of the class each. The tables of all boxes
        are among the outputs where they are asked for with `tables`. Where no `maps` are asked for, they may be
        missing: methods that run the model many times leave that out. `fed` are the values of a model's other inputs.
        """


class Attached:
    """Runs a model with heatmap outputs, once for each batch.

    The region says where a segmentation with `mask="input"` is explained; see `images.decoding.read_region`.
    """

    def __init__(
        self,
        metadata: Metadata,
        session: Session,
        region: str | Path | Array | None = None,
        halved: Callable[[], Halved | None] | None = None,
    ) -> None:
        self.metadata, self.session, self.results = metadata, session, without_tables(metadata, session.outputs)
        self._halved = halved
        self._size = fixed_size(image_input(metadata, session))
        shape = session.input(metadata.mask_input).shape if metadata.mask_input else None
        self._region = read_region(region, metadata.mask_input, shape)

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,
        *,
        tables: bool = False,
        maps: bool = True,  # noqa: ARG002 - one run gives all
        fed: Fed = NOTHING,
    ) -> dict[str, Array]:
        """See `Runner`."""
        outputs = [info.name for info in (self.session.outputs if tables else self.results)]

        def run(rows: Array, chosen: Sequence[Choice], others: dict[str, Array]) -> dict[str, Array]:
            return self.session.run({**self._feeds(rows, chosen), **others}, outputs)

        chosen = paired(classes, boxes)
        results = in_batches(run, batch, chosen, self._size, fed, apart=self.metadata.couples_rows)
        _check_honoured(self.metadata, chosen, results, self.session)
        return results

    @cached_property
    def halved(self) -> Halved | None:
        """The model in two parts, loaded when first asked for; `None` where it cannot be cut or chooses no box."""
        return None if self._halved is None or self._size not in {None, 1} else self._halved()

    def _feeds(self, batch: Array, chosen: Sequence[Choice]) -> dict[str, Array]:
        feeds = {**image_feed(self.metadata, batch), **chosen_inputs(self.metadata, chosen, self.session)}
        if self._region is not None:
            feeds[self.metadata.mask_input] = np.repeat(self._region[None], len(batch), axis=0)
        return feeds


class Halved:
    """Explains many boxes of one image: what does not depend on them is computed once."""

    @classmethod
    def of(
        cls, metadata: Metadata, explained: onnx.ModelProto, folder: Path | None, execution: Mapping[str, Any]
    ) -> Halved | None:
        """Load the two parts of an explained model; `None` where it cannot be cut.

        Args:
            metadata: what the model says about itself.
            explained: the model.
            folder: the folder that its external weights are relative to.
            execution: provider and threads of `Session`.
        """
        # Most explanations of explained files need no graph code.
        from onnx_gradcam.graph.paths import halves  # noqa: PLC0415

        parts = halves(explained, {metadata.class_input, metadata.box_input} - {""})
        if parts is None:
            return None
        first, second = (
            Session(
                part.SerializeToString(),
                folder=folder,
                disabled_optimizers=metadata.disabled_optimizers,
                **execution,
            )
            for part in (parts.first, parts.second)
        )
        return cls(metadata, first, second, parts.between, parts.shared)

    def __init__(
        self, metadata: Metadata, first: Session, second: Session, between: Sequence[str], shared: Sequence[str]
    ) -> None:
        self._metadata, self._first, self._second, self._between = metadata, first, second, between
        infos = [info for info in first.outputs if info.name in shared]
        self._shared, self._tables = shared, {metadata.detection_scores, metadata.detection_boxes}
        self._left = {*shared} - {info.name for info in without_tables(metadata, infos)} - self._tables

    def forward(self, row: Array, fed: Fed = NOTHING) -> dict[str, Array]:
        """What the boxes of one image share: the first part's outputs for its input, `[1, ...]`."""
        feed = {**image_feed(self._metadata, row), **fed.of([0])}
        return {**feed, **self._first.run(feed, sorted({*self._between, *self._shared} - set(feed)))}

    def run(self, shared: Mapping[str, Array], chosen: Sequence[Choice], *, tables: bool = False) -> dict[str, Array]:
        """All outputs, a row for each choice, from what `forward` gave; the tables of boxes as in `Runner.run`."""
        feeds = {name: shared[name] for name in self._between}
        runs = [
            self._second.run({**feeds, **chosen_inputs(self._metadata, [choice], self._second)}) for choice in chosen
        ]
        kept = set(self._shared) - (set() if tables else self._tables)
        results = {name: np.repeat(shared[name], len(chosen), axis=0) for name in kept - self._left}
        results |= {name: np.concatenate([one[name] for one in runs]) for name in runs[0]}
        _check_honoured(self._metadata, chosen, results, self._second)
        return results


class Augmented:
    """Explains every row six times and averages the maps: test-time augmentation.

    The input is mirrored or not and multiplied by 0.9, 1 and 1.1, as in pytorch-grad-cam 1.5.7 (`base_cam.py`,
    `aug_smooth=True`). All six runs explain the class of the unchanged input. The mean of the heatmaps is not scaled
    again, so that positions where the six agree stand out. Tasks with boxes or regions, which mirroring would move, are
    refused.
    """

    strengths = (0.9, 1.0, 1.1)

    def __init__(self, runner: Runner) -> None:
        self.metadata, self.session, self.results = runner.metadata, runner.session, runner.results
        self._runner = runner
        self.metadata.require_images("augmentation")
        if self.metadata.mask_input or self.metadata.task == "detection":
            raise TargetError("mirroring an image moves its boxes and its region; leave the augmentation out")

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,  # noqa: ARG002 - detectors are refused
        *,
        tables: bool = False,  # noqa: ARG002
        maps: bool = True,  # noqa: ARG002
        fed: Fed = NOTHING,
    ) -> dict[str, Array]:
        """See `Runner`; maps are means, other outputs are those of the unchanged input."""
        metadata = self.metadata
        outputs = self._runner.run(batch, classes, fed=fed)
        explained = [int(index) for index in outputs[metadata.heatmap_class]]
        width = metadata.batch_layout.index("W")
        # The axis of the width in each of the maps.
        axes = {metadata.heatmap: -1, metadata.cam: -1, metadata.attribution: width}
        axes.pop("", None)
        totals = {name: outputs[name].astype(np.float64) for name in axes}
        for mirrored in (False, True):
            for strength in self.strengths:
                if not mirrored and strength == 1:
                    continue
                rows = np.flip(batch, width) if mirrored else batch
                results = self._runner.run(
                    in_type(rows.astype(np.float32) * np.float32(strength), batch.dtype), explained, fed=fed
                )
                if results[metadata.heatmap_class].tolist() != explained:
                    raise TargetError(
                        "the model chooses the class itself, and a different one for the mirrored or scaled image; "
                        "start from the original model, or leave the augmentation out"
                    )
                for name, axis in axes.items():
                    totals[name] += np.flip(results[name], axis) if mirrored else results[name]
        count = 2 * len(self.strengths)
        return outputs | {name: (total / count).astype(outputs[name].dtype) for name, total in totals.items()}


def other_inputs(metadata: Metadata, session: Session) -> list[InputInfo]:
    """The model's own inputs besides the image."""
    added = {metadata.image_input, metadata.class_input, metadata.box_input, metadata.mask_input}
    return [info for info in session.inputs if info.name not in added]


def image_input(metadata: Metadata, session: Session) -> InputInfo:
    """The image input, with the shape of a batch; of one image where the input has no batch axis."""
    info = session.input(metadata.image_input)
    return replace(info, shape=metadata.batch_shape(info.shape))


def image_feed(metadata: Metadata, batch: Array) -> dict[str, Array]:
    """The image input for a batch, which is of one image where the input has no batch axis."""
    return {metadata.image_input: batch if metadata.batched else batch[0]}


def fixed_size(image: InputInfo) -> int | None:
    """The batch size of a model that allows only one; `None` for any other."""
    size = image.shape[0]
    return size if isinstance(size, int) and size > 0 else None


def in_type(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in the dtype of a model's input; for integers they are rounded and clipped to its range."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def without_tables(metadata: Metadata, outputs: Sequence[InputInfo]) -> list[InputInfo]:
    """The outputs but for the tables of all boxes, and without a batch axis those of the model, which have no rows."""
    tables = {metadata.detection_scores, metadata.detection_boxes}
    return [info for info in outputs if info.name not in tables and (metadata.batched or info.name in metadata.rows)]


def paired(classes: Sequence[int], boxes: Sequence[int] | None) -> list[Choice]:
    """The class and the box of every row."""
    chosen: Sequence[int | None] = [None] * len(classes) if boxes is None else boxes
    return list(zip(classes, chosen, strict=True))


def chosen_inputs(metadata: Metadata, chosen: Sequence[Choice], session: Session) -> dict[str, Array]:
    """The inputs of a session that choose classes and boxes."""
    feeds = {}
    if metadata.class_input:
        feeds[metadata.class_input] = np.array([index for index, _ in chosen], np.int64)
    boxes = [box for _, box in chosen if box is not None]
    if not boxes and any(info.name == metadata.box_input for info in session.inputs):
        boxes = [-1] * len(chosen)  # the input cannot be left out
    if boxes:
        feeds[metadata.box_input] = np.array(boxes, np.int64)
    return feeds


def _check_honoured(
    metadata: Metadata, chosen: Sequence[Choice], results: Mapping[str, Array], session: Session
) -> None:
    """Refuse results of another class or box than was fed: some execution providers ignore inputs with a default."""
    classes, boxes = [index for index, _ in chosen], [-1 if box is None else box for _, box in chosen]
    for name, output, fed in (
        (metadata.class_input, metadata.heatmap_class, classes),
        (metadata.box_input, metadata.heatmap_box, boxes),
    ):
        explained = results[output].tolist() if name and output in results else fed
        for asked, got in zip(fed, explained, strict=True):
            if asked >= 0 and asked != got:
                raise ModelError(
                    f"{session.provider} ignores the model's input {name!r}: it explained {got} instead of {asked}; "
                    "attach the explanation with --class-input required, or run on --provider cpu"
                )


def in_batches(
    run: Run, rows: Array, chosen: Sequence[Choice], size: int | None, fed: Fed = NOTHING, *, apart: bool = False
) -> dict[str, Array]:
    """Run any number of rows, and what is chosen of them, through a model of a fixed batch size; all outputs by name.

    The last row is repeated to fill a batch of `size`; with `None` all rows are one batch. With `apart` every row has a
    batch of its own, filled with copies of it.
    """
    step = 1 if apart or fed.apart else size or len(rows)
    width = size or step
    if step == width == len(rows):
        return run(rows, chosen, fed.of(range(len(rows))))
    if width * rows[0].size > _LARGEST_BATCH:
        raise ModelError(f"the model only takes batches of {width}, which are too large; export it with a free batch")
    parts = []
    for start in range(0, len(rows), step):
        some, targets = rows[start : start + step], list(chosen[start : start + step])
        missing = width - len(some)
        padded = np.concatenate([some, np.repeat(some[-1:], missing, axis=0)])
        last = start + len(some) - 1
        others = fed.of([*range(start, last + 1), *[last] * missing])
        outputs = run(padded, targets + targets[-1:] * missing, others)
        parts.append({name: values[: len(some)] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
