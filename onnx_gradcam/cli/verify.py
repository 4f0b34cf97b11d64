"""`onnx-gradcam verify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onnx_gradcam.options import Options

from ._options import OPTIONS, FeedValues, Json, ModelFile, count, explains, model_source, read_feeds
from ._output import complain, finite, say, say_json

__all__ = ["verify"]

_FIELDS = {"modifier", "layer", "weights", "grad_dtype", "score", "output", "image", "preprocess", "profile"}


@explains(without=set(OPTIONS) - _FIELDS)
def verify(
    model: ModelFile,
    photo: Annotated[
        str | None,
        typer.Argument(metavar="IMAGE", help="Image to verify on; random numbers by default.", show_default=False),
    ] = None,
    *,
    choices: dict[str, Any],
    feed: FeedValues = None,
    seed: Annotated[int, count("Random seed of the direction.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Check gradients against finite differences.

    \b
    Examples:
      onnx-gradcam verify model.onnx
      onnx-gradcam verify model.onnx photo.jpg --preprocess torchvision
      onnx-gradcam verify model.onnx photo.jpg --modifier libra

    Prints the derivative of the score along one random direction of the activation maps twice: by the gradient that the
    explanation uses, and by finite differences in double precision. If they differ by more than a thousandth, the exit
    code is 1. Another --seed tells a kink in the model (a ReLU at zero) from an error.

    With --modifier libra, whose gradient is no derivative, prints the score and what adds up to it: the image times its
    gradient, plus what biases contribute.
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from onnx_gradcam.evaluation import verification  # noqa: PLC0415 - --help must not wait for it

    result = verification.verify(model_source(model), photo, Options(**choices), feeds=read_feeds(feed), seed=seed)
    if as_json:
        numbers = {name: finite(getattr(result, name)) for name in ("analytic", "numeric", "relative")}
        say_json({"target_tensor": result.target_tensor, **numbers, "grain": result.grain, "agrees": result.agrees})
    elif result.kind == "completeness":
        say(f"the score, of which {result.target_tensor!r} times its gradient is a part")
        say(f"  that and the biases:   {result.analytic:.9g}")
        say(f"  the score:             {result.numeric:.9g}")
        say(f"  relative difference:   {result.relative:.2g}")
    else:
        say(f"derivative by {result.target_tensor!r} along a random direction")
        say(f"  by the gradient:       {result.analytic:.9g}")
        say(f"  by finite differences: {result.numeric:.9g}")
        say(f"  relative difference:   {result.relative:.2g}")
        if result.grain:
            say("  noise was added to the image, where equal values may tie at a maximum")
    if not result.agrees:
        if not as_json:
            complain(
                f"the two differ by more than {result.limit:g}; try another --seed, and report the model if "
                "that differs too"
            )
        raise typer.Exit(1)
