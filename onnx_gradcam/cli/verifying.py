"""What `verify` does: one directional derivative, had in two ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import typer

from onnx_gradcam.errors import ModelError
from onnx_gradcam.evaluation.verification import check_explanation
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.explainer import Explainer

from .output import complain, finite, say, say_json

__all__ = ["run"]

_TOLERANCE = 1e-3
"""The cotangent is computed in single precision, and of float16 models in half."""


def run(
    source: Path | bytes, image: str | None, *, preprocess: str | None, seed: int, as_json: bool, **choices: Any
) -> None:
    """Print both numbers.

    Raises:
        ExplainError: the model or the image cannot be used.
        typer.Exit: code 1 where the two disagree.
    """
    tensor = None
    if image is not None:
        explainer = Explainer(source, preprocess=preprocess, **choices)
        tensor = prepare(read_image(image), explainer.preprocessing)[0][None]
    check = check_explanation(source, tensor, Options(**choices), seed=seed)
    if not math.isfinite(check.numeric):
        raise ModelError(
            "the model gives NaN for this input, so there is nothing to compare; check --preprocess and its weights"
        )
    agrees = check.relative <= _TOLERANCE
    if as_json:
        numbers = {k: finite(getattr(check, k)) for k in ("analytic", "numeric", "relative")}
        say_json({"target_tensor": check.wrt, **numbers, "agrees": agrees})
    else:
        say(f"derivative by {check.wrt!r} along a random direction")
        say(f"  as explained:          {check.analytic:.9g}")
        say(f"  by finite differences: {check.numeric:.9g}")
        say(f"  relative difference:   {check.relative:.2g}")
    if not agrees:
        if not as_json:
            complain(
                f"the two differ by more than {_TOLERANCE:g}; try another --seed, and report it if that differs too"
            )
        raise typer.Exit(1)
