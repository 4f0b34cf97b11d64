"""`onnx-gradcam attach`."""

from __future__ import annotations

from enum import Enum
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
    Labels,
    Layer,
    Mask,
    Method,
    ModelFile,
    Modifier,
    Outputs,
    Preprocess,
    Preset,
    Profile,
    Reference,
    Score,
    Task,
    Weights,
    chosen,
    model_source,
)

__all__ = ["attach"]


class ClassInput(str, Enum):
    """How the explained model is told the class."""

    OPTIONAL = "optional"
    REQUIRED = "required"
    NONE = "none"
    ALL = "all"


def attach(
    model: ModelFile,
    *,
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="The explained model to write; - is standard output.",
            show_default=False,
        ),
    ],
    layer: Layer = None,
    method: Method = None,
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
    image_input: Image = None,
    class_input: Annotated[
        ClassInput,
        typer.Option(
            help="How the class is chosen when the model runs: an `optional` input target_class (left out or -1: the "
            "class with the highest score), a `required` one (for servers that cannot feed an optional input), `none`: "
            "the class is fixed now, or `all`: the maps of all classes at once, where the head is linear."
        ),
    ] = ClassInput.OPTIONAL,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="With --class-input none: the class to explain, its number or its name. [default: the class with the "
            "highest score]",
        ),
    ] = None,
    expose_activation: Annotated[
        bool, typer.Option("--expose-activation", help="Give out the activation maps of the layer as well.")
    ] = False,
    labels: Labels = None,
    preprocess: Preprocess = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Run both models on a random input and refuse to write the explained one if an original output "
            "changed. [default: check, unless the weights are larger than 1 GB]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Build the heatmap into a model: its own inputs and outputs stay, heatmap, cam and heatmap_class are added.

    \b
    Examples:
      onnx-gradcam attach model.onnx -o explained.onnx
      onnx-gradcam attach model.onnx -o explained.onnx --labels names.txt --preprocess torchvision
      onnx-gradcam attach model.onnx -o tabby.onnx --class-input none --target 281

    The result is an ordinary ONNX file that runs wherever the original runs. It keeps class names and preprocessing,
    so that `explain` needs neither any more.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if target is not None and class_input is not ClassInput.NONE:
        raise typer.BadParameter(
            "it fixes the class for good, which takes --class-input none; without that, the class is chosen when the "
            "model runs.",
            param_hint="--target",
        )
    if model != "-" and out.resolve() == Path(model).resolve():
        raise typer.BadParameter("this is the model itself; choose another name.", param_hint="-o")
    from .attaching import run  # noqa: PLC0415 - --help must not wait for it

    run(
        model_source(model),
        out,
        target=target,
        check=check,
        labels=labels,
        preprocess=preprocess,
        class_input=class_input.value,
        expose_activation=expose_activation,
        **chosen(
            layer=layer,
            method=method,
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
            image=image_input,
        ),
    )
