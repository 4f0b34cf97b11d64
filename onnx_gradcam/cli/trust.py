"""`onnx-gradcam report` and `onnx-gradcam drift`: whether heatmaps can be trusted, with exit codes for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_gradcam.options import Options

from ._images import find_images
from ._options import (
    OPTIONS,
    FeedValues,
    ImagesOption,
    Json,
    ModelFile,
    Provider,
    Threads,
    count,
    explains,
    model_source,
    option,
    read_feeds,
)
from ._output import check_page_name, complain, say, say_json, table

if TYPE_CHECKING:
    from onnx_gradcam.evaluation.audit import Report
    from onnx_gradcam.evaluation.drift import Drift

__all__ = ["drift", "report"]

_REPORTED = {"labels", "preprocess", "layer", "preset", "score", "output", "image", "method", "background"}

PageOption = Annotated[
    Path | None, option("Output", "Write a page with every figure.", "-o", "--out", metavar="FILE.html")
]
LimitOption = Annotated[
    list[str] | None,
    option("Output", "Limit of a check in place of its own; may be repeated.", metavar="CHECK=NUMBER"),
]


@explains(without=set(OPTIONS) - _REPORTED)
def report(
    model: ModelFile,
    *,
    choices: dict[str, Any],
    images: ImagesOption,
    against: Annotated[
        str | None,
        option("Model", "Second model, such as a quantized one, whose heatmaps should agree.", metavar="FILE"),
    ] = None,
    limit: LimitOption = None,
    out: PageOption = None,
    feed: FeedValues = None,
    steps: Annotated[
        int, option("Method", "Number of steps of deletion and insertion.", min=1, max=10_000, metavar="N")
    ] = 20,
    seed: Annotated[int, count("Random seed.", min=0)] = 0,
    batch_size: Annotated[int, count("Number of images to run at once.")] = 8,
    provider: Provider = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check whether a model's heatmaps can be trusted.

    \b
    Examples:
      onnx-gradcam report model.onnx --images photos/ --preprocess torchvision -o trust.html
      onnx-gradcam report float.onnx --images photos/ --against int8.onnx --limit agreement=0.95 --json

    Checks the gradient against finite differences and, with libra, that it is complete, that heatmaps depend on weights
    and class, that they hold under noise and beat a random heatmap, and whether heat is on borders, flat regions or
    fixed marks. If a figure is beyond its limit, or an image cannot be used, the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if "-" in images or "-" in {model, against}:
        raise typer.BadParameter("models and images are read several times; give files.", param_hint="--images")
    check_page_name(out, "--out")
    from onnx_gradcam.evaluation import audit, pages  # noqa: PLC0415 - --help must not wait for it

    paths = find_images(images)
    if out is not None:
        pages.check_page(out, [str(path) for path in paths])
    found = audit.report(
        model_source(model), paths, against=None if against is None else model_source(against), limits=limits_of(limit),
        options=Options(**choices), feeds=read_feeds(feed), steps=steps, seed=seed, batch_size=batch_size,
        provider=provider, threads=threads,
    )  # fmt: skip
    if out is not None:
        found.write(out)
    for text in found.errors.values():
        complain(text)
    if as_json:
        say_json(found.to_dict())
    else:
        _say(found)
    if not found.passed or found.errors:
        raise typer.Exit(1)


def drift(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="Results of batch to compare with.", show_default=False)
    ],
    current: Annotated[Path, typer.Argument(metavar="CURRENT", help="Results of batch.", show_default=False)],
    *,
    level: Annotated[
        float, option("Output", "Probability of a false alarm, over all classes.", metavar="NUMBER")
    ] = 0.01,
    seed: Annotated[int, count("Random seed.", min=0)] = 0,
    out: PageOption = None,
    as_json: Json = False,
) -> None:
    """Compare the heatmaps of two batch runs.

    \b
    Examples:
      onnx-gradcam drift march/ april/ -o drift.html
      onnx-gradcam drift march/ april/ --level 0.001 --json

    Tests, class by class, whether heat is in other places or more or less concentrated. Results are of --format npz or
    parquet. If a class drifted, the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    check_page_name(out, "--out")
    from onnx_gradcam.evaluation import drift as drifting  # noqa: PLC0415 - --help must not wait for it
    from onnx_gradcam.evaluation import pages  # noqa: PLC0415 - as above

    if out is not None:
        pages.check_page(out, [])
    found = drifting.drift(reference, current, level=level, seed=seed)
    if out is not None:
        found.write(out)
    if as_json:
        say_json(found.to_dict())
    else:
        _say_drift(found)
    if found.drifted:
        raise typer.Exit(1)


def _say_drift(found: Drift) -> None:
    drifted = sum(one.drifted for one in found.classes)
    say(f"{drifted} of {len(found.classes)} classes drifted, at a level of {found.level:g} for all tests together")
    rows: list[tuple[str, ...]] = [("", "", "heatmaps", "p where", "p concentration", "down", "right", "sparsity")]
    for one in found.classes:
        (down, right), (down_now, right_now) = one.centres
        pairs = ((down, down_now), (right, right_now), one.sparsity)
        changes = (f"{before:.2f} -> {after:.2f}" for before, after in pairs)
        facts = (f"{one.counts[0]}, {one.counts[1]}", f"{one.where:.2g}", f"{one.concentration:.2g}", *changes)
        rows.append((one.label, "DRIFTED" if one.drifted else "-", *facts))
    say(table(rows, right=range(2, 8)))
    for label, why in found.skipped.items():
        say(f"  not compared: {label} ({why})")


def limits_of(given: list[str] | None) -> dict[str, float]:
    """The limits of `--limit`, by name."""
    limits = {}
    for text in given or []:
        name, _, number = text.partition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not CHECK=NUMBER.", param_hint="--limit") from None
    return limits


def _say(found: Report) -> None:
    from onnx_gradcam.evaluation.audit import CHECKS  # noqa: PLC0415 - as above

    say(f"{found.model}, {found.method}, {found.images} image{'' if found.images == 1 else 's'}")
    words = {True: "passed", False: "FAILED", None: "-"}
    rows = [("", "", "figure", "limit")]
    for finding in found.findings:
        sign = ">=" if CHECKS[finding.check].better == "higher" else "<="
        figure = "" if finding.value is None else f"{finding.value:.3g}"
        rows.append((CHECKS[finding.check].title, words[finding.passed], figure, f"{sign} {finding.limit:g}"))
    say(table(rows, right=(2, 3)))
    for finding in found.findings:
        if finding.text:
            say(f"  {CHECKS[finding.check].title}: {finding.text}")
