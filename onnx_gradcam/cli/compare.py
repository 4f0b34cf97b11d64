"""`onnx-gradcam compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.options import HeatmapMetric

from ._images import find_images
from ._options import FeedValues, ImagesOption, Json, option, read_feeds
from ._output import check_page_name, complain, say, say_json, table, warn

if TYPE_CHECKING:
    from onnx_gradcam.evaluation.comparison import Comparison, Summary

__all__ = ["compare"]

_EACH = "Give it once for all models, or once for each in order ('' keeps a model's default)."


def _gate(condition: str, lowest: float = -1) -> Any:
    return option("Output", f"Exit with code 1 if {condition}.", min=lowest, max=1, metavar="NUMBER")


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODELS",
            help="Two or more models: ONNX or a framework's own files (.keras, .h5, -symbol.json, .pt2). The others "
            "are compared with the first.",
            show_default=False,
        ),
    ],
    *,
    images: ImagesOption,
    target: Annotated[
        str | None,
        option(
            "Target",
            "Class that all models explain, by the first model's index or name. [default: the first model's top-1 "
            "class of each image]",
            metavar="CLASS",
        ),
    ] = None,
    labels: Annotated[list[str] | None, option("Model", f"Class names: text or JSON. {_EACH}", metavar="FILE")] = None,
    preprocess: Annotated[
        list[str] | None,
        option("Image", f"How an image becomes the input, as in `explain`. {_EACH}", metavar="NAME|FILE|JSON"),
    ] = None,
    feed: FeedValues = None,
    layer: Annotated[list[str] | None, option("Method", f"Layer to explain. {_EACH}", metavar="NAME")] = None,
    method: Annotated[list[str] | None, option("Method", f"Method. {_EACH} [default: gradcam]", metavar="NAME")] = None,
    provider: Annotated[
        list[str] | None, option("Runtime", f"Execution provider. {_EACH} [default: cpu]", metavar="NAME")
    ] = None,
    native: Annotated[
        list[Path] | None,
        option(
            "Model",
            "Heatmaps that a framework computed, as one more side: one array [height, width] per image, named like the "
            "image's file. They are taken to cover what the first model sees.",
            metavar="FILE.npz",
        ),
    ] = None,
    metric: Annotated[
        HeatmapMetric,
        option("Output", "Agreement of heatmaps that orders the report and that --fail-below and --fail-worst check."),
    ] = "pearson",
    fail_below: Annotated[float | None, _gate("any model's mean metric is lower")] = None,
    fail_below_top1: Annotated[
        float | None, _gate("any model has the first model's top-1 class on a smaller share of the images", lowest=0)
    ] = None,
    fail_worst: Annotated[float | None, _gate("the metric of any image is lower")] = None,
    report: Annotated[
        Path | None,
        option(
            "Output", "Write a page with the images side by side, largest disagreements first.", metavar="FILE.html"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare predictions and heatmaps of two or more models.

    \b
    Examples:
      onnx-gradcam compare float.onnx int8.onnx --images photos/ --preprocess torchvision --report report.html
      onnx-gradcam compare float.onnx int8.onnx --images photos/ --fail-below 0.95 --fail-below-top1 0.98
      onnx-gradcam compare model.onnx model.onnx --provider cpu --provider cuda --images photos/ --fail-below 0.99
      onnx-gradcam compare a.onnx b.keras --layer features.18 --layer mixed10 --images 'photos/*.jpg' --json
      onnx-gradcam compare model.onnx --native pytorch_maps.npz --images photos/

    An image that cannot be read is reported, the others go on, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if len(models) + len(native or []) < 2:
        raise typer.BadParameter("give another model, or maps with --native.", param_hint="MODELS")
    if "-" in models or "-" in images:
        raise typer.BadParameter("standard input cannot be read twice; give files.", param_hint="MODELS")
    check_page_name(report, "--report")
    settings = {"labels": labels, "preprocess": preprocess, "layer": layer, "method": method, "provider": provider}
    for name, values in settings.items():
        if len(values or []) not in {0, 1, len(models)}:
            raise typer.BadParameter(
                f"given {len(values or [])} times for {len(models)} models; give it once for all, or once for each.",
                param_hint=f"--{name}",
            )
    from onnx_gradcam.evaluation import comparison  # noqa: PLC0415 - --help must not wait for it

    feeds = read_feeds(feed)
    results = comparison.compare(
        [comparison.Side(model=model, feeds=feeds, **_chosen(settings, i)) for i, model in enumerate(models)],
        find_images(images),
        natives=native or [],
        target=target,
        metric=metric,
        gates=comparison.Gates(mean=fail_below, worst=fail_worst, top1=fail_below_top1),
    )
    if report is not None:
        results.check_report(report)
    _run(results)
    if report is not None:
        results.report(report)
    if as_json:
        say_json(results.to_dict())
    else:
        _say(results, report)
    for sentence in results.broken:
        complain(sentence)
    if results.broken or any(record.error for record in results.records):
        raise typer.Exit(1)


def _chosen(settings: dict[str, list[str] | None], which: int) -> dict[str, str]:
    """The settings of one model."""
    chosen = {name: values[which if len(values) > 1 else 0] for name, values in settings.items() if values}
    return {name: value for name, value in chosen.items() if value}


def _run(results: Comparison) -> None:
    for warning in results.warnings:
        warn(warning)
    from ._progress import progress  # noqa: PLC0415 - --help must not wait for it

    with progress("comparing", len(results.images)) as advance:
        for result in results:
            if isinstance(result, Exception):
                complain(str(result))
            advance()


def _say(results: Comparison, report: Path | None) -> None:
    first = next(iter(results.sides))
    for side, summary in results.summary.items():
        if summary.images:
            _say_summary(f"{side} against {first}", summary)
    if report is not None:
        say(f"report: {report}")


def _say_summary(title: str, summary: Summary) -> None:
    from onnx_gradcam.evaluation.similarity import METRICS  # noqa: PLC0415 - as above

    count = f"{summary.images} image{'' if summary.images == 1 else 's'}"
    same = "" if summary.same_top is None else f", same top-1 class on {summary.images - len(summary.flipped)}"
    say(f"{title}: {count}{same}")
    rows: list[Sequence[str]] = [("", "mean", "median", "worst")]
    for metric, spread in summary.spreads.items():
        if spread is not None:
            values = (f"{value:.4g}" for value in (spread.mean, spread.median, spread.worst))
            rows.append((METRICS[metric].title, *values))
    say(table(rows, right=(1, 2, 3)))
    if summary.blank:
        say(f"  {summary.blank} with a blank heatmap")
