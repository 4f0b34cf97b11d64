"""A tensor of the graph as rules and methods see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ShapeError, UnsupportedError

from .shapes import Shape

if TYPE_CHECKING:
    from .builder import Builder

__all__ = ["Value"]


class Value:
    """A tensor of the graph: a name, a NumPy dtype, a shape, and arithmetic that appends nodes."""

    __slots__ = ("_builder", "core")

    def __init__(self, builder: Builder, value: ir.Value) -> None:
        self._builder = builder
        self.core = value

    @property
    def name(self) -> str:
        """The tensor's name in the graph."""
        return str(self.core.name)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The element type; `None` where inference could not find it."""
        kind = self._builder.model.types.get(self.name, 0)
        return ir.DataType(kind).numpy() if kind else None

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds floating-point numbers."""
        kind = self._builder.model.types.get(self.name, 0)
        return bool(kind) and ir.DataType(kind).is_floating_point()

    @property
    def is_real(self) -> bool:
        """Whether the tensor stands for real numbers: floating-point, or the small integers of quantised tensors.

        Indices, axes and shapes are wider integers, masks are Booleans.
        """
        return self.is_float or (self.dtype is not None and self.dtype.kind in "iuV" and self.dtype.itemsize <= 2)

    @property
    def known_shape(self) -> Shape | None:
        """The shape, or `None` where not even the rank is known."""
        return self._builder.model.shapes.get(self.name)

    @property
    def shape(self) -> Shape:
        """The shape: numbers, symbols, or `None` for unknown dimensions.

        Raises:
            ShapeError: not even the rank is known.
        """
        shape = self.known_shape
        if shape is None:
            raise ShapeError(
                f"the rank of tensor {self.name!r} is unknown; run ONNX shape inference on the model first"
            )
        return shape

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def dims(self, what: str = "this operator") -> tuple[int, ...]:
        """The shape where every dimension is a number.

        Raises:
            UnsupportedError: a dimension is dynamic; `what` says who needed it.
        """
        if not all(isinstance(d, int) for d in self.shape):
            raise UnsupportedError(
                f"{what} needs the static shape of tensor {self.name!r}, which is {list(self.shape)}; "
                "export the model with fixed sizes"
            )
        return tuple(d for d in self.shape if isinstance(d, int))

    def dims_behind_batch(self) -> tuple[int, ...]:
        """The shape without its first dimension, where all of that are numbers.

        Raises:
            UnsupportedError: a dimension is dynamic.
        """
        tail = tuple(d for d in self.shape[1:] if isinstance(d, int))
        if len(tail) != self.rank - 1:
            raise UnsupportedError(
                f"the sizes of tensor {self.name!r} behind the batch must be known: {list(self.shape)}"
            )
        return tail

    def array(self) -> npt.NDArray[Any] | None:
        """The tensor's content where it is a constant of the graph, or one in another type, else `None`."""
        tensor = ir.convenience.get_const_tensor(self.core)
        if tensor is not None:
            return tensor.numpy()
        node = self.core.producer()
        if node is None or node.op_type != "Cast" or node.domain or node.inputs[0] is None or self.dtype is None:
            return None
        narrow = self._builder.wrap(node.inputs[0]).array()
        return None if narrow is None else narrow.astype(self.dtype)

    def __repr__(self) -> str:
        return f"Value({self.name!r}, {self.dtype}, {self.known_shape})"

    def __add__(self, other: Value | float) -> Value:
        return self._builder.op("Add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self._builder.op("Sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self._builder.op("Mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._builder.op("Div", self, other)

    def __pow__(self, other: Value | float) -> Value:
        return self._builder.op("Pow", self, other)

    def __radd__(self, other: float) -> Value:
        return self._builder.op("Add", other, self)

    def __rsub__(self, other: float) -> Value:
        return self._builder.op("Sub", other, self)

    def __rmul__(self, other: float) -> Value:
        return self._builder.op("Mul", other, self)

    def __rtruediv__(self, other: float) -> Value:
        return self._builder.op("Div", other, self)

    def __neg__(self) -> Value:
        return self._builder.op("Neg", self)

    def __matmul__(self, other: Value) -> Value:
        return self._builder.op("MatMul", self, other)

    def __gt__(self, other: Value | float) -> Value:
        return self._builder.op("Greater", self, other)

    def __lt__(self, other: Value | float) -> Value:
        return self._builder.op("Less", self, other)

    def __ge__(self, other: Value | float) -> Value:
        return self._builder.op("GreaterOrEqual", self, other)

    def __le__(self, other: Value | float) -> Value:
        return self._builder.op("LessOrEqual", self, other)
