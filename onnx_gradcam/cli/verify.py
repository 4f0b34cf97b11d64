"""`onnx-gradcam verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import (
    GradDtype,
    Image,
    Json,
    Layer,
    ModelFile,
    Output,
    Preprocess,
    Profile,
    Score,
    Weights,
    chosen,
    model_source,
)

__all__ = ["verify"]


def verify(
    model: ModelFile,
    image: Annotated[
        str | None, typer.Argument(metavar="IMAGE", help="An image; random numbers without one.", show_default=False)
    ] = None,
    *,
    layer: Layer = None,
    weights: Weights = None,
    grad_dtype: GradDtype = None,
    score: Score = None,
    output: Output = None,
    image_input: Image = None,
    preprocess: Preprocess = None,
    profile: Profile = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of the random direction.")] = 0,
    as_json: Json = False,
) -> None:
    """Check the gradient that an explanation uses against small changes of the activation maps.

    \b
    Examples:
      onnx-gradcam verify model.onnx
      onnx-gradcam verify model.onnx photo.jpg --preprocess torchvision

    Prints the derivative along one random direction twice: as the explanation has it, and by finite differences of the
    part of the model behind the layer, in double precision. Where they differ by more than a thousandth the exit code
    is 1. Another --seed tells a kink in the model (a ReLU at zero) from an error.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from .verifying import run  # noqa: PLC0415 - --help must not wait for it

    run(
        model_source(model),
        image,
        preprocess=preprocess,
        seed=seed,
        as_json=as_json,
        **chosen(
            layer=layer,
            weights=weights,
            grad_dtype=grad_dtype,
            score=score,
            output=output,
            image=image_input,
            profile=profile,
        ),
    )
