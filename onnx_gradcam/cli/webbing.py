"""What `web` does: find onnxruntime-web, write the page, say how to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_gradcam.web.building import build_page

from .output import say

__all__ = ["write_site"]


def write_site(
    model: Path, out: Path, *, runtime: Path | None, labels: Path | None, preprocess: str | None, **options: Any
) -> None:
    """Write the page.

    Raises:
        ExplainError: the model cannot be shown in a browser, or onnxruntime-web cannot be had; nothing is written.
    """
    if labels is not None:
        options["labels"] = labels
    if preprocess is not None:
        options["preprocess"] = preprocess
    files = build_page(model, out, runtime=runtime, notify=say, **options)
    say(f"wrote {len(files)} files into {out}")
    say(f"To see it: python -m http.server --directory {out} --bind 127.0.0.1, then http://127.0.0.1:8000")
