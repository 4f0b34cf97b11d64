"""`onnx-gradcam evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Labels, Layer, ModelFile, Output, Preprocess, Preset, Score, chosen, model_source

__all__ = ["evaluate"]


def evaluate(
    model: ModelFile,
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
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Where the objects lie: a JSON file, or a folder of PASCAL VOC's XML files; docs/evaluate.md has the "
            "format. Explained are the classes of the objects, and whether the heatmaps lie on them is measured too.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="The methods to compare; `methods` lists them.")
    ] = "gradcam,hirescam,layercam",
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="What to measure: deletion, insertion, road, average_drop, increase, deletion_drop, sparsity, and "
            "with --boxes pointing, energy. [default: all of them]",
        ),
    ] = None,
    sanity: Annotated[
        bool,
        typer.Option(
            "--sanity",
            help="Redraw the model's weights too, layer by layer, and say how alike the heatmaps stay: those that do "
            "not change do not show what the model has learnt.",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="The class to explain, by its number or name. [default: the class with the highest score of each "
            "image]",
        ),
    ] = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    layer: Layer = None,
    preset: Preset = None,
    score: Score = None,
    output: Output = None,
    steps: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="In how many steps deletion and insertion go.")
    ] = 50,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the random numbers.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="How many images to run at once.")] = 8,
    provider: Annotated[str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processor threads. [default: all cores]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods: how faithful their heatmaps are to the model, and whether they lie on the objects.

    \b
    Examples:
      onnx-gradcam evaluate model.onnx --images photos/ --preprocess torchvision
      onnx-gradcam evaluate model.onnx --images photos/ --boxes boxes.json --method gradcam,layercam,eigencam
      onnx-gradcam evaluate model.onnx --images photos/ --metric road,sparsity --sanity --json

    Every number is a mean over the images. A random map and one of the middle of the image stand beside the
    methods: what is no better than they are tells nothing. An image that cannot be used is reported, the others go on,
    and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if model == "-" and "-" in images:
        raise typer.BadParameter("standard input cannot be both the model and an image.", param_hint="--images")
    if boxes is not None and target is not None:
        raise typer.BadParameter("with --boxes the classes are those of the objects.", param_hint="--target")
    from .evaluating import Request, run  # noqa: PLC0415 - --help must not wait for it

    run(
        Request(
            model=model_source(model),
            name=model,
            images=images,
            boxes=boxes,
            methods=_names(method, "--method"),
            metrics=_names(metric, "--metric") if metric is not None else None,
            sanity=sanity,
            target=target,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            as_json=as_json,
        ),
        where=chosen(provider=provider, threads=threads),
        reading=chosen(labels=labels, preprocess=preprocess),
        choices=chosen(layer=layer, preset=preset, score=score, output=output),
    )


def _names(text: str, option: str) -> list[str]:
    names = text.split(",")
    if "" in names or len(set(names)) < len(names):
        raise typer.BadParameter(f"{text!r} has an empty or a repeated name.", param_hint=option)
    return names
