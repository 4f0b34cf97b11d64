"""Score methods for faithfulness and localization: means over images, and the parameter randomization test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError
from onnx_gradcam.files import ModelSource, make_folder, write_file
from onnx_gradcam.options import Options, Randomization, Watched, check_word
from onnx_gradcam.runtime.explainer import BoxChoice

from .boxes import Annotation, read_boxes
from .metrics import METRICS, named
from .pages import check_page, evaluation_page
from .randomization import Randomized, Stage, plan_stages, randomized, weight_layers
from .scoring import BASELINES, Evaluated, Evaluator
from .statistics import Mean, Paired, kendall_w, mean_of, paired, told_apart

__all__ = ["Evaluation", "evaluate", "means"]


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
        randomize_by: how weights are randomized, see `onnx_gradcam.evaluation.randomization.redrawn`.
    """

    evaluator: Evaluator
    images: Sequence[str]
    metrics: Sequence[str]
    target: int | str | None = None
    boxes: Mapping[str, Sequence[Annotation]] | None = None
    randomize_by: Randomization = "shuffle"
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

    @property
    def paired(self) -> Mapping[str, Mapping[str, Mapping[str, Paired]]]:
        """Every method against `random` and `centre`: by method, baseline and metric with a better direction."""
        columns = {metric: self._columns(metric) for metric in self._directed}
        return {
            method: {
                baseline: {
                    metric: paired(column[method], column[baseline])
                    for metric, column in columns.items()
                    if method in column and baseline in column
                }
                for baseline in BASELINES
            }
            for method in self.evaluator.methods
        }

    @property
    def agreement(self) -> float | None:
        """Kendall's W of the orders in which the metrics with a better direction put the methods; 1 is full agreement.

        Metrics that not every method has are left out; `None` with fewer than three methods or two metrics.
        """
        means, methods = self.means, self.evaluator.methods
        return kendall_w(
            {
                metric: [METRICS[metric].worth(means[method][metric].mean) for method in methods]
                for metric in self._directed
                if all(metric in means[method] for method in methods)
            }
        )

    @property
    def undecided(self) -> Sequence[str]:
        """Metrics whose best and worst method are less than two standard errors of their difference apart."""
        methods = self.evaluator.methods
        columns = {metric: self._columns(metric) for metric in self._directed} if len(methods) > 1 else {}
        chosen = {metric: {m: column[m] for m in methods if m in column} for metric, column in columns.items()}
        return [metric for metric, column in chosen.items() if len(column) > 1 and not told_apart(column)]

    @property
    def _directed(self) -> Sequence[str]:
        return [metric for metric in self.metrics if METRICS[metric].better]

    def _columns(self, metric: str) -> dict[str, list[float]]:
        """The worth of every image, higher being better, by method and baseline that have the metric for all."""
        columns: dict[str, list[float]] = {}
        for result in self.results:
            for method, values in result.values.items():
                if metric in values:
                    columns.setdefault(method, []).append(METRICS[metric].worth(values[metric]))
        return {method: column for method, column in columns.items() if len(column) == len(self.results)}

    def randomize(self) -> Iterator[Randomized]:
        """Randomize the model's parameters stage by stage, and compare heatmaps with the model's own.

        Adebayo et al. 2018 (Sanity checks for saliency maps). Yields what has not been computed yet, one result for
        each of `stages`; see `randomization`.
        """
        return self._stage_stream

    def _randomize(self) -> Iterator[Randomized]:
        subjects = [(result.image, result.target.index, result.box) for result in self.results]
        for stage in randomized(self.evaluator, self.stages, subjects, self.evaluator.seed, self.randomize_by):
            self._stages.append(stage)
            yield stage

    @property
    def randomization(self) -> Sequence[Randomized]:
        """The parameter randomization test, which tells how similar heatmaps stay when weights are randomized."""
        for _ in self._stage_stream:
            pass
        return self._stages

    def report(self, path: str | Path, title: str, *, randomization: bool = False) -> None:
        """Write one HTML file with every table; with `randomization`, also that of the randomization test."""
        self.check_report(path)
        page = evaluation_page(self, title, self.randomization if randomization else [])
        make_folder(Path(path).parent)
        write_file(path, page.encode("utf-8", "replace"))

    def check_report(self, path: str | Path) -> None:
        """Refuse a path for the page that is one of the images or another file, before any image is explained."""
        check_page(path, self.images)

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
            "paired": {
                method: {
                    baseline: {metric: asdict(pair) for metric, pair in row.items()} for baseline, row in rows.items()
                }
                for method, rows in self.paired.items()
            },
            "kendall_w": self.agreement,
            "undecided": self.undecided,
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
    randomize_by: Randomization = "shuffle",
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
        metrics: names of `onnx_gradcam.evaluation.metrics.METRICS`, or `all`; by default its `DEFAULT` that apply.
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
        randomize_by: how `Evaluation.randomization` changes weights: `shuffle` puts each layer's own in random order,
            `initialise` draws new ones, which quantized models refuse.
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
    check_word("randomize_by", randomize_by, get_args(Randomization))
    if boxes is not None and target is not None:
        raise InputError("with boxes the classes are those of the objects; leave out the target")
    if isinstance(target, str) and parse_top(target) is not None:
        raise TargetError(f"{target} may be several classes, and methods are compared on one; name it")
    annotations = read_boxes(boxes) if isinstance(boxes, (str, Path)) else boxes
    evaluator = Evaluator(
        model=model,
        methods=methods,
        metrics=named(metrics),
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
        evaluator=evaluator,
        images=[str(image) for image in images],
        metrics=names,
        target=target,
        boxes=annotations,
        randomize_by=randomize_by,
    )


def _possible(evaluator: Evaluator, names: Sequence[str] | None, *, annotated: bool) -> list[str]:
    """The metrics that can be computed; refuses those of boxes, and annotations, where no box has a place."""
    if evaluator.detects and not evaluator.places and annotated:
        raise UnsupportedError(
            "where this model's boxes are cannot be told, so none can be found among the annotated ones; leave out "
            "--boxes"
        )
    placed = annotated or evaluator.places
    for name in names or []:
        if name != "all" and METRICS[name].of_boxes and not placed:
            remedy = "choose another metric" if evaluator.detects else "give them with --boxes"
            raise InputError(f"the metric {name!r} needs the boxes of the objects; {remedy}")
    return [name for name in named(names) if placed or not METRICS[name].of_boxes]


def means(results: Sequence[Evaluated]) -> dict[str, dict[str, Mean]]:
    """The mean of every metric, by method or baseline."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for method, numbers in result.values.items():
            for metric, number in numbers.items():
                values.setdefault(method, {}).setdefault(metric, []).append(number)
    return {method: {metric: mean_of(row) for metric, row in columns.items()} for method, columns in values.items()}


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
        "entropy": result.entropy,
        "unchanged": result.unchanged,
        "failed": result.failed,
    }
