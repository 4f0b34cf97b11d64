"""What exporters share: `Product`, a model that was read, and `Writer`, which builds an ONNX graph node by node.

`finishing.finish_export` takes a product of any framework from there on.
"""

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
    """A model that an exporter read, and what its framework knows about it.

    Attributes:
        model: the graph, its batch free, its outputs those of the framework's model only.
        framework: `keras`, `mxnet`, `pytorch`, `tflite` or `onnx`.
        version: of the framework that wrote the file, if known.
        layers: the framework's layers by name, in execution order; a layer's tensor may be an unread copy of the
            tensor on the path to the score.
        image_layout: the framework's axes of the image, if they differ from the graph's; else empty.
        labels: class names, if the framework knows them.
        preprocessing: how images become the model's input, if the framework knows it.
        parity: how the graph's values compare with the framework's; empty if they were not compared.
        warnings: for the user.
    """

    model: Model
    framework: str
    version: str
    layers: Mapping[str, CarriedLayer]
    image_layout: str = ""
    labels: Sequence[str] | None = None
    preprocessing: Mapping[str, Any] | None = None
    parity: str = ""
    warnings: list[str] = field(default_factory=list)


BATCH = "batch"
"""The symbol of the first dimension of every exported image."""

_OPSET = 18
_IR_VERSION = 10


class Writer(Builder):
    """Write a new model; each node is typed when it is appended, so that a wrong one fails on its own line.

    Args:
        name: the model's name, in messages and in the graph.
    """

    def __init__(self, name: str) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET}, name=name)
        core = ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnx-gradcam")
        super().__init__(Model(core, None, name))

    def weight(self, name: str, content: npt.NDArray[Any] | ir.TensorProtocol) -> Value:
        """A named weight; a lazy tensor is not read before the model is saved.

        Raises:
            ExportError: the name is taken.
        """
        self._claim(name)
        tensor = ir.tensor(content, name=name)
        value = ir.Value(name=name, const_value=tensor)
        declare(value, int(tensor.dtype), tuple(tensor.shape.numpy()))
        self.graph.register_initializer(value)
        return self.wrap(value)

    def rename(self, value: Value, name: str) -> Value:
        """Give an appended tensor, and the node that computes it, the name of a layer.

        Raises:
            ExportError: the name is taken.
        """
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
