"""`onnx-gradcam web`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Image, Labels, Layer, Method, Output, Preprocess, Preset, Profile, Score, Weights, chosen

__all__ = ["web"]


class ProbabilityKind(str, Enum):
    """What plain scores become on the page."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


def web(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file, explained or not.")],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="The page and its files.", show_default=False)
    ],
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="onnxruntime-web, as `npm pack` or `npm install` fetch it. [default: downloaded once from npm's "
            "registry]",
        ),
    ] = None,
    probabilities: Annotated[
        ProbabilityKind | None,
        typer.Option(
            help="What a model's scores become on the page, where it does not end in softmax or sigmoid itself; "
            "sigmoid where several classes may be in one image. [default: softmax; sigmoid for a single logit]"
        ),
    ] = None,
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
    """Write a web page that explains images: the model runs in the visitor's browser, nothing is uploaded.

    \b
    Examples:
      onnx-gradcam web explained.onnx -o site
      onnx-gradcam web model.onnx -o site --preprocess torchvision --labels names.txt
      python -m http.server --directory site --bind 127.0.0.1

    The folder is all there is to it: any web server can give it out.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from .webbing import write_site  # noqa: PLC0415 - --help must not wait for it

    write_site(
        model,
        out,
        runtime=runtime,
        probabilities=None if probabilities is None else probabilities.value,
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
