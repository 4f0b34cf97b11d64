# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam", "onnxscript>=0.5", "safetensors>=0.4", "torch>=2.9"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""PyTorch models to ONNX, in an environment made for it.

`uv run tools/export_pytorch.py model.pt2 -o model.onnx`

The same as `onnx-gradcam export pytorch`, whose help this prints with `-h`.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "pytorch")
