"""Several methods on one image after the other: how faithful heatmaps are, and whether they mark objects or boxes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.methods.catalogue import find_method
from onnx_gradcam.editor.methods.probe import Probe
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import InputError, ModelError, NothingFoundError, TargetError, UnsupportedError
from onnx_gradcam.feeds import Fed
from onnx_gradcam.files import ModelSource
from onnx_gradcam.images.decoding import Placement, prepare, read_image
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options, Watched, check_word
from onnx_gradcam.runtime.detections import EMPTY_TABLE, Detections, Selection, parse_selection
from onnx_gradcam.runtime.explainer import Box, BoxChoice, Explainer, Prepared, Target
from onnx_gradcam.runtime.prober import Prober, as_input
from onnx_gradcam.runtime.runners import in_type

from .boxes import Annotation, matched
from .faithfulness import Scores, Trial
from .metrics import DEFAULT, localize, measure
from .robustness import mosaic

__all__ = ["BASELINES", "Evaluated", "Evaluator"]

Array = npt.NDArray[Any]

BASELINES: Final = ("random", "centre")
"""Heatmaps that do not depend on the model: 7x7 random cells, and a Gaussian in the middle of what the model sees."""

_DEFAULTS: Final = Options()
_OF_A_LAYER: Final = ("layer", "weights", "combine")
"""Options that do not apply to a method that looks at no layer."""
_FROM_ZERO: Final = ("zero",)
"""The baseline of attributions whose completeness is measured."""
_CELLS: Final = 7
_COMPANIONS: Final = 40
"""The number of images from which a mosaic's tiles of other classes are drawn."""
_RANK: Final = 5
"""Objects whose class is not among so many of the highest scores are left out: the model does not recognise them."""
_SUREST: Final = Selection(which="number", least=0.3)
"""The box of a detector that is explained by default: the surest one, from this score on, as in docs/detectors.md."""
_SCORES: Final[Mapping[str, Callable[[Probe], Scores]]] = {
    "probability": lambda probe: probe.probabilities,
    "similarity": lambda probe: probe.similarities,
    "score": lambda probe: probe.box_scores,
}
"""What is watched while an image changes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluated:
    """One class of one image, or one box of a detector.

    Attributes:
        label: the annotation's label; `None` without annotations.
        box: the box that is explained; `None` for a model that is no detector.
        values: value of every metric, by method or baseline.
        blank: methods whose heatmap is zero everywhere.
    """

    image: str
    target: Target
    label: str | None
    box: Box | None = None
    values: Mapping[str, Mapping[str, float]]
    blank: Sequence[str]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Subject:
    """What heatmaps of an image are of, and where they should be.

    Attributes:
        target: the class.
        heatmaps: by method.
        object: where the object is, `None` if that is unknown.
        label: the annotation's label.
        box: the box of a detector.
        sums: of methods with an attribution, its sum.
    """

    target: Target
    heatmaps: Mapping[str, Array]
    object: Annotation | None
    label: str | None
    box: Box | None = None
    sums: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class Evaluator:
    """Methods on one model, ready to be scored; `onnx_gradcam.evaluate` describes the arguments.

    Raises:
        ExplainError: the model or the options cannot be used.
    """

    model: ModelSource
    methods: Sequence[str]
    metrics: Sequence[str] = DEFAULT
    options: Options = field(default_factory=Options)
    feeds: Mapping[str, Any] | None = None
    box: BoxChoice = None
    watch: Watched | None = None
    steps: int = 50
    seed: int = 0
    batch_size: int = 8
    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give an integer from {least} on")
        if Metadata.of(self.model) is not None:
            raise TargetError("the model is explained already, with one method; start from the original model")
        self.explainers = {method: self.explainer(method, self.model) for method in self.methods}
        next(iter(self.explainers.values())).metadata.require_images("evaluate")
        # RISE needs only probabilities, so its model outputs them.
        model = probed(self.model, Options(**{**self._choices(without=_OF_A_LAYER), "method": "rise"}))
        self._prober = Prober(model, batch_size=self.batch_size, provider=self.provider, threads=self.threads)
        self.first = next(iter(self.explainers.values()))
        self._selection = parse_selection(self.box, most=None) or _SUREST
        self._check_boxes()

    @property
    def detects(self) -> bool:
        """Whether the model is a detector, of which boxes are explained."""
        return bool(self.first.metadata.detection_scores)

    @property
    def places(self) -> bool:
        """Whether it tells where its boxes are."""
        return bool(self.first.metadata.detection_boxes)

    @property
    def watched(self) -> str:
        """What metrics of faithfulness watch: `probability`, or of a detector `similarity` or `score`."""
        return (self.watch or "similarity") if self.detects else "probability"

    def _check_boxes(self) -> None:
        """Refuse choices of boxes that cannot be evaluated."""
        if not self.detects:
            if self.box is not None or self.watch is not None:
                raise TargetError("the model is no detector, so it has no boxes to choose or watch; leave them out")
            return
        check_word("watch", self.watched, get_args(Watched))
        if self._selection.which == "sum":
            raise TargetError("methods are scored on one box at a time; give --box all for a record of each")
        if self.options.box is not None or self.options.box_rank != _DEFAULTS.box_rank:
            raise TargetError("evaluate chooses boxes when the model runs; give box beside the options")
        if self.watched == "similarity" and not self.places:
            raise UnsupportedError(
                "D-RISE's similarity compares the places of boxes, which this model does not tell; give --watch score"
            )

    def _choices(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """The options that are not the default."""
        values = {f.name: getattr(self.options, f.name) for f in fields(Options) if f.name not in without}
        return {name: value for name, value in values.items() if value is not getattr(_DEFAULTS, name)}

    def explainer(self, method: str, model: ModelSource) -> Explainer:
        """One method on the model, or on another with the same graph."""
        return Explainer(
            model,
            seed=self.seed,
            batch_size=self.batch_size,
            provider=self.provider,
            threads=self.threads,
            feeds=self.feeds,
            **{**self._choices(), "method": method},
        )

    def stream(
        self,
        images: Iterable[str],
        target: int | str | None = None,
        boxes: Mapping[str, Sequence[Annotation]] | None = None,
    ) -> Iterator[list[Evaluated] | InputError]:
        """Evaluate the methods on one image after the other.

        With `boxes`, the class of each annotation is explained: among its classes the one with the highest score.

        Yields:
            The classes of one image, none if the model recognises none of the annotated objects; or the image's error.
        """
        images = list(images)
        self._companions = self._companions_among(images) if "focus" in self.metrics and not self.detects else []
        for number, image in enumerate(images):
            yield self._attempt(image, number, target, boxes)

    def _attempt(
        self, image: str, number: int, target: int | str | None, boxes: Mapping[str, Sequence[Annotation]] | None
    ) -> list[Evaluated] | InputError:
        try:
            return list(self._image(image, number, target, boxes))
        except NothingFoundError as exc:
            return NothingFoundError(f"{image}: {exc}")
        except InputError as exc:
            return exc
        except ModelError as exc:
            if self.detects and EMPTY_TABLE in str(exc):
                hidden = "or where parts of it are hidden, so its boxes cannot be scored"
                return NothingFoundError(f"{image}: the model has no box at all in this image {hidden}")
            return InputError(f"{image}: {exc}")

    def _image(
        self, path: str, number: int, target: int | str | None, boxes: Mapping[str, Sequence[Annotation]] | None
    ) -> Iterator[Evaluated]:
        image = read_image(path)
        tensor, placement = prepare(image, self.first.preprocessing)
        fed = self.first.fed(Prepared(image, tensor, placement))
        annotations = None if boxes is None else boxes.get(Path(path).name, [])
        subjects = (
            self._boxes(tensor, placement, target, annotations, fed)
            if self.detects
            else self._classes(image, tensor, target, annotations, fed)
        )
        for subject in subjects:
            trial = self._trial(tensor, subject, fed)
            size = trial.image.shape[1:]
            baselines = _baselines(size, np.random.default_rng([self.seed, number]))
            maps = {**subject.heatmaps, **baselines}
            trials = {name: self._of_method(trial, name, subject, fed, tensor.dtype) for name in subject.heatmaps}
            # A baseline does not look at the image, so that it explains every image alike.
            trials |= {name: replace(trial, explain=partial(_same, heatmap)) for name, heatmap in baselines.items()}
            inside = None if subject.object is None else subject.object.inside(*image.shape[:2])
            yield Evaluated(
                image=path,
                target=subject.target,
                label=subject.label,
                box=subject.box,
                values={name: self._values(trials[name], maps[name], placement, inside) for name in maps},
                blank=[name for name, heatmap in maps.items() if not heatmap.any()],
            )

    def _classes(
        self,
        image: Array,
        tensor: Array,
        target: int | str | None,
        annotations: Sequence[Annotation] | None,
        fed: Fed,
    ) -> Iterator[_Subject]:
        """The class of an image, or those of its annotated objects that the model recognises."""
        chosen: list[tuple[int | str | None, Annotation | None]] = [(target, None)]
        if annotations is not None:
            chosen = list(self._recognised(tensor[None], annotations, fed))
        for index, annotation in chosen:
            explanations = {method: explainer(image, index) for method, explainer in self.explainers.items()}
            yield _Subject(
                target=next(iter(explanations.values())).target,
                heatmaps={method: explanation.heatmap for method, explanation in explanations.items()},
                object=annotation,
                label=None if annotation is None else annotation.label,
                sums={
                    method: float(explanation.maps[0].attribution.sum(dtype=np.float64))
                    for method, explanation in explanations.items()
                    if explanation.maps[0].attribution is not None
                },
            )

    def _boxes(
        self,
        tensor: Array,
        placement: Placement,
        target: int | str | None,
        annotations: Sequence[Annotation] | None,
        fed: Fed,
    ) -> Iterator[_Subject]:
        """The chosen boxes of an image."""
        table = self._table(tensor, placement, fed)
        for box, place, label in self._chosen(table, target, annotations):
            heatmaps = {method: self._heatmap(method, tensor, box, fed) for method in self.explainers}
            yield _Subject(target=box.target, heatmaps=heatmaps, object=place, label=label, box=box)

    def _chosen(
        self, table: Detections, target: int | str | None, annotations: Sequence[Annotation] | None
    ) -> Iterator[tuple[Box, Annotation | None, str | None]]:
        """The boxes that are explained, each with the place it should mark; with annotations those that are objects."""
        best = int(table.scores.max(0, initial=0).argmax())
        if annotations is None:
            classes = None if target is None else self.first.class_indices([target])
            for box in table.chosen(self._selection, classes, best):
                yield box, _own_place(box), None
            return
        for annotation in annotations:
            classes = [index for index in annotation.indices(table.labels) if index < table.scores.shape[1]]
            # An object that the detector does not find is left out, as a class that a classifier does not recognise.
            with contextlib.suppress(NothingFoundError):
                boxes = table.chosen(self._selection, classes, best) if classes else []
                yield from ((box, place, annotation.label) for box, place in matched(boxes, annotation))

    def _table(self, tensor: Array, placement: Placement, fed: Fed) -> Detections:
        """All boxes in one image."""
        names = self._prober.metadata
        outputs = [names.detection_scores, *([names.detection_boxes] if self.places else [])]
        results = self._prober.answers(tensor[None], [(-1, None)], outputs, fed)
        boxes = results[names.detection_boxes][0] if self.places else None
        sides = dict(zip(names.batch_layout[1:], tensor.shape, strict=True))
        size = sides["H"], sides["W"]
        return Detections.of(results[names.detection_scores][0], boxes, size, placement, self.first.labels)

    def _heatmap(self, method: str, tensor: Array, box: Box, fed: Fed) -> Array:
        """The heatmap of a box; for methods that run the model many times an explanation would run them twice."""
        heatmap: Array = self._heatmaps(method, tensor[None], [box.target.index], [box.index], fed)[0]
        return heatmap

    def _heatmaps(
        self, method: str, rows: Array, classes: Sequence[int], boxes: Sequence[int] | None, fed: Fed
    ) -> Array:
        explainer = self.explainers[method]
        heatmaps: Array = explainer.run(rows, classes, boxes, feeds=fed.repeated(len(rows)).of(range(len(rows))))[
            explainer.metadata.heatmap
        ]
        if not np.isfinite(heatmaps).all():
            raise ModelError(f"{method} gives NaN for this image; check --preprocess and the model's weights")
        return heatmaps

    def _trial(self, tensor: Array, subject: _Subject, fed: Fed) -> Trial:
        index = subject.target.index
        probe = self._prober.probe(tensor[None], index, None if subject.box is None else subject.box.index, fed)
        scores = _SCORES[self.watched](probe)
        trial = Trial(
            image=probe.x,
            scores=scores,
            score=float(scores(probe.x[None])[0]),
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        if self.detects:
            return trial
        count = 2 if self.first.metadata.single_logit else len(self._scores(tensor[None], fed)[0])
        return replace(
            trial,
            right=lambda images: self.predicted(self._rows(images, tensor.dtype), fed) == index,
            others=[other for other in range(count) if other != index],
            mosaic=self._mosaic(probe.x, index) if "focus" in self.metrics else None,
        )

    def _of_method(self, trial: Trial, method: str, subject: _Subject, fed: Fed, dtype: np.dtype[Any]) -> Trial:
        """The trial with what a method makes of other images, of other classes, and of the image's values."""
        index = subject.target.index

        def explain(images: Array, other: int | None) -> Array:
            rows = self._rows(images, dtype)
            boxes = None if subject.box is None else [subject.box.index] * len(rows)
            classes = [index if other is None else other] * len(rows)
            return self._heatmaps(method, rows, classes, boxes, fed)

        gap = None
        starts = find_method(method).settings(self.options).get("baseline", _FROM_ZERO)
        if method in subject.sums and "completeness" in self.metrics and starts == _FROM_ZERO:
            rows = self._rows(np.stack([trial.image, np.zeros_like(trial.image)]), dtype)
            scores = self._scores(rows, fed)
            own = scores[:, 0] * (2 * index - 1) if self.first.metadata.single_logit else scores[:, index]
            gap = subject.sums[method], float(own[0] - own[1])
        return replace(trial, explain=explain, gap=gap)

    def _companions_among(self, images: Sequence[str]) -> list[tuple[int, Array]]:
        """The first images and their predicted classes, for mosaics; those that cannot be used are left to the run."""
        found = []
        for path in images[:_COMPANIONS]:
            with contextlib.suppress(InputError, ModelError):
                image = read_image(path)
                tensor, placement = prepare(image, self.first.preprocessing)
                fed = self.first.fed(Prepared(image, tensor, placement))
                index = int(self.predicted(tensor[None], fed)[0])
                found.append((index, self._prober.probe(tensor[None], index, None, fed).x))
        return found

    def _mosaic(self, image: Array, index: int) -> tuple[Array, npt.NDArray[np.bool_]] | None:
        """A mosaic of the image and its companions; `None` if no companion of its size is of another class."""
        fits = [(c, x) for c, x in self._companions if x.shape == image.shape and not np.array_equal(x, image)]
        alike, unlike = ([x for c, x in fits if (c == index) is same] for same in (True, False))
        return mosaic(image, alike, unlike, np.random.default_rng(self.seed)) if unlike else None

    def _rows(self, images: Array, dtype: np.dtype[Any]) -> Array:
        """Images ``[M, C, H, W]`` as rows of the model's input."""
        return in_type(as_input(images, self.first.metadata.batch_layout), dtype)

    def _scores(self, rows: Array, fed: Fed) -> Array:
        """The scores that are differentiated, ``[M, K]``."""
        metadata = self._prober.metadata
        choices = [(-1, None)] * len(rows)
        scores = self._prober.answers(rows, choices, [metadata.scores_output], fed.repeated(len(rows)))
        return scores[metadata.scores_output].reshape(len(rows), -1).astype(np.float64)

    def predicted(self, rows: Array, fed: Fed) -> Array:
        """The predicted class of rows of the model's input, ``int64 [M]``."""
        metadata = self._prober.metadata
        choices = [(-1, None)] * len(rows)
        return self._prober.answers(rows, choices, [metadata.heatmap_class], fed.repeated(len(rows)))[
            metadata.heatmap_class
        ]

    def _values(
        self, trial: Trial, heatmap: Array, placement: Placement, inside: npt.NDArray[np.bool_] | None
    ) -> dict[str, float]:
        values = measure(trial, heatmap, self.metrics)
        if inside is not None:
            values |= localize(placement.project(heatmap), inside, self.metrics)
        return values

    def _recognised(self, row: Array, annotations: Sequence[Annotation], fed: Fed) -> Iterator[tuple[int, Annotation]]:
        """The objects whose class is among the model's highest scores, each with that class."""
        metadata = self._prober.metadata
        results = self._prober.answers(row, [(-1, None)], [metadata.scores_output, metadata.heatmap_class], fed)
        top = int(results[metadata.heatmap_class][0])
        scores = results[metadata.scores_output][0].reshape(-1).astype(np.float64)
        order = [top, 1 - top] if metadata.single_logit else np.argsort(-scores, kind="stable").tolist()
        for annotation in annotations:
            classes = set(annotation.indices(self.first.labels))
            index = next((index for index in order[:_RANK] if index in classes), None)
            if index is not None:
                yield index, annotation


def _own_place(box: Box) -> Annotation | None:
    """A detector's own box in place of an annotated one, whose last pixels are inside."""
    if box.xyxy is None:
        return None
    x0, y0, x1, y1 = box.xyxy
    return Annotation(box.target.label, [(x0, y0, x1 - 1, y1 - 1)], [box.target.index])


def _same(heatmap: Array, images: Array, _other: int | None) -> Array:
    """One heatmap for every image and class."""
    return np.repeat(heatmap[None], len(images), 0)


def _baselines(size: tuple[int, int], rng: np.random.Generator) -> dict[str, Array]:
    height, width = size
    cells = rng.random((_CELLS, _CELLS))
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.25**2)).astype(np.float32)
    random = Placement((0, 0, width, height), height, width).project(cells)
    return dict(zip(BASELINES, (random / random.max(), centre), strict=True))
