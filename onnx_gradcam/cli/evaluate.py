"""`onnx-gradcam evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.options import Options, Randomization, Watched

from ._images import find_images
from ._options import (
    OPTIONS,
    BoxNumber,
    BoxRank,
    FeedValues,
    ImagesOption,
    Json,
    LeastScore,
    ModelFile,
    Provider,
    Threads,
    count,
    explains,
    model_source,
    names,
    option,
    read_feeds,
    selected_boxes,
)
from ._output import check_page_name, complain, say, say_json, table, warn

if TYPE_CHECKING:
    from onnx_gradcam.evaluation.experiment import Evaluation
    from onnx_gradcam.evaluation.randomization import Randomized
    from onnx_gradcam.evaluation.statistics import Mean

__all__ = ["evaluate"]

_SHARED = {"labels", "preprocess", "layer", "preset", "score", "output", "image", "background"}
"""The options of `Options` that the command takes."""
_WATCHED = {"similarity": "D-RISE's similarity to the box", "score": "the score of the same row of the table"}


@explains(without=set(OPTIONS) - _SHARED)
def evaluate(
    model: ModelFile,
    *,
    choices: dict[str, Any],
    images: ImagesOption,
    boxes: Annotated[
        Path | None,
        option(
            "Target",
            "Bounding boxes of the objects: a JSON file (docs/evaluate.md has the format), or a folder of PASCAL VOC's "
            "XML files. The objects are explained, and localization is scored too; of a detector the boxes that "
            "overlap one of their class by half.",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    method: Annotated[
        str, option("Method", "Methods to score; `onnx-gradcam methods` lists them.", metavar="NAME[,NAME...]")
    ] = "gradcam,hirescam,layercam",
    metric: Annotated[
        str | None,
        option(
            "Method",
            "Metrics, or `all`; docs/evaluate.md describes each. [default: those marked there that apply]",
            "--metric",
            "--metrics",
            metavar="NAME[,NAME...]",
        ),
    ] = None,
    sanity: Annotated[
        bool,
        option(
            "Method",
            "Run the parameter randomization test as well: heatmaps that do not change with the weights do not show "
            "what the model has learnt.",
            "--sanity",
        ),
    ] = False,
    sanity_mode: Annotated[
        Randomization,
        option(
            "Method",
            "How --sanity randomizes weights: shuffle each layer's own, or initialise new ones.",
            metavar="shuffle|initialise",
        ),
    ] = "shuffle",
    everything: Annotated[
        bool, option("Method", "Every metric that applies, and the parameter randomization test.", "--all")
    ] = False,
    report: Annotated[Path | None, option("Output", "Write the tables as a page.", metavar="FILE.html")] = None,
    target: Annotated[
        str | None, option("Target", "Class to explain, by name or index. [default: predicted class]", metavar="CLASS")
    ] = None,
    box: BoxNumber = None,
    box_rank: BoxRank = None,
    least: LeastScore = None,
    watch: Annotated[
        Watched | None,
        option(
            "Method",
            "Detection only: what is watched while the image changes, D-RISE's similarity to the box that is most like "
            "the explained one, or the score of the same row of the table. [default: similarity]",
            metavar="similarity|score",
        ),
    ] = None,
    feed: FeedValues = None,
    steps: Annotated[
        int, option("Method", "Number of steps of deletion and insertion.", min=1, max=10_000, metavar="N")
    ] = 50,
    seed: Annotated[int, count("Random seed.", min=0)] = 0,
    batch_size: Annotated[int, count("Number of images to run at once.")] = 8,
    provider: Provider = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score methods for faithfulness and localization.

    \b
    Examples:
      onnx-gradcam evaluate model.onnx --images photos/ --preprocess torchvision
      onnx-gradcam evaluate model.onnx --images photos/ --boxes boxes.json --method gradcam,layercam,eigencam
      onnx-gradcam evaluate model.onnx --images photos/ --metric road,sparsity --sanity --json
      onnx-gradcam evaluate model.onnx --images photos/ --all --report methods.html
      onnx-gradcam evaluate detector.onnx --images photos/ --boxes voc/ --method hirescam,layercam
      onnx-gradcam evaluate detector.onnx --images photos/ --box all --least 0.4

    Every number is a mean over the images, or over the boxes of a detector. A random heatmap and one of the image's
    centre are scored as well: a method that is no better tells nothing. An image that cannot be used is reported, the
    others go on, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if model == "-" and "-" in images:
        raise typer.BadParameter("standard input cannot be both the model and an image.", param_hint="--images")
    if "-" in images:
        raise typer.BadParameter("images are read several times; give files.", param_hint="--images")
    if boxes is not None and target is not None:
        raise typer.BadParameter("with --boxes the classes are those of the objects.", param_hint="--target")
    if everything and metric is not None:
        raise typer.BadParameter("--all computes every metric.", param_hint="--metric")
    check_page_name(report, "--report")
    metric, sanity = ("all", True) if everything else (metric, sanity)
    methods, metrics = names(method, "--method"), None if metric is None else names(metric, "--metric")
    from onnx_gradcam.evaluation import experiment  # noqa: PLC0415 - --help must not wait for it

    evaluation = experiment.evaluate(
        model_source(model),
        find_images(images),
        methods=methods,
        metrics=metrics,
        boxes=boxes,
        target=target,
        box=selected_boxes(box, box_rank, None, least, most=None),
        watch=watch,
        steps=steps,
        seed=seed,
        randomize_by=sanity_mode,
        batch_size=batch_size,
        threads=threads,
        provider=provider,
        options=Options(**choices),
        feeds=read_feeds(feed),
    )
    if report is not None:
        evaluation.check_report(report)
    _run(evaluation, sanity=sanity)
    if report is not None and evaluation.results:
        evaluation.report(report, f"Methods on {Path(model).name}", randomization=sanity)
    if as_json:
        say_json({"model": model, **evaluation.to_dict(randomization=sanity)})
    elif evaluation.results:
        _say(evaluation)
        if sanity:
            _say_randomization(evaluation)
    if evaluation.errors:
        raise typer.Exit(1)


def _run(evaluation: Evaluation, *, sanity: bool) -> None:
    for warning in evaluation.warnings:
        warn(warning)
    stages = evaluation.stages if sanity else []
    from ._progress import progress  # noqa: PLC0415 - --help must not wait for it

    with progress("evaluating", len(evaluation.images)) as advance:
        for result in evaluation:
            if isinstance(result, Exception):
                complain(str(result))
            advance()
    if stages:
        with progress("randomizing weights", len(stages)) as advance:
            for _ in evaluation.randomize():
                advance()


def _say(evaluation: Evaluation) -> None:
    from onnx_gradcam.evaluation.metrics import METRICS  # noqa: PLC0415 - as above

    means, count = evaluation.means, len(evaluation.results)
    subject = "box" if evaluation.evaluator.detects else "image" if evaluation.boxes is None else "object"
    plural = "" if count == 1 else "es" if subject == "box" else "s"
    say(f"{count} {subject}{plural}; mean and standard error; random and centre do not depend on the model")
    if evaluation.evaluator.detects:
        say(_protocol(evaluation))
    rows = [
        ("", "better", *means),
        *(
            (METRICS[name].title, METRICS[name].better, *(_cell(row.get(name)) for row in means.values()))
            for name in evaluation.metrics
            if any(name in row for row in means.values())
        ),
    ]
    say(table(rows, right=range(2, 2 + len(means))))
    if evaluation.agreement is not None:
        say(f"  agreement of the metrics on the order of the methods (Kendall's W): {evaluation.agreement:.2f}")
    if evaluation.undecided:
        titles = ", ".join(METRICS[name].title for name in evaluation.undecided)
        say(f"  best and worst method less than two standard errors apart: {titles}")
    for method, blank in evaluation.blank.items():
        if blank:
            say(f"  {method}: {blank} blank")


def _protocol(evaluation: Evaluation) -> str:
    """What the figures of a detector's boxes are of."""
    watched = f"watched: {_WATCHED[evaluation.evaluator.watched]}"
    if not evaluation.evaluator.places:
        return watched
    place = "detector's own" if evaluation.boxes is None else "annotated"
    return f"{watched}; heat should be in the {place} box"


def _cell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.mean:.3f}" if mean.error is None else f"{mean.mean:.3f} ±{mean.error:.3f}"


def _say_randomization(evaluation: Evaluation) -> None:
    methods, results = list(evaluation.evaluator.methods), evaluation.randomization
    say()
    say("parameter randomization: mean rank correlation with the model's own heatmap")
    whole = [result for result in results if result.stage.kind == "cascading"][-1]
    rows = [
        ("", "layers", *methods),
        *((r.stage.kind, _layers(r), *(_three(r.spearman[m]) for m in methods)) for r in results),
        ("entropy", "all, relative change", *(_three(whole.entropy[m]) for m in methods)),
    ]
    say(table(rows, right=range(2, 2 + len(methods))))
    for method in methods:
        unchanged = [f"{result.stage.kind} {_layers(result)}" for result in results if method in result.unchanged]
        if unchanged:
            warn(f"{method} does not change at all when these weights are randomized: {'; '.join(unchanged)}")


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _layers(result: Randomized) -> str:
    named = result.stage.named
    first, last = (name if len(name) <= 32 else f"...{name[-29:]}" for name in (named[0].name, named[-1].name))
    return first if len(named) == 1 else f"{first} to {last} ({len(named)})"
