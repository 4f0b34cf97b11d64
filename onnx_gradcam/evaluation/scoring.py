"""Several methods on the same images: how faithful their heatmaps are, and whether they lie on the objects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.images.decoding import Placement, prepare, read_image
from onnx_gradcam.metadata import Metadata, peek
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.explainer import Explainer, Explanation, Target, Wanted
from onnx_gradcam.runtime.prober import Prober

from .boxes import Thing, energy_inside, points_inside
from .faithfulness import METRICS, Trial, measure

__all__ = ["BASELINES", "Evaluated", "Evaluator", "Mean", "means"]

Array = npt.NDArray[Any]

BASELINES: Final = ("random", "centre")
"""Maps that know nothing of the model: 7x7 random cells, and a Gaussian in the middle of what the model sees."""

_CELLS: Final = 7
_RANK: Final = 5
"""Objects whose class is not among so many of the highest scores are left out: the model does not see them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluated:
    """One class of one image.

    Attributes:
        image: its path.
        target: the class.
        thing: the name of the object, where there are boxes.
        values: of every metric, by method or baseline.
        blank: methods whose heatmap is zero everywhere.
    """

    image: str
    target: Target
    thing: str | None
    values: Mapping[str, Mapping[str, float]]
    blank: Sequence[str]


@dataclass(eq=False, kw_only=True)
class Evaluator:
    """Evaluates methods on one model.

    Args:
        model: path, bytes or proto of a model that is not explained yet.
        methods: their names.
        metrics: names of `METRICS`; those of boxes are left out where there are none.
        steps: of deletion and insertion.
        seed: of random numbers.
        batch_size: images to run at once.
        where: `provider`, `threads`.
        reading: `labels`, `preprocess`.
        choices: other fields of `Options`.

    Raises:
        ExplainError: the model or the choices cannot be used.
    """

    model: str | Path | bytes | onnx.ModelProto
    methods: Sequence[str]
    metrics: Sequence[str] = tuple(METRICS)
    steps: int = 50
    seed: int = 0
    batch_size: int = 8
    where: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, onnx.ModelProto) and Metadata.from_props(peek(self.model)) is not None:
            raise TargetError("the model is explained already, with one method; start from the original model")
        self.explainers = {method: self.explainer(method, self.model) for method in self.methods}
        # RISE asks for nothing but probabilities: its model is the one to be asked for them.
        kept = {name: value for name, value in self.choices.items() if name not in {"layer", "weights", "combine"}}
        self._model = Prober(
            probed(self.model, Options(method="rise", **kept)), batch_size=self.batch_size, **self.where
        )
        self.first = next(iter(self.explainers.values()))

    def explainer(self, method: str, model: str | Path | bytes | onnx.ModelProto) -> Explainer:
        """One method on the model, or on another of its form."""
        runs: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        return Explainer(model, method=method, **runs, **self.where, **self.reading, **self.choices)

    def stream(
        self,
        images: Iterable[str],
        target: Wanted = None,
        boxes: Mapping[str, Sequence[Thing]] | None = None,
    ) -> Iterator[list[Evaluated] | InputError]:
        """Evaluate the methods on one image after the other.

        Args:
            images: their paths.
            target: one class; by default that with the highest score. Not with boxes.
            boxes: the objects of every image by its file name. Explained is the class of each object: of those that
                mean it, the one with the highest score.

        Returns:
            For every image its classes, none where boxes are given but the model sees none of the objects; or what
            is wrong with the image.
        """
        for number, image in enumerate(images):
            yield self._evaluated(image, number, target, boxes)

    def _evaluated(
        self, image: str, number: int, target: Wanted, boxes: Mapping[str, Sequence[Thing]] | None
    ) -> list[Evaluated] | InputError:
        try:
            return list(self._image(image, number, target, boxes))
        except InputError as exc:
            return exc
        except ModelError as exc:
            return InputError(f"{image}: {exc}")

    def _image(
        self, path: str, number: int, target: Wanted, boxes: Mapping[str, Sequence[Thing]] | None
    ) -> Iterator[Evaluated]:
        image = read_image(path)
        tensor, placement = prepare(image, self.first.preprocessing)
        wanted: list[tuple[Wanted, Thing | None]] = [(target, None)]
        if boxes is not None:
            wanted = list(self._seen(tensor[None], boxes.get(Path(path).name, [])))
        for one, thing in wanted:
            found = {method: explainer(image, one) for method, explainer in self.explainers.items()}
            (first, *_) = found.values()
            index = first.target.index
            probe = self._model.probe(tensor[None], index)
            trial = Trial(
                image=probe.x,
                scores=probe.probabilities,
                score=float(probe.probabilities(probe.x[None])[0]),
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            maps = {method: explanation.heatmap for method, explanation in found.items()}
            maps |= _baselines(first, np.random.default_rng([self.seed, number]))
            inside = None if thing is None else thing.inside(*image.shape[:2])
            yield Evaluated(
                image=path,
                target=first.target,
                thing=None if thing is None else thing.name,
                values={name: self._values(trial, heatmap, placement, inside) for name, heatmap in maps.items()},
                blank=[name for name, heatmap in maps.items() if not heatmap.any()],
            )

    def _values(
        self, trial: Trial, heatmap: Array, placement: Placement, inside: npt.NDArray[np.bool_] | None
    ) -> dict[str, float]:
        found = measure(trial, heatmap, self.metrics)
        if inside is not None:
            laid = placement.project(heatmap)
            if "pointing" in self.metrics:
                found["pointing"] = float(points_inside(laid, inside))
            if "energy" in self.metrics:
                found["energy"] = energy_inside(laid, inside)
        return found

    def _seen(self, row: Array, things: Sequence[Thing]) -> Iterator[tuple[int, Thing]]:
        """The objects that the model sees, each with its class."""
        facts = self._model.metadata
        answer = self._model.answers(row, [-1], [facts.scores_output, facts.heatmap_class])
        best = int(answer[facts.heatmap_class][0])
        scores = answer[facts.scores_output][0].reshape(-1).astype(np.float64)
        order = [best, 1 - best] if facts.single_logit else np.argsort(-scores, kind="stable").tolist()
        for thing in things:
            mine = set(thing.indices(self.first.labels))
            seen = next((index for index in order[:_RANK] if index in mine), None)
            if seen is not None:
                yield seen, thing


def _baselines(explanation: Explanation, rng: np.random.Generator) -> dict[str, Array]:
    height, width = explanation.heatmap.shape
    cells = rng.random((_CELLS, _CELLS))
    rows, columns = ((np.arange(side) + 0.5) / side - 0.5 for side in (height, width))
    centre = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.25**2)).astype(np.float32)
    spread = Placement((0, 0, width, height), height, width).project(cells)
    return dict(zip(BASELINES, (spread / spread.max(), centre), strict=True))


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean over images.

    Attributes:
        mean: of the values.
        error: its standard error; `None` for a single value.
        count: how many values.
    """

    mean: float
    error: float | None
    count: int


def means(results: Sequence[Evaluated]) -> dict[str, dict[str, Mean]]:
    """The mean of every metric, by method or baseline."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for method, numbers in result.values.items():
            for metric, number in numbers.items():
                values.setdefault(method, {}).setdefault(metric, []).append(number)
    return {
        method: {
            metric: Mean(
                mean=float(np.mean(numbers)),
                error=float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else None,
                count=len(numbers),
            )
            for metric, numbers in mine.items()
        }
        for method, mine in values.items()
    }
