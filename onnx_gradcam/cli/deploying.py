"""What `triton` does: write the repository, and say what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_gradcam.images.preprocessing import parse_preprocessing, read_labels
from onnx_gradcam.serve.repository import write_repository

from .output import say

__all__ = ["write_triton"]


def write_triton(model: Path, out: Path, *, labels: Path | None, preprocess: str | None, **options: Any) -> None:
    """Write the repository.

    Raises:
        ExplainError: the model cannot be served by Triton; nothing is written.
    """
    if labels is not None:
        options["labels"] = read_labels(labels)
    if preprocess is not None:
        options["preprocessing"] = parse_preprocessing(preprocess).to_dict()
    for folder in write_repository(model, out, **options):
        say(f"wrote {folder}")
