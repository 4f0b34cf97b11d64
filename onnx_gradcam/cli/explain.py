"""`onnx-gradcam explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Against,
    Box,
    Boxes,
    BoxRank,
    Channels,
    Combine,
    EigenSmooth,
    GradDtype,
    Image,
    Json,
    Labels,
    Layer,
    Mask,
    ModelFile,
    Modifier,
    Outputs,
    Preprocess,
    Preset,
    Profile,
    Reference,
    Score,
    StyleKind,
    Task,
    Weights,
    chosen,
    model_source,
)

__all__ = ["explain"]


def explain(
    model: ModelFile,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Images, folders of images, quoted patterns such as 'photos/*.jpg', or - for an image on "
            "standard input.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE|FOLDER",
            help="The image to write (- is standard output), or the folder for one image each. By default "
            "NAME_gradcam.png in the current folder; with --json no image is written unless this is given.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="The class to explain: its number, its name, or top3 for the three with the highest scores. Give it "
            "several times for several classes. [default: the class with the highest score]",
        ),
    ] = None,
    labels: Labels = None,
    preprocess: Preprocess = None,
    layer: Layer = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="How the heatmap is made; `methods` lists them. Several, with commas between, are shown together. "
            "[default: gradcam]",
        ),
    ] = None,
    preset: Preset = None,
    modifier: Modifier = None,
    channels: Channels = None,
    combine: Combine = None,
    eigen_smooth: EigenSmooth = False,
    against: Against = None,
    weights: Weights = None,
    profile: Profile = None,
    grad_dtype: GradDtype = None,
    score: Score = None,
    output: Outputs = None,
    task: Task = None,
    mask: Mask = None,
    boxes: Boxes = None,
    box_rank: BoxRank = None,
    box: Box = None,
    reference: Reference = None,
    region: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a segmentation with --mask input: where to explain, an image that is not black there; it is "
            "stretched over what the model sees.",
        ),
    ] = None,
    image_input: Image = None,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda, tensorrt ...; `doctor` lists what is there.")
    ] = "cpu",
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many images to run at once; for methods that run the model many times, how many of its runs.",
        ),
    ] = 8,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the random numbers, for methods that use some.")
    ] = 0,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment",
            help="Explain each image six times, mirrored or not and in three strengths, and show the mean.",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processor threads. [default: all cores]")
    ] = None,
    style: Annotated[
        StyleKind,
        typer.Option(
            help="How the heatmap is shown: colours over the photo (`overlay`), the rest darkened (`mask`), a line "
            "around what is hot (`contour`), the `box` of the largest hot region, the colours alone that fade out "
            "(`alpha`, one transparent image), or the raw map with its negative values (`signed`)."
        ),
    ] = StyleKind.OVERLAY,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            help="For mask, contour and box: hot is what reaches this part of the heatmap's largest value. "
            "[default: 0.5]",
        ),
    ] = None,
    top_percent: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="For mask, contour and box: so much of the image is hot instead."),
    ] = None,
    colormap: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The heatmap's colours: jet, turbo, viridis, inferno, magma ... [default: jet; bwr for signed]",
        ),
    ] = None,
    opacity: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="0..1",
            help="How strongly the heatmap, or the darkness of a mask, covers the photo. [default: 0.5; with --preset "
            "as that library draws it, unless colours, opacity or style are given]",
        ),
    ] = None,
    npy: Annotated[
        bool,
        typer.Option(
            "--npy",
            help="Write each heatmap as an array too, NAME_CLASS.npy: float32 [height, width] of the model's input, "
            "values 0 to 1.",
        ),
    ] = False,
    npz: Annotated[
        bool,
        typer.Option(
            "--npz",
            help="Write one archive for each image too, NAME.npz, with `heatmap` [classes, height, width], the raw "
            "`cam` [classes, h, w], `classes` and `scores`.",
        ),
    ] = False,
    arrays: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where --npy and --npz write. [default: beside the image]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """See what a classifier looks at: the photo, and beside it one heatmap for each class.

    \b
    Examples:
      onnx-gradcam explain model.onnx photo.jpg -o out.png --preprocess torchvision --labels names.txt
      onnx-gradcam explain model.onnx photo.jpg --target "tabby" --target 243
      onnx-gradcam explain model.onnx photos/ -o heatmaps/ --target top3
      onnx-gradcam explain model.onnx photo.jpg --method gradcam,hirescam,layercam
      onnx-gradcam explain model.onnx photo.jpg --style box --top-percent 20
      onnx-gradcam explain explained.onnx 'photos/*.jpg' --json --npy

    MODEL may be any ONNX classifier, or one that `attach` has explained already. An image that cannot be read is
    reported, the others go on, and the exit code is 1.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if model == "-" and "-" in images:
        raise typer.BadParameter("standard input cannot be both the model and an image.", param_hint="IMAGES")
    if out == "-" and as_json:
        raise typer.BadParameter("standard output cannot be both the image and JSON.", param_hint="-o")
    if arrays is not None and not (npy or npz):
        raise typer.BadParameter("it says where arrays go; ask for them with --npy or --npz.", param_hint="--arrays")
    methods = method.split(",") if method else []
    if "" in methods or len(set(methods)) < len(methods):
        raise typer.BadParameter(f"{method!r} has an empty or a repeated name.", param_hint="--method")
    regions = {"--threshold": threshold, "--top-percent": top_percent}
    given = [name for name, value in regions.items() if value is not None]
    if given and style.value not in {"mask", "contour", "box"}:
        raise typer.BadParameter("it is for the styles mask, contour and box.", param_hint=given[0])
    if len(given) > 1:
        raise typer.BadParameter("it takes the place of --threshold; give one of the two.", param_hint=given[1])
    from .explaining import Request, run  # noqa: PLC0415 - --help must not wait for it

    run(
        Request(
            model=model_source(model),
            name=model,
            images=images,
            out=out,
            target=target,
            draw=out is not None or not as_json,
            npy=npy,
            npz=npz,
            arrays=arrays,
            as_json=as_json,
            batch_size=batch_size,
            methods=methods,
            look=chosen(style=style, colormap=colormap, opacity=opacity, threshold=threshold, top_percent=top_percent),
        ),
        provider=provider,
        seed=seed,
        augment=augment,
        **chosen(
            labels=labels,
            preprocess=preprocess,
            threads=threads,
            layer=layer,
            preset=preset,
            modifier=modifier,
            channels=channels,
            combine=combine,
            eigen_smooth=eigen_smooth or None,
            against=against,
            weights=weights,
            profile=profile,
            grad_dtype=grad_dtype,
            score=score,
            output=output,
            task=task,
            mask=mask,
            boxes=boxes,
            box_rank=box_rank,
            box=box,
            reference=reference,
            region=region,
            image=image_input,
        ),
    )
