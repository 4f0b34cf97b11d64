"""What every exporter hands to the common pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_gradcam.graph.model import Model
from onnx_gradcam.metadata import CarriedLayer

__all__ = ["Product"]


@dataclass(eq=False, kw_only=True)
class Product:
    """A model as an exporter made it, and what its framework knew of it.

    Attributes:
        model: the graph, its batch free, its outputs those of the framework's model alone.
        framework: `keras`, `mxnet`, `pytorch`, `tflite` or `onnx`.
        version: of the framework that wrote the file, where the file says it.
        layers: the framework's layers by name, in the order in which they run; the tensor may be a view that nothing
            reads of the one on the path to the score.
        labels: class names, where the framework knows them.
        preprocessing: how pictures become the model's input, where the framework knows it.
        parity: how the graph's values compare with the framework's; empty where that was not looked at.
        warnings: what the user should know.
    """

    model: Model
    framework: str
    version: str
    layers: Mapping[str, CarriedLayer]
    labels: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    parity: str = ""
    warnings: list[str] = field(default_factory=list)
