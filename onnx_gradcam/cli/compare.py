"""`onnx-gradcam compare`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Json

__all__ = ["MetricKind", "compare"]


class MetricKind(str, Enum):
    """By what the images are ordered, and what `--fail-below` looks at."""

    PEARSON = "pearson"
    SPEARMAN = "spearman"
    COSINE = "cosine"
    SSIM = "ssim"
    OVERLAP = "overlap"


_EACH = "Give it once for all models, or once for each in their order ('' leaves one its default)."


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODELS",
            help="Two or more models, ONNX or a framework's own files (.keras, .h5, -symbol.json, .pt2). The first is "
            "what the others are compared with.",
            show_default=False,
        ),
    ],
    *,
    images: Annotated[
        list[str],
        typer.Option(
            "--images",
            metavar="FOLDER",
            help="Images: a folder, a quoted pattern or a file; may be given several times.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="The class that all models explain, by the first one's number or name. [default: the first model's "
            "best class of each image]",
        ),
    ] = None,
    labels: Annotated[list[str] | None, typer.Option(metavar="FILE", help=f"Class names, one a line. {_EACH}")] = None,
    preprocess: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE|JSON", help=f"How an image becomes the input, as for `explain`. {_EACH}"),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Where in the model to look. {_EACH}")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"How the heatmap is made. {_EACH} [default: gradcam]")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Where to run: cpu, cuda ... {_EACH} [default: cpu]")
    ] = None,
    native: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.npz",
            help="Maps that a framework computed itself, as one more side: an archive of one array [height, width] a "
            "image, named like the image's file. They lie where the first model looks.",
        ),
    ] = None,
    metric: Annotated[
        MetricKind, typer.Option(help="Which agreement of heatmaps orders the report and is held against --fail-below.")
    ] = MetricKind.PEARSON,
    fail_below: Annotated[
        float | None,
        typer.Option(
            min=-1,
            max=1,
            metavar="NUMBER",
            help="Exit with code 1 where the mean of the metric is lower for any model.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write a page with the images side by side, largest disagreements first."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare models on images: whether they see the same class, and for the same reason.

    \b
    Examples:
      onnx-gradcam compare float.onnx int8.onnx --images photos/ --preprocess torchvision --report report.html
      onnx-gradcam compare model.onnx model.onnx --provider cpu --provider cuda --images photos/ --fail-below 0.99
      onnx-gradcam compare a.onnx b.keras --layer features.18 --layer mixed10 --images 'photos/*.jpg' --json
      onnx-gradcam compare model.onnx --native pytorch_maps.npz --images photos/

    An image that cannot be read is reported, the others go on, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if len(models) + len(native or []) < 2:
        raise typer.BadParameter("two are compared: name another model, or maps with --native.", param_hint="MODELS")
    if "-" in models or "-" in images:
        raise typer.BadParameter("standard input cannot be read twice; name files.", param_hint="MODELS")
    if report is not None and report.suffix.lower() not in {".html", ".htm"}:
        raise typer.BadParameter(f"{str(report)!r} does not end in .html.", param_hint="--report")
    options = {"labels": labels, "preprocess": preprocess, "layer": layer, "method": method, "provider": provider}
    for name, values in options.items():
        if len(values or []) not in {0, 1, len(models)}:
            raise typer.BadParameter(
                f"it was given {len(values or [])} times for {len(models)} models; give it once for all, or once for "
                "each.",
                param_hint=f"--{name}",
            )
    from .comparing import Request, run  # noqa: PLC0415 - --help must not wait for it

    run(
        Request(
            models=models,
            natives=native or [],
            images=images,
            target=target,
            choices=[_choices(options, i) for i in range(len(models))],
            metric=metric.value,
            limit=fail_below,
            report=report,
            as_json=as_json,
        )
    )


def _choices(options: dict[str, list[str] | None], which: int) -> dict[str, str]:
    """What was chosen for one model."""
    mine = {name: values[which if len(values) > 1 else 0] for name, values in options.items() if values}
    return {name: value for name, value in mine.items() if value}
