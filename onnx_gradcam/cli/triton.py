"""`onnx-gradcam triton`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Image, Labels, Layer, Method, Output, Preprocess, Preset, Profile, Score, Weights, chosen

__all__ = ["triton"]


def triton(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file, explained or not.")],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="The model repository.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the model in requests. [default: that of the file]")
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option(
            min=0, metavar="NUMBER", help="Rows that run together; 0 for a model of fixed batch, or one alone."
        ),
    ] = 32,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="Run on TensorRT, on a GPU.")] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Also write NAME_images, which takes JPEG, PNG and WebP files.")
    ] = False,
    labels: Labels = None,
    preprocess: Preprocess = None,
    layer: Layer = None,
    method: Method = None,
    preset: Preset = None,
    weights: Weights = None,
    profile: Profile = None,
    score: Score = None,
    output: Output = None,
    image_input: Image = None,
) -> None:
    """Write a model repository for NVIDIA Triton: the explained model, its configuration, labels and a README.

    \b
    Examples:
      onnx-gradcam triton explained.onnx -o repository
      onnx-gradcam triton model.onnx -o repository --preprocess torchvision --ensemble

    The class becomes an input that every request sends, -1 for the best one. The README says how to start Triton.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from .deploying import write_triton  # noqa: PLC0415 - --help must not wait for it

    write_triton(
        model,
        out,
        name=name,
        max_batch=max_batch,
        tensorrt=tensorrt,
        ensemble=ensemble,
        labels=labels,
        preprocess=preprocess,
        **chosen(
            layer=layer,
            method=method,
            preset=preset,
            weights=weights,
            profile=profile,
            score=score,
            output=output,
            image=image_input,
        ),
    )
