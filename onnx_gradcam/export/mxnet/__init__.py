"""MXNet's `-symbol.json` and `.params` to ONNX; MXNet itself is not needed."""

from .reader import read_mxnet

__all__ = ["read_mxnet"]
