"""What a layer's function works with: `Tensor` and its axis order, `Layer` and its variables, `Call` to add nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.writer import Writer
from onnx_gradcam.graph.builder import Value
from onnx_gradcam.graph.shapes import Shape

from .archive import REMEDY
from .weights import Stored

__all__ = ["Call", "Layer", "Outputs", "Tensor"]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A Keras tensor."""

    value: Value  # the tensor of the ONNX graph
    moved: bool = False  # Keras's last axis is second: `[N, C, H, W]` for Keras's `[N, H, W, C]`

    @property
    def rank(self) -> int:
        """The number of axes, the batch included."""
        return self.value.rank

    @property
    def shape(self) -> Shape:
        """The shape in Keras's order."""
        shape = self.value.shape
        return (shape[0], *shape[2:], shape[1]) if self.moved else shape

    def axis(self, axis: int) -> int:
        """The ONNX tensor's axis for Keras's `axis`."""
        if not -self.rank <= axis < self.rank:
            raise ValueError(f"axis {axis} of a tensor of rank {self.rank}")
        axis %= self.rank
        if not self.moved or axis == 0:
            return axis
        return 1 if axis == self.rank - 1 else axis + 1


Outputs = Tensor | list[Tensor]
"""What a call of a layer or an operation outputs."""


@dataclass(eq=False, kw_only=True)
class Layer:
    """A layer of the model, called once or several times with the same variables."""

    path: str  # its name, after the names of the models that contain it
    kind: str
    variables: Mapping[str, Stored] = field(default_factory=dict)  # in the file, by name
    written: dict[tuple[Any, ...], Value] = field(default_factory=dict)  # variables already in the graph

    def __str__(self) -> str:
        return f"layer {self.path!r} of class {self.kind}"


@dataclass(eq=False, kw_only=True)
class Call:
    """One call of a layer, for the function that writes its nodes."""

    layer: Layer
    writer: Writer
    major: int  # first number of the version of Keras that wrote the file
    channels_last: bool  # whether the model's maps are `[N, H, W, C]` in Keras

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error that says what is not supported about this layer."""
        raise ExportError(f"{self.layer}: {problem}; {REMEDY}")

    def op(self, op_type: str, *inputs: Value | float | None, **attributes: Any) -> Value:
        """Append a node with one output."""
        return self.writer.op(op_type, *inputs, **attributes)

    def shape_of(self, slot: str) -> tuple[int, ...]:
        """The shape of a variable as Keras stores it."""
        return self.layer.variables[slot].shape

    def weight(
        self,
        slot: str,
        expected: Sequence[int | str | None],
        *,
        perm: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
    ) -> Value:
        """A variable as a tensor of the graph, its axes permuted by `perm`, then reshaped to `shape`.

        `expected` is its shape in the file; dimensions that are not numbers may be any.
        """
        stored = self.layer.variables[slot]
        if len(stored.shape) != len(expected) or any(
            isinstance(size, int) and size != own for size, own in zip(expected, stored.shape, strict=True)
        ):
            sizes = [size if isinstance(size, int) else "?" for size in expected]
            raise ExportError(
                f"{self.layer}: its variable {slot!r} has the shape {list(stored.shape)}, but its configuration "
                f"implies {sizes}; save the model again"
            )
        key = (slot, perm and tuple(perm), shape and tuple(shape))
        if key not in self.layer.written:
            name = f"{self.layer.path}/{slot}"
            while self.writer.taken(name):
                name += "_"
            tensor = stored.arranged(perm, shape)
            tensor.name = name
            self.layer.written[key] = self.writer.weight(name, tensor)
        return self.layer.written[key]

    def content(self, slot: str) -> npt.NDArray[np.float32]:
        """The content of a small variable, for computations during the export."""
        return self.layer.variables[slot].read()

    def move(self, x: Tensor) -> Tensor:
        """The tensor with Keras's last axis second."""
        if x.moved or x.rank < 3:
            return x
        perm = [0, x.rank - 1, *range(1, x.rank - 1)]
        return Tensor(self._transposed(x.value, perm), moved=True)

    def plain(self, x: Tensor) -> Tensor:
        """The tensor in Keras's own order."""
        if not x.moved:
            return x
        return Tensor(self._transposed(x.value, [0, *range(2, x.rank), 1]))

    def settle(self, x: Tensor) -> Tensor:
        """The form of a layer's output: maps channels first, whatever they are in Keras."""
        return self.move(x) if x.rank >= 4 and self.channels_last else x

    def _transposed(self, value: Value, perm: Sequence[int]) -> Value:
        dims = [value.shape[i] for i in perm]
        # With at most one axis above size 1, the order of the elements stays.
        if sum(d != 1 for d in dims[1:]) <= 1 and all(isinstance(d, int) for d in dims[1:]):
            sizes = [d for d in dims[1:] if isinstance(d, int)]
            return self.op("Reshape", value, self.writer.ints(0, *sizes))
        return self.op("Transpose", value, perm=list(perm))

    def maps(self, x: Tensor, data_format: str | None) -> Value:
        """The value of `x` with channels second, for a layer of this `data_format`; see `mapped`."""
        return (self.plain(x) if self._first(data_format) else self.move(x)).value

    def mapped(self, value: Value, data_format: str | None) -> Tensor:
        """A result with channels second as the Keras tensor of this `data_format`."""
        return Tensor(value, moved=not self._first(data_format) and value.rank > 2)

    def _first(self, data_format: str | None) -> bool:
        if data_format not in {None, "channels_last", "channels_first"}:
            self.refuse(f"its data_format is {data_format!r}")
        return data_format == "channels_first"

    def aligned(self, xs: Sequence[Tensor]) -> tuple[list[Value], bool]:
        """The values of tensors of one rank in one axis order, and whether they are moved."""
        moved = any(x.moved for x in xs)
        return [(self.move(x) if moved else x).value for x in xs], moved

    def constant(self, content: npt.ArrayLike, like: Tensor) -> Value:
        """A constant that broadcasts with `like` as in Keras."""
        array = np.asarray(content, np.float32)
        if array.ndim and like.moved:
            if array.ndim > like.rank:
                self.refuse(f"it combines a constant of shape {list(array.shape)} with a tensor of rank {like.rank}")
            array = array.reshape((1,) * (like.rank - array.ndim) + array.shape)
            array = array.transpose(0, like.rank - 1, *range(1, like.rank - 1))
        return self.writer.const(array)
