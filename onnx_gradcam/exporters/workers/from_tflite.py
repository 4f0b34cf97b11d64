"""Convert TFLite to ONNX with tf2onnx; run by `exporters.elsewhere`.

A file of its own because every worker is started by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def work(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Convert `request["path"]`."""
    from tf2onnx import __version__, convert  # noqa: PLC0415 - its absence is an answer

    convert.from_tflite(request["path"], opset=18, output_path=str(folder / "model.onnx"))
    return {"converter": f"tf2onnx {__version__}"}
