"""Score methods for faithfulness and localization: means over images, and the parameter randomization test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError, near_matches
from onnx_gradcam.files import ModelSource
from onnx_gradcam.options import Options, Watched
from onnx_gradcam.runtime.explainer import BoxChoice

from .boxes import Annotation, read_boxes
from .faithfulness import METRICS
from .randomization import Randomized, Stage, plan_stages, randomized, weight_layers
from .scoring import BASELINES, Evaluated, Evaluator

__all__ = ["Evaluation", "Mean", "evaluate", "means"]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A metric over images.

    Attributes:
        mean: mean of the values.
        error: its standard error; `None` for a single value.
        count: number of values.
    """

    mean: float
    error: float | None
    count: int


@dataclass(eq=False, kw_only=True)
class Evaluation:
    """The results of `evaluate`, computed image by image.

    Iterate to get each image's results (or its error) as they are computed; one image is held at a time. Everything
    else first computes what has not been iterated.

    Attributes:
        evaluator: the methods and the model.
        images: paths of the images.
        metrics: names of the metrics that are computed.
        target: the class to explain; by default each image's predicted class.
        boxes: annotations by file name, if any.
    """

    evaluator: Evaluator
    images: Sequence[str]
    metrics: Sequence[str]
    target: int | str | None = None
    boxes: Mapping[str, Sequence[Annotation]] | None = None
    _results: list[Evaluated] = field(default_factory=list)
    _errors: dict[str, str] = field(default_factory=dict)
    _stages: list[Randomized] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stream = self._run()
        self._stage_stream = self._randomize()

    @cached_property
    def stages(self) -> Sequence[Stage]:
        """The stages of the parameter randomization test; refuses a model without layers that have weights."""
        return plan_stages(weight_layers(self.evaluator.model))

    def __iter__(self) -> Iterator[list[Evaluated] | InputError]:
        return self._stream

    def _run(self) -> Iterator[list[Evaluated] | InputError]:
        stream = self.evaluator.stream(self.images, self.target, self.boxes)
        for image, result in zip(self.images, stream, strict=True):
            if isinstance(result, InputError):
                self._errors[image] = str(result)
            else:
                self._results += result
            yield result
        if not self._results and not self._errors:
            finds = "has no such box of" if self.evaluator.detects else "recognises none of"
            raise InputError(
                f"the model {finds} the annotated objects in these images; check the names of the files and the "
                "classes in --boxes"
            )

    @property
    def warnings(self) -> Sequence[str]:
        """What users should know about the model and the methods."""
        return list(dict.fromkeys(w for explainer in self.evaluator.explainers.values() for w in explainer.warnings))

    @property
    def results(self) -> Sequence[Evaluated]:
        """Every class of every image."""
        for _ in self._stream:
            pass
        return self._results

    @property
    def errors(self) -> Mapping[str, str]:
        """Why an image could not be used, by its path."""
        _ = self.results
        return self._errors

    @property
    def means(self) -> Mapping[str, Mapping[str, Mean]]:
        """The mean of every metric over the images, by method or baseline."""
        return means(self.results)

    @property
    def blank(self) -> Mapping[str, int]:
        """How many heatmaps are zero everywhere, by method or baseline."""
        return {method: sum(method in result.blank for result in self.results) for method in self.means}

    def randomize(self) -> Iterator[Randomized]:
        """Randomize the model's parameters stage by stage, and compare heatmaps with the model's own.

        Adebayo et al. 2018 (Sanity checks for saliency maps). Yields what has not been computed yet, one result for
        each of `stages`; see `randomization`.
        """
        return self._stage_stream

    def _randomize(self) -> Iterator[Randomized]:
        subjects = [(result.image, result.target.index, result.box) for result in self.results]
        for stage in randomized(self.evaluator, self.stages, subjects, self.evaluator.seed):
            self._stages.append(stage)
            yield stage

    @property
    def randomization(self) -> Sequence[Randomized]:
        """The parameter randomization test, which tells how similar heatmaps stay when weights are randomized."""
        for _ in self._stage_stream:
            pass
        return self._stages

    def to_dict(self, *, randomization: bool = False) -> dict[str, Any]:
        """Every number, as JSON values; with `randomization`, also those of the parameter randomization test."""
        metadata, blank = {m: explainer.metadata for m, explainer in self.evaluator.explainers.items()}, self.blank
        values: dict[str, Any] = {
            "methods": [
                {
                    "method": method,
                    "target_tensor": m.target_tensor,
                    "target_tensors": m.layers,
                    "weights": m.weights,
                }
                for method, m in metadata.items()
            ],
            "baselines": list(BASELINES),
            "watched": self.evaluator.watched,
            "summary": {
                method: {**{metric: asdict(mean) for metric, mean in row.items()}, "blank": blank[method]}
                for method, row in self.means.items()
            },
            "images": [_result_dict(result) for result in self.results]
            + [{"path": path, "error": text} for path, text in self.errors.items()],
        }
        if randomization:
            values["sanity"] = [_stage_dict(stage) for stage in self.randomization]
        return values


def evaluate(
    model: ModelSource,
    images: Sequence[str | Path],
    *,
    methods: Sequence[str] = ("gradcam", "hirescam", "layercam"),
    metrics: Sequence[str] | None = None,
    boxes: str | Path | Mapping[str, Sequence[Annotation]] | None = None,
    target: int | str | None = None,
    box: BoxChoice = None,
    watch: Watched | None = None,
    options: Options | None = None,
    feeds: Mapping[str, Any] | None = None,
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 8,
    provider: str = "cpu",
    threads: int | None = None,
) -> Evaluation:
    """Score methods for faithfulness to the model and, with boxes, for localization of the objects.

    Of a detector the boxes are explained, and each has a record of its own. Two heatmaps that do not depend on the
    model, `random` and `centre`, are scored beside the methods.

    Args:
        model: a model that is not explained yet.
        images: paths of the images.
        methods: names of the methods, as `onnx-gradcam methods` lists them.
        metrics: names of `onnx_gradcam.evaluation.faithfulness.METRICS`; by default all that apply.
        boxes: annotations, as `read_boxes` reads or returns them. Explained are then the classes of the objects; of a
            detector the boxes that overlap an annotated box of their class by half, which is where heatmaps should be
            instead of the detector's own box.
        target: the class to explain, by index or name; by default each image's predicted class. Not with boxes.
        box: of a detector, which boxes of an image (with annotations, of each of their classes) are explained, as in
            `Explainer.__call__`; by default the surest, if its score is at least 0.3.
        watch: of a detector, the score that is watched while the image changes: `similarity`, the default, is that of
            D-RISE of the box that is most like the explained one, wherever in the table it is; `score` is that of the
            same row.
        options: what to explain and how; its `method` does not apply.
        feeds: values of the model's other inputs, as for `Explainer`, the same for all images.
        steps: number of steps of deletion and insertion.
        seed: random seed.
        batch_size: number of images to run at once.
        provider: execution provider.
        threads: number of CPU threads; all cores by default.

    Returns:
        The evaluation. The model is loaded at once, images are explained as you iterate or ask for a result.

    Raises:
        InputError: there is no image, an unknown metric, a metric of boxes without boxes, or files that cannot be read.
        TargetError: `target` may be several classes, the model is explained already, or boxes are chosen that it does
            not have.
        ExplainError: the model cannot be explained with these options.

    Example::

        evaluation = evaluate("model.onnx", images, options=Options(preprocess="torchvision"))
        print(evaluation.means["gradcam"]["deletion"].mean, evaluation.means["random"]["deletion"].mean)
        print([stage.spearman for stage in evaluation.randomization])
    """
    if not images:
        raise InputError("there is no image to evaluate methods on; give at least one")
    if not methods:
        raise InputError("there is no method to evaluate; give at least one")
    if boxes is not None and target is not None:
        raise InputError("with boxes the classes are those of the objects; leave out the target")
    if isinstance(target, str) and parse_top(target) is not None:
        raise TargetError(f"{target} may be several classes, and methods are compared on one; name it")
    annotations = read_boxes(boxes) if isinstance(boxes, (str, Path)) else boxes
    evaluator = Evaluator(
        model=model,
        methods=methods,
        metrics=_known(metrics),
        options=options or Options(),
        feeds=feeds,
        box=box,
        watch=watch,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        provider=provider,
        threads=threads,
    )
    if target is not None and len(evaluator.first.class_indices([target])) > 1:
        raise TargetError(f"{target!r} is several classes, and methods are compared on one; name it")
    names = _possible(evaluator, metrics, annotated=boxes is not None)
    return Evaluation(
        evaluator=evaluator, images=[str(image) for image in images], metrics=names, target=target, boxes=annotations
    )


def _known(names: Sequence[str] | None) -> Sequence[str]:
    """The names of metrics, by default of all."""
    for name in names or []:
        if name not in METRICS:
            raise InputError(
                f"unknown metric {name!r}{near_matches(name, METRICS)} (choose from: {', '.join(METRICS)})"
            )
    return tuple(METRICS) if names is None else names


def _possible(evaluator: Evaluator, names: Sequence[str] | None, *, annotated: bool) -> list[str]:
    """The metrics that can be computed; refuses those of boxes, and annotations, where no box has a place."""
    if evaluator.detects and not evaluator.places and annotated:
        raise UnsupportedError(
            "where this model's boxes are cannot be told, so none can be found among the annotated ones; leave out "
            "--boxes"
        )
    placed = annotated or evaluator.places
    for name in names or []:
        if METRICS[name].of_boxes and not placed:
            remedy = "choose another metric" if evaluator.detects else "give them with --boxes"
            raise InputError(f"the metric {name!r} needs the boxes of the objects; {remedy}")
    return [n for n, m in METRICS.items() if (names is None or n in names) and (placed or not m.of_boxes)]


def means(results: Sequence[Evaluated]) -> dict[str, dict[str, Mean]]:
    """The mean of every metric, by method or baseline."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for method, numbers in result.values.items():
            for metric, number in numbers.items():
                values.setdefault(method, {}).setdefault(metric, []).append(number)
    return {method: {metric: _mean(row) for metric, row in columns.items()} for method, columns in values.items()}


def _mean(numbers: Sequence[float]) -> Mean:
    error = float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return Mean(mean=float(np.mean(numbers)), error=error, count=len(numbers))


def _result_dict(result: Evaluated) -> dict[str, Any]:
    return {
        "path": result.image,
        "class": result.target.to_dict(),
        "object": result.label,
        "box": None if result.box is None else result.box.to_dict(),
        "values": result.values,
        "blank": result.blank,
    }


def _stage_dict(result: Randomized) -> dict[str, Any]:
    return {
        "kind": result.stage.kind,
        "layers": [layer.name for layer in result.stage.named],
        "spearman": result.spearman,
        "ssim": result.ssim,
        "unchanged": result.unchanged,
        "failed": result.failed,
    }
