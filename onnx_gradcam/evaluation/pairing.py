"""One image, several models: the heatmaps of one class, and how far each model agrees with the first.

Heatmaps that another program computed, for example a framework's own Grad-CAM, take part as `NativeMaps`.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import find_label
from onnx_gradcam.errors import ExplainError, InputError, TargetError, reason
from onnx_gradcam.images.decoding import Image, Placement, read_image
from onnx_gradcam.runtime.answers import distribution
from onnx_gradcam.runtime.detections import overlaps
from onnx_gradcam.runtime.explainer import Box, Explainer, Explanation, Target

from .boxes import SAME_OBJECT
from .similarity import METRICS, MapAgreement, compare_maps, kl_divergence

__all__ = ["Agreement", "Compared", "Laid", "NativeMaps", "compare_models", "named_errors"]

_GRID: Final = 512
"""Longer side, in pixels, of the grid that heatmaps are compared on; they have no finer detail."""
_LARGEST_SIDE: Final = 4096
_LEAST_SCORE: Final = 0.05
"""The score that a box has to have to be the other model's answer to a box of the first."""

_MOST_MAPS: Final = 100_000


class NativeMaps:
    """The maps of a `.npz` file as `numpy.savez` writes it, read one at a time.

    Each array is a map ``[h, w]`` of floats, of any resolution, and is named like its image's file. Values below zero
    become zero and the rest is divided by the largest, as in the heatmaps of this package.

    Raises:
        InputError: the file cannot be read or is not a zip archive.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "not a zip archive"
            raise InputError(f"{str(path)!r} holds no maps ({why}); write them with numpy.savez") from exc
        self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()[:_MOST_MAPS]}

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def heatmap(self, image: str) -> npt.NDArray[np.float32]:
        """The heatmap of an image, ``float32 [h, w]`` in [0, 1], of the array named like its path, file or stem."""
        path = Path(image)
        member = next((self._members[n] for n in (image, path.name, path.stem) if n in self._members), None)
        if member is None:
            raise InputError(f"{str(self.path)!r} holds no map for {image!r}; name the array {path.name!r}")
        values = self._read(member)
        if not np.isfinite(values).all():
            raise InputError(f"the map {member!r} of {str(self.path)!r} holds NaN or infinite values; compute it again")
        positive = np.maximum(values.astype(np.float64), 0)
        largest = positive.max()
        return cast("npt.NDArray[np.float32]", (positive / largest if largest > 0 else positive).astype(np.float32))

    def _read(self, member: str) -> npt.NDArray[Any]:
        """One array; its header is checked before any memory is allocated."""
        culprit = f"the map {member!r} of {str(self.path)!r}"
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in {(1, 0), (2, 0)}:
                    raise InputError(f"{culprit} is not an array of floats; write it with numpy.savez")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = read(file)
                if dtype.kind != "f" or len(shape) != 2 or not all(0 < side <= _LARGEST_SIDE for side in shape):
                    raise InputError(
                        f"{culprit} is {dtype} of shape {list(shape)}; a map holds floats, [height, width], neither "
                        f"side above {_LARGEST_SIDE}"
                    )
                size = shape[0] * shape[1] * dtype.itemsize
                data = file.read(size)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as exc:
            raise InputError(f"{culprit} is damaged ({reason(exc)}); write it again") from exc
        if len(data) < size:
            raise InputError(f"{culprit} is truncated; write it again")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


@dataclass(frozen=True, eq=False)
class Laid:
    """One side's heatmap of an image, and the part of the image it covers.

    Attributes:
        heatmap: `float32 [h, w]` in [0, 1], over the model's input.
        placement: where the model's input is on the image.
        target: the explained class by this side's own index, name and score; `None` for native maps.
    """

    heatmap: npt.NDArray[np.float32]
    placement: Placement
    target: Target | None

    def on(self, height: int, width: int, outside: float = 0) -> npt.NDArray[np.float32]:
        """The heatmap over the whole image, resized to `height` x `width`; `outside` where the model did not look."""
        return self.placement.scaled(height, width).project(self.heatmap, outside)

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The box (x0, y0, x1, y1) that the model saw, in pixels of the image resized to `height` x `width`."""
        return self.placement.scaled(height, width).box


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One side against the first, on one image.

    Attributes:
        side: the side's name.
        top: the side's top-1 class; `None` for native maps.
        same_top: whether it is the first side's top-1 class, and of detectors, whether they find the same object, which
            overlaps by half; `None` for native maps.
        divergence: KL divergence of its class probabilities from the first's, in nats; `None` without probabilities.
        maps: agreement of the heatmaps where at least one of the models looked; `shift` in pixels of the image.
        target: the explained class as this side has it; `None` for native maps.
        box_overlap: of detectors, the intersection over union of the explained boxes; `None` where there are none.
    """

    side: str
    top: Target | None
    same_top: bool | None
    divergence: float | None
    maps: MapAgreement
    target: Target | None
    box_overlap: float | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """The value of every metric of `METRICS`; all are finite."""
        values = {**asdict(self.maps), "divergence": self.divergence}
        return {name: values[name] for name in METRICS}


@dataclass(frozen=True, eq=False)
class Compared:
    """All sides on one image.

    Attributes:
        path: path of the image.
        target: the explained class as the first side has it.
        top: the first side's top-1 class.
        agreements: one for each side but the first.
        image: the image, `uint8 [H, W, 3]` RGB.
        laid: one for each side.
    """

    path: str
    target: Target
    top: Target
    agreements: Sequence[Agreement]
    image: Image
    laid: Sequence[Laid]


def compare_models(
    models: Mapping[str, Explainer],
    images: Iterable[str],
    target: int | str | None = None,
    *,
    natives: Mapping[str, NativeMaps] | None = None,
) -> Iterator[Compared | InputError]:
    """Explain each image with every model, and compare the others with the first; one image is held at a time.

    All models explain the same class: by its name where they have names, else by its index; by default the first
    model's top-1 class of each image. Detectors explain the same object: the box of the class that overlaps the first
    model's most. Native maps are taken to cover what the first model sees.

    Yields:
        One result per image, in order; the error of an image that cannot be read or has no map.

    Raises:
        TargetError: the models have different classes, or the class does not exist or cannot be chosen.
        ModelError: a model does not run; the message names it.
    """
    pairing = _Pairing(models, natives or {}, target)
    for image in images:
        yield pairing.attempt(image)


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Put the name of a model before the message of its errors."""
    try:
        yield
    except ExplainError as exc:
        raise type(exc)(f"{name}: {exc}") from exc


class _Pairing:
    """The models, and which class of each is which of the first."""

    def __init__(
        self, models: Mapping[str, Explainer], natives: Mapping[str, NativeMaps], target: int | str | None
    ) -> None:
        (self.first, _), *_ = models.items()
        self.models = models
        self.natives = natives
        self.target = target
        self.classes: dict[str, list[int]] = {}

    def attempt(self, image: str) -> Compared | InputError:
        try:
            return self._compared(image)
        except InputError as exc:
            return exc

    def _compared(self, path: str) -> Compared:
        image = read_image(path)
        first = self._explained(self.first, image, self.target)
        reference = Laid(first.heatmap, first.placement, first.target)
        top = first.top(1)[0]
        laid, agreements = [reference], []
        for name in list(self.models)[1:]:
            if name not in self.classes:
                # One run tells how many scores there are, whatever the model declares.
                theirs = self._explained(name, image, None)
                self.classes[name] = _class_numbers(self.first, first, name, theirs)
            numbers = self.classes[name]
            theirs = self._explained(name, image, numbers[first.target.index], near=first.maps[0].boxes)
            overlap = _overlap(first.maps[0].boxes, theirs.maps[0].boxes)
            laid.append(Laid(theirs.heatmap, theirs.placement, theirs.target))
            p, q = self._probabilities(self.first, first), self._probabilities(name, theirs)
            other = theirs.top(1)[0]
            agreements.append(
                Agreement(
                    side=name,
                    top=other,
                    same_top=numbers[top.index] == other.index and (overlap is None or overlap >= SAME_OBJECT),
                    divergence=None if p is None or q is None else kl_divergence(p, q[numbers]),
                    maps=_on_common_ground(reference, laid[-1]),
                    target=theirs.target,
                    box_overlap=overlap,
                )
            )
        for name, maps in self.natives.items():
            laid.append(Laid(_resized(maps.heatmap(path), *first.heatmap.shape), first.placement, None))
            common = _on_common_ground(reference, laid[-1])
            agreements.append(Agreement(side=name, top=None, same_top=None, divergence=None, maps=common, target=None))
        return Compared(path, first.target, top, agreements, image, laid)

    def _explained(self, name: str, image: Image, target: int | str | None, near: Sequence[Box] = ()) -> Explanation:
        """One model's explanation, of the box of the class that overlaps another most; errors name the model."""
        explainer = self.models[name]
        with named_errors(name):
            if len(near) != 1 or near[0].xyxy is None or not explainer.metadata.box_input or target is None:
                return explainer(image, target)
            boxes = explainer.boxes(image, target, least=_LEAST_SCORE)
            closest = max(boxes, key=lambda box: _overlap(near, [box]) or 0, default=None)
            return explainer(image, target, box=None if closest is None else closest.index)

    def _probabilities(self, name: str, explanation: Explanation) -> npt.NDArray[np.float64] | None:
        metadata = self.models[name].metadata
        return distribution(explanation.scores, metadata.activation, single_logit=metadata.single_logit)


def _overlap(one: Sequence[Box], other: Sequence[Box]) -> float | None:
    """Intersection over union of two boxes; `None` where either is not one box of a known place."""
    places = [boxes[0].xyxy for boxes in (one, other) if len(boxes) == 1]
    if len(places) < 2 or places[0] is None or places[1] is None:
        return None
    return float(overlaps(np.asarray(places[0]), np.asarray(places[1])[None])[0])


def _class_numbers(first: str, reference: Explanation, second: str, theirs: Explanation) -> list[int]:
    """The second model's index of each class of the first."""
    count, other = len(reference.scores), len(theirs.scores)
    names, others = reference.labels, theirs.labels
    if names is None or others is None or len(names) != count or len(others) != other:
        if count == other:
            return list(range(count))
        raise TargetError(
            f"{first} has {count} classes and {second} has {other}; give both their class names with --labels, so that "
            "classes of the same name are compared"
        )
    if list(names) == list(others):
        return list(range(count))
    try:
        numbers = [find_label(name, others) for name in names]
    except TargetError as exc:
        raise TargetError(
            f"{first} and {second} do not have the same classes ({exc}); where only the spelling differs, give one "
            "--labels for all"
        ) from exc
    if len(set(numbers)) < count:
        raise TargetError(
            f"several classes of {first} have the same name in {second}; give one --labels for all, each name once"
        )
    return numbers


def _resized(heatmap: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """A heatmap at the size of the model's input; resized to the image in one step it would differ from the model's."""
    rows, columns = heatmap.shape
    whole = Laid(heatmap, Placement((0.0, 0.0, columns, rows), rows, columns), None)
    return whole.on(height, width)


def _on_common_ground(first: Laid, second: Laid) -> MapAgreement:
    """Compare where at least one of the models looked: margins that both crop would count as agreement."""
    height, width = first.placement.height, first.placement.width
    factor = max(1.0, max(height, width) / _GRID)
    tall, wide = max(1, round(height / factor)), max(1, round(width / factor))
    boxes = [laid.box(tall, wide) for laid in (first, second)]
    x0, y0 = (math.floor(min(b[i] for b in boxes)) for i in (0, 1))
    x1, y1 = (math.ceil(max(b[i] for b in boxes)) for i in (2, 3))
    maps = compare_maps(*(laid.on(tall, wide)[max(y0, 0) : y1, max(x0, 0) : x1] for laid in (first, second)))
    return replace(maps, shift=maps.shift * factor)
