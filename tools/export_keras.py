# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam[keras]"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""Export Keras models to ONNX in an environment that uv creates for this script.

`uv run tools/export_keras.py model.keras -o model.onnx`

The same as `onnx-gradcam export keras`; `-h` prints its options. Short, because it only declares its dependencies.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "keras")
