"""An ONNX file of any origin as a product: its own layer table, class names and preprocessing are kept."""

from __future__ import annotations

from pathlib import Path

from onnx_gradcam.errors import TargetError
from onnx_gradcam.graph.load import load
from onnx_gradcam.metadata import Carried, Metadata

from .product import Product

__all__ = ["read_onnx"]


def read_onnx(path: str | Path) -> Product:
    """Read an ONNX model, raised to opset 18 where it is lower.

    Raises:
        ModelError: the file is missing, damaged or unsafe.
        TargetError: the model holds an explanation already.
    """
    model = load(Path(path))
    said = Metadata.from_props(model.metadata)
    if said is not None:
        raise TargetError(
            f"{path}: the model is explained already (layer {said.target_tensor!r}); export the original model instead"
        )
    carried = Carried.from_props(model.metadata)
    core = model.core
    producer = " ".join(filter(None, (core.producer_name, core.producer_version)))
    return Product(
        model=model,
        framework=carried.framework or "onnx",
        version=carried.framework_version or producer,
        layers=carried.layers,
        labels=carried.labels,
        preprocessing=carried.preprocessing,
        parity=carried.parity,
    )
