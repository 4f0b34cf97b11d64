# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam", "onnxscript>=0.5", "safetensors>=0.4", "torch>=2.9"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""Export PyTorch models to ONNX in an environment that uv creates for this script.

`uv run tools/export_pytorch.py model.pt2 -o model.onnx`

The same as `onnx-gradcam export pytorch`; `-h` prints its options. Short, because it only declares its dependencies.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "pytorch")
