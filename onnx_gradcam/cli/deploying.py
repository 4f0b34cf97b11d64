"""What `triton` does: write the repository, and say what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_gradcam.serve.repository import write_repository

from .output import say

__all__ = ["write_triton"]


def write_triton(model: Path, out: Path, *, labels: Path | None, preprocess: str | None, **options: Any) -> None:
    """Write the repository.

    Raises:
        ExplainError: the model cannot be served by Triton; nothing is written.
    """
    if labels is not None:
        options["labels"] = labels
    if preprocess is not None:
        options["preprocess"] = preprocess
    for folder in write_repository(model, out, **options):
        say(f"wrote {folder}")
