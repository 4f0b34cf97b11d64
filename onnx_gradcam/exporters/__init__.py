"""Export models of Keras, MXNet, PyTorch and TFLite to ONNX; every layer's tensor keeps the framework's layer name.

The words that a user can say are listed here, so that the command line knows them without loading an exporter.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["Framework", "TorchExporter", "Via"]

Framework = Literal["keras", "mxnet", "pytorch", "tflite", "onnx"]
Via = Literal["reader", "tf", "torch"]
TorchExporter = Literal["auto", "dynamo", "torchscript"]
