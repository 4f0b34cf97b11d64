"""MXNet's `-symbol.json` and `.params` to ONNX; MXNet itself is not needed."""

from .symbols import read_mxnet

__all__ = ["read_mxnet"]
