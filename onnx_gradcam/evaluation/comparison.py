"""Heatmaps that were computed elsewhere, by a framework's own Grad-CAM say: one `.npz` file, one array an image.

Two or more models on the same images: whether they see the same class, for the same reason.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ExplainError, InputError, TargetError
from onnx_gradcam.images.decoding import Image, Placement, read_image
from onnx_gradcam.runtime.classes import find_label
from onnx_gradcam.runtime.explainer import Explainer, Explanation, Target

from .similarity import MapAgreement, compare_maps, kl_divergence, probabilities

__all__ = ["METRICS", "Agreement", "Compared", "Laid", "Metric", "NativeMaps", "Spread", "compare_models", "spreads"]

_LARGEST_SIDE: Final = 4096
_MOST_MAPS: Final = 100_000


class NativeMaps:
    """The maps of a `.npz` file, as `numpy.savez` writes it, read one at a time.

    The name of an array is the name of its image's file. An array is a map ``[h, w]`` of floats of any resolution,
    raw and signed or in [0, 1]: values below zero are cut off, and the rest is divided by the largest, as in the
    heatmaps of this package.

    Args:
        path: of the file.

    Raises:
        InputError: it is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "it is no zip archive"
            raise InputError(f"{str(path)!r} holds no maps ({why}); write them with numpy.savez") from exc
        self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()[:_MOST_MAPS]}

    def close(self) -> None:
        """Let the file go."""
        self._archive.close()

    def heatmap(self, image: str) -> npt.NDArray[np.float32]:
        """The heatmap of an image, ``float32 [h, w]`` in [0, 1].

        Args:
            image: path of the image: an array of that name is looked for, then one named like the file with and
                without its suffix.

        Raises:
            InputError: there is none, or it is no map.
        """
        path = Path(image)
        member = next((self._members[n] for n in (image, path.name, path.stem) if n in self._members), None)
        if member is None:
            raise InputError(f"{str(self.path)!r} holds no map for {image!r}: name the array {path.name!r}")
        values = self._read(member)
        if not np.isfinite(values).all():
            raise InputError(f"the map {member!r} of {str(self.path)!r} holds NaN or infinite values: compute it again")
        positive = np.maximum(values.astype(np.float64), 0)
        largest = positive.max()
        return cast("npt.NDArray[np.float32]", (positive / largest if largest > 0 else positive).astype(np.float32))

    def _read(self, member: str) -> npt.NDArray[Any]:
        """One array; what its header says is checked before any memory is taken."""
        wrong = f"the map {member!r} of {str(self.path)!r}"
        try:
            with self._archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in {(1, 0), (2, 0)}:
                    raise InputError(f"{wrong} is no array of floats: write it with numpy.savez")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, by_columns, dtype = read(file)
                if dtype.kind != "f" or len(shape) != 2 or not all(0 < side <= _LARGEST_SIDE for side in shape):
                    raise InputError(
                        f"{wrong} is {dtype} of shape {list(shape)}, but a map is of floats, [height, width], neither "
                        f"side above {_LARGEST_SIDE}"
                    )
                size = shape[0] * shape[1] * dtype.itemsize
                data = file.read(size)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as exc:
            raise InputError(f"{wrong} is damaged ({' '.join(str(exc).split())[:120]}): write it again") from exc
        if len(data) < size:
            raise InputError(f"{wrong} is cut off: write it again")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


_GRID: Final = 512
"""Longer side, in pixels, of what is compared: a heatmap has no detail that a larger image would show."""


@dataclass(frozen=True)
class Metric:
    """One number that says how far two explanations agree.

    Attributes:
        name: in JSON, a key of `Agreement.numbers`.
        title: for people.
        rising: whether a larger one is better.
        meaning: in a few words, with its range.
    """

    name: str
    title: str
    rising: bool
    meaning: str


METRICS: Final = {
    metric.name: metric
    for metric in (
        Metric("pearson", "Pearson", rising=True, meaning="correlation of the heatmaps' values, -1 to 1"),
        Metric("spearman", "Spearman", rising=True, meaning="correlation of their ranks, -1 to 1"),
        Metric("cosine", "cosine", rising=True, meaning="cosine of the angle between the heatmaps, 0 to 1"),
        Metric("ssim", "SSIM", rising=True, meaning="structural similarity, -1 to 1"),
        Metric(
            "overlap",
            "overlap",
            rising=True,
            meaning="intersection over union of the hottest 20 % of the pixels, 0 to 1",
        ),
        Metric("difference", "max difference", rising=False, meaning="largest difference of two pixels, 0 to 1"),
        Metric(
            "shift",
            "shift (pixels)",
            rising=False,
            meaning="distance between the hottest pixels, in pixels of the image",
        ),
        Metric(
            "shift_part",
            "shift / diagonal",
            rising=False,
            meaning="the same, in parts of the diagonal of what was compared, 0 to 1",
        ),
        Metric(
            "divergence",
            "KL divergence",
            rising=False,
            meaning="of the other's class probabilities from the first's, in nats",
        ),
    )
}


@dataclass(frozen=True, eq=False)
class Laid:
    """One side's explanation of an image, and where on the image it lies.

    Attributes:
        heatmap: `float32 [h, w]` in [0, 1], over the model's input.
        placement: of that input on the image.
        target: the explained class by this side's own number, name and score; `None` for maps from elsewhere.
    """

    heatmap: npt.NDArray[np.float32]
    placement: Placement
    target: Target | None

    def on(self, height: int, width: int) -> npt.NDArray[np.float32]:
        """The heatmap on the whole image, had it `height` times `width` pixels; zero where the model did not look."""
        x0, y0, x1, y1 = self.box(height, width)
        return Placement((x0, y0, x1, y1), height, width).project(self.heatmap)

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What the model saw (x0, y0, x1, y1) of the image, had it `height` times `width` pixels."""
        down, right = height / self.placement.height, width / self.placement.width
        x0, y0, x1, y1 = self.placement.box
        return x0 * right, y0 * down, x1 * right, y1 * down


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One side against the first, on one image.

    Attributes:
        side: its name.
        same_top: whether both hold the same class for the best; `None` where there are no scores.
        divergence: of its class probabilities from the first's, in nats; `None` where there are none.
        maps: of the two heatmaps, where at least one of the models looked; `shift` in pixels of the image.
        target: the explained class as this side has it.
    """

    side: str
    same_top: bool | None
    divergence: float | None
    maps: MapAgreement
    target: Target | None

    @property
    def numbers(self) -> dict[str, float | None]:
        """The value of every metric of `METRICS`; all are finite."""
        values = {**asdict(self.maps), "divergence": self.divergence}
        return {name: values[name] for name in METRICS}


@dataclass(frozen=True, eq=False)
class Compared:
    """All sides on one image.

    Attributes:
        path: of the image.
        target: the explained class as the first side has it.
        agreements: one for each side but the first.
        image: the image, uint8 RGB.
        laid: one for each side.
    """

    path: str
    target: Target
    agreements: Sequence[Agreement]
    image: Image
    laid: Sequence[Laid]


@dataclass(frozen=True)
class Spread:
    """A metric over many images."""

    mean: float
    median: float
    worst: float


def compare_models(
    models: Mapping[str, Explainer],
    images: Iterable[str],
    target: int | str | None = None,
    *,
    natives: Mapping[str, NativeMaps] | None = None,
) -> Iterator[Compared | InputError]:
    """Explain each image by every model, and compare all others with the first.

    One image is held at a time. The same class is explained by all: by its name where models have names, else by
    its number.

    Args:
        models: by name; at least one.
        images: paths.
        target: class number or name of the first model; by default the first model's best class of each image.
        natives: maps that were computed elsewhere, by name. They lie where the first model looks.

    Yields:
        One result an image, in order; the error of one that cannot be read or has no map.

    Raises:
        TargetError: models of different classes, a class that is not there or cannot be chosen.
        ModelError: a model does not run; the message names it.
    """
    work = _Comparison(models, natives or {}, target)
    for image in images:
        yield work.attempt(image)


def spreads(agreements: Iterable[Agreement]) -> dict[str, Spread | None]:
    """Mean, median and worst value of each metric; `None` where no image has it."""
    columns: dict[str, list[float]] = {name: [] for name in METRICS}
    for agreement in agreements:
        for name, value in agreement.numbers.items():
            if value is not None:
                columns[name].append(value)
    return {name: _spread(METRICS[name], values) for name, values in columns.items()}


def _spread(metric: Metric, values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    worst = min(values) if metric.rising else max(values)
    return Spread(math.fsum(values) / len(values), float(np.median(values)), worst)


class _Comparison:
    """The models, and what was found out about their classes."""

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
        mine = self._explained(self.first, image, self.target)
        reference = Laid(mine.heatmap, mine.placement, mine.target)
        laid, agreements = [reference], []
        for name in list(self.models)[1:]:
            if name not in self.classes:
                # One run tells how many scores there are, whatever the model declares.
                theirs = self._explained(name, image, None)
                self.classes[name] = _class_numbers(self.first, mine, name, theirs)
            numbers = self.classes[name]
            theirs = self._explained(name, image, numbers[mine.target.index])
            laid.append(Laid(theirs.heatmap, theirs.placement, theirs.target))
            p, q = self._probabilities(self.first, mine), self._probabilities(name, theirs)
            agreements.append(
                Agreement(
                    side=name,
                    same_top=numbers[mine.top(1)[0].index] == theirs.top(1)[0].index,
                    divergence=None if p is None or q is None else kl_divergence(p, q[numbers]),
                    maps=_on_common_ground(reference, laid[-1]),
                    target=theirs.target,
                )
            )
        for name, maps in self.natives.items():
            laid.append(Laid(_resized(maps.heatmap(path), *mine.heatmap.shape), mine.placement, None))
            common = _on_common_ground(reference, laid[-1])
            agreements.append(Agreement(side=name, same_top=None, divergence=None, maps=common, target=None))
        return Compared(path, mine.target, agreements, image, laid)

    def _explained(self, name: str, image: Image, target: int | str | None) -> Explanation:
        """One model's explanation; what goes wrong there is said with its name."""
        try:
            return self.models[name](image, target)
        except ExplainError as exc:
            raise type(exc)(f"{name}: {exc}") from exc

    def _probabilities(self, name: str, explanation: Explanation) -> npt.NDArray[np.float64] | None:
        facts = self.models[name].metadata
        return probabilities(explanation.scores, facts.activation, single_logit=facts.single_logit)


def _class_numbers(first: str, mine: Explanation, second: str, theirs: Explanation) -> list[int]:
    """The second model's number of each class of the first.

    Raises:
        TargetError: the two do not have the same classes.
    """
    count, other = len(mine.scores), len(theirs.scores)
    names, others = mine.labels, theirs.labels
    if names is None or others is None or len(names) != count or len(others) != other:
        if count == other:
            return list(range(count))
        raise TargetError(
            f"{first} has {count} classes and {second} has {other}; give both their class names with --labels, so that "
            "those of the same name can be compared"
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
    """A heatmap at the model's input, as models resize their own: in one step to the image it would differ."""
    rows, columns = heatmap.shape
    whole = Laid(heatmap, Placement((0.0, 0.0, columns, rows), rows, columns), None)
    return whole.on(height, width)


def _on_common_ground(first: Laid, second: Laid) -> MapAgreement:
    """Compare where at least one of the models looked: margins that both cut off would count as agreement."""
    height, width = first.placement.height, first.placement.width
    factor = max(1.0, max(height, width) / _GRID)
    tall, wide = max(1, round(height / factor)), max(1, round(width / factor))
    boxes = [laid.box(tall, wide) for laid in (first, second)]
    x0, y0 = (math.floor(min(b[i] for b in boxes)) for i in (0, 1))
    x1, y1 = (math.ceil(max(b[i] for b in boxes)) for i in (2, 3))
    maps = compare_maps(*(laid.on(tall, wide)[max(y0, 0) : y1, max(x0, 0) : x1] for laid in (first, second)))
    return replace(maps, shift=maps.shift * factor)
