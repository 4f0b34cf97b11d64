"""TFLite models, quantised ones included, through tf2onnx."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from onnx_gradcam.errors import ExportError
from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import CarriedLayer

from .elsewhere import convert_elsewhere
from .product import Product

__all__ = ["read_tflite"]

_IDENTIFIER = b"TFL3"
_ENDINGS = re.compile(r"(_prequant|_dequant|_quantize|__\d+|:\d+)+$")
_BEHIND = {"Transpose", "DequantizeLinear"}


def read_tflite(path: str | Path, *, python: Path | None = None) -> Product:
    """Read a TFLite model; its layers are those of the Keras model it was made from, as far as its tensors tell.

    Args:
        path: the file.
        python: the interpreter that has TensorFlow and tf2onnx; by default the one that runs this.

    Raises:
        ExportError: no such file, no TFLite model, what converting it takes is missing, or tf2onnx cannot do it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as exc:
        raise ExportError(f"{path}: cannot be read ({exc.strerror}); give the path of a .tflite file") from exc
    if head[4:] != _IDENTIFIER:
        raise ExportError(
            f"{path}: not a TFLite model (it lacks the mark {_IDENTIFIER.decode()}); is it the right file?"
        )
    converted = convert_elsewhere(
        "from_tflite", {"path": str(path.resolve())}, packages="tensorflow tf2onnx", python=python
    )
    return Product(model=converted.model, framework="tflite", version="", layers=_layers(converted.model))


def _layers(model: Model) -> dict[str, CarriedLayer]:
    """The layers that tensors are called after.

    TFLite calls the result of fused operators by all of their names, the last one first:
    `net/relu_1/Relu;net/bn_1/FusedBatchNormV3;net/conv_1/Conv2D`.
    """
    layers = {}
    for node in model.core.graph:
        first, *_ = _ENDINGS.sub("", str(node.outputs[0].name)).split(";")
        parts = first.split("/")
        if len(parts) > 1 and node.op_type not in {"Transpose", "DequantizeLinear"}:
            layers[parts[-2]] = CarriedLayer(tensor=str(_unquantised(node).name), kind=parts[-1])
    return layers


def _unquantised(node: ir.Node) -> ir.Value:
    """What a node makes, as real numbers: dequantised where that happens once, else before the rounding."""
    made = node.outputs[0]
    if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
        return made
    value = made
    while len(readers := [use.node for use in value.uses()]) == 1 and readers[0].op_type in _BEHIND:
        value = readers[0].outputs[0]
        if readers[0].op_type == "DequantizeLinear":
            return value
    return node.inputs[0]
