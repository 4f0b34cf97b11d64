"""Convert TFLite to ONNX with tf2onnx; run by `exporters.elsewhere`.

Short because every worker is a file of its own, started by name, and tf2onnx does all the work here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def work(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Convert `request["path"]`."""
    from tf2onnx import __version__, convert  # noqa: PLC0415 - its absence is an answer

    convert.from_tflite(request["path"], opset=18, output_path=str(folder / "model.onnx"))
    return {"converter": f"tf2onnx {__version__}"}
