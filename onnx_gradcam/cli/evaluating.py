"""What `evaluate` does: run the methods and the metrics on each image, report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import InputError, TargetError, near_matches
from onnx_gradcam.evaluation.boxes import Thing, read_boxes
from onnx_gradcam.evaluation.faithfulness import METRICS
from onnx_gradcam.evaluation.randomization import Randomized, plan_stages, randomized, weight_layers
from onnx_gradcam.evaluation.scoring import BASELINES, Evaluated, Evaluator, Mean, means

from .output import complain, finite, say, say_json, table, warn
from .progress import progress
from .sources import find_images

__all__ = ["Request", "run"]

_OF_BOXES = ("pointing", "energy")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate; see the options of the command.

    Attributes:
        model: path or bytes of the model.
        name: what to call it.
        images: images, folders, patterns.
        boxes: file or folder of boxes.
        methods: to compare.
        metrics: names of `METRICS`, `None` for all.
        sanity: whether to redraw the weights too.
        target: the class, `None` for the one with the highest score.
        steps: of deletion and insertion.
        seed: of random numbers.
        batch_size: images to run at once.
        as_json: print JSON.
    """

    model: Path | bytes
    name: str
    images: Sequence[str]
    boxes: Path | None
    methods: Sequence[str]
    metrics: Sequence[str] | None
    sanity: bool
    target: str | None
    steps: int
    seed: int
    batch_size: int
    as_json: bool


def run(request: Request, **choices: Mapping[str, Any]) -> None:
    """Evaluate the methods.

    Args:
        request: what to evaluate.
        choices: `where`, `reading` and `choices` of `Evaluator`.

    Raises:
        ExplainError: nothing can be evaluated this way.
        typer.Exit: code 1 where an image could not be used.
    """
    metrics = _metrics(request)
    images = find_images(request.images)
    if "-" in images:
        raise InputError("images are read several times, and standard input only once: give files with --images")
    boxes = None if request.boxes is None else read_boxes(request.boxes)
    if request.target is not None and parse_top(request.target) is not None:
        raise TargetError(f"{request.target} may be several classes, and methods are compared on one; name it")
    evaluator = Evaluator(
        model=request.model,
        methods=request.methods,
        metrics=metrics,
        steps=request.steps,
        seed=request.seed,
        batch_size=request.batch_size,
        **choices,
    )
    for warning in dict.fromkeys(w for explainer in evaluator.explainers.values() for w in explainer.warnings):
        warn(warning)
    results: list[Evaluated] = []
    errors: dict[str, str] = {}
    with progress("evaluating", len(images)) as advance:
        for image, result in zip(images, evaluator.stream(images, request.target, boxes), strict=True):
            if isinstance(result, InputError):
                complain(str(result))
                errors[image] = str(result)
            else:
                results += result
            advance()
    if not results and not errors:
        raise InputError(
            f"the model sees none of the objects of {str(request.boxes)!r} in these images: check the names of the "
            "files and the classes"
        )
    stages = list(_randomized(evaluator, results, request)) if request.sanity else []
    if request.as_json:
        say_json(_as_json(request, evaluator, results, errors, stages))
    elif results:
        _say(results, metrics, boxes)
        if stages:
            _say_stages(stages, request.methods)
    if errors:
        raise typer.Exit(1)


def _metrics(request: Request) -> list[str]:
    for name in request.metrics or []:
        if name not in METRICS:
            raise InputError(f"there is no metric {name!r}{near_matches(name, METRICS)} (known: {', '.join(METRICS)})")
        if name in _OF_BOXES and request.boxes is None:
            raise InputError(f"the metric {name} needs to know where the objects lie: give --boxes")
    return [
        name
        for name in METRICS
        if (request.metrics is None or name in request.metrics) and (request.boxes is not None or name not in _OF_BOXES)
    ]


def _randomized(evaluator: Evaluator, results: Sequence[Evaluated], request: Request) -> Iterator[Randomized]:
    stages = plan_stages(weight_layers(request.model))
    subjects = [(one.image, one.target.index) for one in results]
    with progress("redrawing weights", len(stages)) as advance:
        for stage in randomized(evaluator, stages, subjects, request.seed):
            yield stage
            advance()


def _as_json(
    request: Request,
    evaluator: Evaluator,
    results: Sequence[Evaluated],
    errors: Mapping[str, str],
    stages: Sequence[Randomized],
) -> dict[str, Any]:
    facts = {method: explainer.metadata for method, explainer in evaluator.explainers.items()}
    summary = means(results)
    found: dict[str, Any] = {
        "model": request.name,
        "methods": [{"method": m, "target_tensor": f.target_tensor, "weights": f.weights} for m, f in facts.items()],
        "baselines": list(BASELINES),
        "summary": {
            method: {
                **{metric: asdict(mean) for metric, mean in mine.items()},
                "blank": sum(method in one.blank for one in results),
            }
            for method, mine in summary.items()
        },
        "images": [_one(one) for one in results] + [{"path": path, "error": text} for path, text in errors.items()],
    }
    if request.sanity:
        found["sanity"] = [
            {
                "kind": one.stage.kind,
                "layers": [layer.name for layer in one.stage.named],
                "spearman": one.spearman,
                "ssim": one.ssim,
                "unchanged": one.unchanged,
                "failed": one.failed,
            }
            for one in stages
        ]
    return found


def _one(result: Evaluated) -> dict[str, Any]:
    target = result.target
    return {
        "path": result.image,
        "class": {"index": target.index, "label": target.label, "score": finite(target.score)},
        "object": result.thing,
        "values": result.values,
        "blank": result.blank,
    }


def _say(results: Sequence[Evaluated], metrics: Sequence[str], boxes: Mapping[str, Sequence[Thing]] | None) -> None:
    summary = means(results)
    what = "objects" if boxes is not None else "images"
    say(f"{len(results)} {what}; mean and standard error, random and centre are maps that know nothing of the model")
    rows = [("", "better", *summary)]
    for name in metrics:
        cells = (_cell(mine.get(name)) for mine in summary.values())
        rows.append((METRICS[name].title, METRICS[name].better, *cells))
    say(table(rows, right=range(2, 2 + len(summary))))
    for method in summary:
        blank = sum(method in one.blank for one in results)
        if blank:
            say(f"  {method}: {blank} blank")


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.mean:.3f}" if mean.error is None else f"{mean.mean:.3f} ±{mean.error:.3f}"


def _say_stages(stages: Sequence[Randomized], methods: Sequence[str]) -> None:
    say()
    say("weights redrawn: mean rank correlation with the heatmap of the model itself")
    rows = [("", "layers", *methods)]
    for one in stages:
        cells = ("" if (value := one.spearman[m]) is None else f"{value:.3f}" for m in methods)
        rows.append((one.stage.kind, _layers(one), *cells))
    say(table(rows, right=range(2, 2 + len(methods))))
    for method in methods:
        untouched = [f"{one.stage.kind} {_layers(one)}" for one in stages if method in one.unchanged]
        if untouched:
            warn(f"{method} does not change at all when these weights are redrawn: {'; '.join(untouched)}")


def _layers(one: Randomized) -> str:
    named = one.stage.named
    first, last = (name if len(name) <= 32 else f"...{name[-29:]}" for name in (named[0].name, named[-1].name))
    return first if len(named) == 1 else f"{first} to {last} ({len(named)})"
