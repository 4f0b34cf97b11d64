# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["onnx-gradcam"]
#
# [tool.uv.sources]
# onnx-gradcam = { path = "..", editable = true }
# ///
"""MXNet models to ONNX, in an environment made for it.

`uv run tools/export_mxnet.py net-symbol.json net-0000.params -o net.onnx`

The same as `onnx-gradcam export mxnet`, whose help this prints with `-h`.
"""

from __future__ import annotations

from onnx_gradcam.cli import main

if __name__ == "__main__":
    main("export", "mxnet")
