"""What exporters share: `Product`, a model that was read, and `Writer`, which builds an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ExportError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.shapes import declare
from onnx_gradcam.metadata import CarriedLayer

__all__ = ["BATCH", "Product", "Writer"]


@dataclass(eq=False, kw_only=True)
class Product:
    """A model that an exporter read, and what its framework knows about it."""

    model: Model  # its batch free, its outputs those of the framework's model only
    framework: str  # `keras`, `mxnet`, `pytorch`, `tflite` or `onnx`
    version: str  # of the framework that wrote the file
    # In execution order; a tensor may be an unread copy of the one on the path to the score.
    layers: Mapping[str, CarriedLayer]
    image_layout: str = ""  # the framework's axes of the image, if they differ from the graph's
    labels: Sequence[str] | None = None  # class names
    preprocessing: Mapping[str, Any] | None = None  # how images become the model's input
    parity: str = ""  # how the graph's values compare with the framework's, if they were compared
    biases: str = ""  # as in `Carried`
    warnings: list[str] = field(default_factory=list)  # for the user


BATCH = "batch"
"""The symbol of the first dimension of every exported image."""

_OPSET = 18
_IR_VERSION = 10


class Writer(Builder):
    """Write a model named `name`; each node is typed when it is appended, so that a wrong one fails on its own line."""

    def __init__(self, name: str) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET}, name=name)
        core = ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnx-gradcam")
        super().__init__(Model(core, None, name))

    def weight(self, name: str, content: npt.NDArray[Any] | ir.TensorProtocol) -> Value:
        """A named weight; a lazy tensor is not read before the model is saved."""
        self._claim(name)
        tensor = ir.tensor(content, name=name)
        value = ir.Value(name=name, const_value=tensor)
        declare(value, int(tensor.dtype), tuple(tensor.shape.numpy()))
        self.graph.register_initializer(value)
        return self.wrap(value)

    def rename(self, value: Value, name: str) -> Value:
        """Give an appended tensor, and the node that computes it, the name of a layer."""
        self._claim(name)
        super().rename(value, name)
        node = value.core.producer()
        if node is not None and value.core is node.outputs[0]:
            node.name = name
        return value

    def _claim(self, name: str) -> None:
        if self.taken(name):
            raise ExportError(f"two tensors of {self.model.name} would be named {name!r}; rename one of the layers")
        self._names.add(name)

    def finished(self) -> Model:
        """The model without unused nodes, its shapes inferred."""
        self.finish()
        self.model.infer()
        return self.model
