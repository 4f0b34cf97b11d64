# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""Export MXNet models to ONNX in an environment that uv creates for this script.

`uv run tools/export_mxnet.py net-symbol.json net-0000.params -o net.onnx`

The same as `onnx-gradcam export mxnet`; `-h` prints its options. Short, because it only declares its dependencies.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "mxnet")
