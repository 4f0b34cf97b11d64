# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam[keras]"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""Keras models to ONNX, in an environment made for it.

`uv run tools/export_keras.py model.keras -o model.onnx`

The same as `onnx-gradcam export keras`, whose help this prints with `-h`.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "keras")
