"""Several methods on one image after the other: how faithful their heatmaps are, and whether they mark the objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.files import ModelSource
from onnx_gradcam.images.decoding import Placement, prepare, read_image
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.explainer import Explainer, Explanation, Target, TargetChoice
from onnx_gradcam.runtime.prober import Prober

from .boxes import Annotation, energy_inside, points_inside
from .faithfulness import METRICS, Trial, measure

__all__ = ["BASELINES", "Evaluated", "Evaluator"]

Array = npt.NDArray[Any]

BASELINES: Final = ("random", "centre")
"""Heatmaps that do not depend on the model: 7x7 random cells, and a Gaussian in the middle of what the model sees."""

_DEFAULTS: Final = Options()
_OF_A_LAYER: Final = ("layer", "weights", "combine")
"""Options that do not apply to a method that looks at no layer."""
_CELLS: Final = 7
_RANK: Final = 5
"""Objects whose class is not among so many of the highest scores are left out: the model does not recognise them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluated:
    """One class of one image.

    Attributes:
        label: the annotation's label; `None` without boxes.
        values: value of every metric, by method or baseline.
        blank: methods whose heatmap is zero everywhere.
    """

    image: str
    target: Target
    label: str | None
    values: Mapping[str, Mapping[str, float]]
    blank: Sequence[str]


@dataclass(eq=False, kw_only=True)
class Evaluator:
    """Methods on one model, ready to be scored; `onnx_gradcam.evaluate` describes the arguments.

    Raises:
        ExplainError: the model or the options cannot be used.
    """

    model: ModelSource
    methods: Sequence[str]
    metrics: Sequence[str] = tuple(METRICS)
    options: Options = field(default_factory=Options)
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
        # RISE needs only probabilities, so its model outputs them.
        model = probed(self.model, Options(**{**self._choices(without=_OF_A_LAYER), "method": "rise"}))
        self._prober = Prober(model, batch_size=self.batch_size, provider=self.provider, threads=self.threads)
        self.first = next(iter(self.explainers.values()))

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
            **{**self._choices(), "method": method},
        )

    def stream(
        self,
        images: Iterable[str],
        target: TargetChoice = None,
        boxes: Mapping[str, Sequence[Annotation]] | None = None,
    ) -> Iterator[list[Evaluated] | InputError]:
        """Evaluate the methods on one image after the other.

        With `boxes`, the class of each annotation is explained: among its classes the one with the highest score.

        Yields:
            The classes of one image, none if the model recognises none of the annotated objects; or the image's error.
        """
        for number, image in enumerate(images):
            yield self._attempt(image, number, target, boxes)

    def _attempt(
        self, image: str, number: int, target: TargetChoice, boxes: Mapping[str, Sequence[Annotation]] | None
    ) -> list[Evaluated] | InputError:
        try:
            return list(self._image(image, number, target, boxes))
        except InputError as exc:
            return exc
        except ModelError as exc:
            return InputError(f"{image}: {exc}")

    def _image(
        self, path: str, number: int, target: TargetChoice, boxes: Mapping[str, Sequence[Annotation]] | None
    ) -> Iterator[Evaluated]:
        image = read_image(path)
        tensor, placement = prepare(image, self.first.preprocessing)
        subjects: list[tuple[TargetChoice, Annotation | None]] = [(target, None)]
        if boxes is not None:
            subjects = list(self._recognised(tensor[None], boxes.get(Path(path).name, [])))
        for index, annotation in subjects:
            explanations = {method: explainer(image, index) for method, explainer in self.explainers.items()}
            first = next(iter(explanations.values()))
            trial = self._trial(tensor, first.target.index)
            maps = {method: explanation.heatmap for method, explanation in explanations.items()}
            maps |= _baselines(first, np.random.default_rng([self.seed, number]))
            inside = None if annotation is None else annotation.inside(*image.shape[:2])
            yield Evaluated(
                image=path,
                target=first.target,
                label=None if annotation is None else annotation.label,
                values={name: self._values(trial, heatmap, placement, inside) for name, heatmap in maps.items()},
                blank=[name for name, heatmap in maps.items() if not heatmap.any()],
            )

    def _trial(self, tensor: Array, index: int) -> Trial:
        probe = self._prober.probe(tensor[None], index)
        return Trial(
            image=probe.x,
            scores=probe.probabilities,
            score=float(probe.probabilities(probe.x[None])[0]),
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def _values(
        self, trial: Trial, heatmap: Array, placement: Placement, inside: npt.NDArray[np.bool_] | None
    ) -> dict[str, float]:
        values = measure(trial, heatmap, self.metrics)
        if inside is not None:
            projected = placement.project(heatmap)
            if "pointing" in self.metrics:
                values["pointing"] = float(points_inside(projected, inside))
            if "energy" in self.metrics:
                values["energy"] = energy_inside(projected, inside)
        return values

    def _recognised(self, row: Array, annotations: Sequence[Annotation]) -> Iterator[tuple[int, Annotation]]:
        """The objects whose class is among the model's highest scores, each with that class."""
        metadata = self._prober.metadata
        results = self._prober.answers(row, [(-1, None)], [metadata.scores_output, metadata.heatmap_class])
        top = int(results[metadata.heatmap_class][0])
        scores = results[metadata.scores_output][0].reshape(-1).astype(np.float64)
        order = [top, 1 - top] if metadata.single_logit else np.argsort(-scores, kind="stable").tolist()
        for annotation in annotations:
            classes = set(annotation.indices(self.first.labels))
            index = next((index for index in order[:_RANK] if index in classes), None)
            if index is not None:
                yield index, annotation


def _baselines(explanation: Explanation, rng: np.random.Generator) -> dict[str, Array]:
    height, width = explanation.heatmap.shape
    cells = rng.random((_CELLS, _CELLS))
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.25**2)).astype(np.float32)
    random = Placement((0, 0, width, height), height, width).project(cells)
    return dict(zip(BASELINES, (random / random.max(), centre), strict=True))
