"""Append typed nodes to a model.

A gradient rule or a CAM method works with two classes alone. A `Value` is a tensor: it has a dtype and a shape, and
arithmetic on it appends nodes. A `Builder` appends all other operators and shares equal constants. ONNX's own inference
types each node at once, so that a wrong node fails on the line that appends it. Code that builds may append too much:
`Builder.finish` removes what no output of the graph needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ModelError, UnsupportedError

from .model import Model, own_errors
from .shapes import Shape, TensorInfo, declare, dimension, ranked_shape

__all__ = ["PREFIX", "Attribute", "Builder", "Value"]

Attribute = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.Graph | ir.TensorProtocol | None
"""An attribute of a node; `None` omits it."""


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
        """The element type; `None` for unknown."""
        return TensorInfo.of(self.core).dtype

    @property
    def elem_type(self) -> int:
        """The ONNX element type; 0 for unknown."""
        return TensorInfo.of(self.core).elem_type

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds floating-point numbers."""
        return bool(self.elem_type) and ir.DataType(self.elem_type).is_floating_point()

    @property
    def is_real(self) -> bool:
        """Whether the tensor holds real numbers: floating-point ones, or the small integers of quantised tensors.

        Wider integers are indices, axes and shapes.
        """
        return self.is_float or (self.dtype is not None and self.dtype.kind in "iuV" and self.dtype.itemsize <= 2)

    @property
    def known_shape(self) -> Shape | None:
        """The shape, or `None` if the rank is unknown."""
        return TensorInfo.of(self.core).shape

    @property
    def probe_shape(self) -> tuple[int, ...] | None:
        """The shape for one choice of the free input dimensions; `None` if a dimension is unknown even then."""
        return TensorInfo.of(self.core).probe_shape

    @property
    def free_batch(self) -> int | None:
        """The size that stands for a free first dimension in `probe_shape`; `None` if it is fixed or unknown."""
        probe = self.probe_shape
        return probe[0] if probe and not isinstance(self.shape[0], int) else None

    @property
    def shape(self) -> Shape:
        """The shape: numbers, symbols, or `None` for unknown dimensions; an error if the rank is unknown."""
        return ranked_shape(self.core)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def dims(self, reader: str = "this operator") -> tuple[int, ...]:
        """The shape, all of it numbers; an error that names `reader` if a dimension is dynamic."""
        if not all(isinstance(d, int) for d in self.shape):
            raise UnsupportedError(
                f"{reader} needs the static shape of tensor {self.name!r}, which is {list(self.shape)}; "
                "export the model with fixed sizes"
            )
        return tuple(d for d in self.shape if isinstance(d, int))

    def dims_behind_batch(self) -> tuple[int, ...]:
        """The shape without its first dimension, all of it numbers; an error if one of these is dynamic."""
        tail = tuple(d for d in self.shape[1:] if isinstance(d, int))
        if len(tail) != self.rank - 1:
            raise UnsupportedError(
                f"the dimensions of tensor {self.name!r} after the batch must be static, but it is {list(self.shape)}; "
                "export the model with fixed sizes"
            )
        return tail

    def array(self) -> npt.NDArray[Any] | None:
        """The content of a constant, perhaps behind a Cast or an Identity; `None` for any other tensor."""
        tensor = ir.convenience.get_const_tensor(self.core)
        if tensor is not None:
            return tensor.numpy()
        node = self.core.producer()
        if node is None or node.op_type not in {"Cast", "Identity"} or node.domain or node.inputs[0] is None:
            return None
        if self.dtype is None:
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


PREFIX = "onnx_gradcam"
"""What the names of new tensors start with."""


class Builder:
    """Appends nodes to the main graph of `model`, in place.

    Example::

        t = Builder(load("classifier.onnx"))
        x = t.find("image")
        t.output(t.mean(x * x, [1]), "power")
        t.finish()
        t.model.save("classifier_with_power.onnx")
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.core.graph
        self.opset = model.opset
        self.nodes: tuple[ir.Node, ...] = tuple(self.graph)
        self._values: dict[ir.Value, Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._casts: dict[tuple[ir.Value, np.dtype[Any]], Value] = {}
        self._appended: list[ir.Node] = []
        self._names = {v.name for v in (*self.graph.inputs, *self.graph.initializers.values())}
        self._names |= {o.name for n in self.nodes for o in n.outputs} | {n.name for n in self.nodes}
        self._counter = 0

    # ----- values ------------------------------------------------------------

    def wrap(self, value: ir.Value) -> Value:
        """The `Value` of a tensor of the graph; always the same object for the same tensor."""
        if value not in self._values:
            self._values[value] = Value(self, value)
        return self._values[value]

    def find(self, name: str) -> Value | None:
        """The tensor called `name`, or `None`."""
        value = self.model.find(name)
        return None if value is None else self.wrap(value)

    def unique(self, stem: str) -> str:
        """A new name."""
        while True:
            self._counter += 1
            name = f"{PREFIX}/{stem}_{self._counter}"
            if name not in self._names:
                self._names.add(name)
                return name

    def taken(self, name: str) -> bool:
        """Whether a tensor or node of the graph is called `name`."""
        return name in self._names

    def const(self, content: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Value:
        """A constant; equal constants are one initializer."""
        array = np.ascontiguousarray(content, dtype)
        array = array.reshape(np.shape(content))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            value = ir.Value(name=self.unique("const"))
            value.const_value = ir.tensor(array, name=value.name)
            declare(value, int(value.const_value.dtype), array.shape)
            self.graph.register_initializer(value)
            self._constants[key] = self.wrap(value)
        return self._constants[key]

    def ints(self, *numbers: int) -> Value:
        """A constant `int64` vector."""
        return self.const(np.array(numbers, np.int64))

    def refine(self, value: Value, shape: Shape) -> Value:
        """Add `shape` to what inference found out about an appended value; an error if it contradicts that."""
        inferred = value.known_shape
        if inferred is not None:
            if len(inferred) != len(shape) or any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(inferred, shape, strict=True)
            ):
                raise ModelError(f"tensor {value.name!r} has shape {list(inferred)}, not {list(shape)}")
            shape = tuple(
                a if isinstance(a, int) else b if b is not None else a for a, b in zip(inferred, shape, strict=True)
            )
        declare(value.core, 0, shape)
        return value

    # ----- nodes -------------------------------------------------------------

    def op(
        self, op_type: str, *inputs: Value | float | None, shape: Shape | None = None, **attributes: Attribute
    ) -> Value:
        """Append a node with one output.

        Args:
            op_type: an operator of the default domain, at the model's own opset.
            inputs: values; a number becomes a scalar of the first non-boolean value's type; `None` omits an input.
            shape: the output's shape, if the caller knows more than inference finds out.
            attributes: the node's attributes; `None` omits one.

        Raises:
            ModelError: the operator does not take inputs of these types and shapes.
        """
        (value,) = self._append(op_type, inputs, attributes, 1, "", op_type)
        if shape is not None:
            self.refine(value, shape)
        if op_type == "Reshape":
            self._name_inferred_size(value)
        return value

    def _name_inferred_size(self, value: Value) -> None:
        """Write the number for the -1 of an appended Reshape where it is known.

        A runtime cannot divide the elements of an empty batch to find it.
        """
        node, shape = value.core.producer(), value.known_shape
        target = None if node is None or node.inputs[1] is None else self.wrap(node.inputs[1]).array()
        if node is None or target is None or shape is None or -1 not in target:
            return
        size = shape[int(np.argmin(target))]
        if isinstance(size, int) and not all(isinstance(d, int) for d in shape):
            node.replace_input_with(1, self.const(np.where(target == -1, size, target)).core)

    def ops(
        self,
        op_type: str,
        *inputs: Value | float | None,
        outputs: int,
        domain: str = "",
        stem: str | None = None,
        **attributes: Attribute,
    ) -> tuple[Value, ...]:
        """Append a node with several outputs, named after its operator or after `stem`; otherwise as `op`."""
        return self._append(op_type, inputs, attributes, outputs, domain, stem or op_type)

    def _append(
        self,
        op_type: str,
        inputs: Sequence[Value | float | None],
        attributes: Mapping[str, Attribute],
        outputs: int,
        domain: str,
        stem: str,
    ) -> tuple[Value, ...]:
        args = self._lift(inputs)
        node = ir.node(
            op_type,
            [None if a is None else a.core for a in args],
            {k: v for k, v in attributes.items() if v is not None},
            domain=domain,
            num_outputs=outputs,
            name=self.unique(stem),
        )
        for i, output in enumerate(node.outputs):
            output.name = str(node.name) if i == 0 else self.unique(op_type)
        self.infer(node)
        self.graph.append(node)
        self._appended.append(node)
        return tuple(self.wrap(o) for o in node.outputs)

    def _lift(self, inputs: Sequence[Value | float | None]) -> list[Value | None]:
        like = next((i for i in inputs if isinstance(i, Value) and i.dtype != np.bool_), None)
        dtype = None if like is None else like.dtype
        return [i if i is None or isinstance(i, Value) else self.const(i, dtype) for i in inputs]

    def infer(self, node: ir.Node) -> None:
        """Infer types and shapes of the outputs of a single node, in place; an error if its inputs do not fit.

        Those of an operator that ONNX does not define, such as ONNX Runtime's own, stay unknown.
        """
        proto = ir.to_proto(node)
        version = self.model.core.opset_imports.get(node.domain, self.opset)
        if not onnx.defs.has(node.op_type, version, node.domain):
            return
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        args = [None if i is None else self.wrap(i) for i in node.inputs]
        types = {a.name: _type_proto(a) for a in args if a is not None}
        with own_errors():
            data = {a.name: ir.to_proto(c) for a in args if a is not None and (c := _small_constant(a)) is not None}
        imports = [onnx.helper.make_opsetid(d, v) for d, v in self.model.core.opset_imports.items()]
        try:
            inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as exc:
            shapes = [None if a is None else a.known_shape for a in args]
            raise ModelError(f"cannot append {node.op_type} to inputs of shapes {shapes}: {exc}") from exc
        for output in node.outputs:
            tensor = inferred[output.name].tensor_type if output.name in inferred else onnx.TypeProto.Tensor()
            shape = None
            if tensor.HasField("shape"):
                shape = tuple(map(dimension, tensor.shape.dim))
            declare(output, tensor.elem_type, shape)

    def input(self, name: str, dtype: npt.DTypeLike, shape: Shape) -> Value:
        """Add a graph input."""
        value = ir.Value(name=name)
        self._names.add(name)
        declare(value, int(ir.DataType.from_numpy(np.dtype(dtype))), shape)
        self.graph.inputs.append(value)
        return self.wrap(value)

    def default_input(self, name: str, content: npt.NDArray[Any]) -> Value:
        """Add an optional graph input: an initializer whose value a caller can override."""
        value = self.input(name, content.dtype, (None,) * content.ndim).core
        value.const_value = ir.tensor(content, name=name)
        self.graph.register_initializer(value)
        return self.wrap(value)

    def output(self, value: Value, name: str) -> Value:
        """Make an appended value a graph output called `name`."""
        appended = value.core.producer() in self._appended and not value.core.is_graph_output()
        result = value if appended else self.op("Identity", value, shape=value.known_shape)
        self.rename(result, name)
        self.graph.outputs.append(result.core)
        return result

    def rename(self, value: Value, name: str) -> Value:
        """Give a tensor a new name that is not taken, in the nodes that read it too."""
        value.core.name = name
        self._names.add(name)
        return value

    def expose(self, value: Value) -> None:
        """Make a tensor of the graph an output under its own name."""
        if not value.core.is_graph_output():
            declare(value.core, value.elem_type, value.known_shape)
            self.graph.outputs.append(value.core)

    def indices(self, value: Value, axis: int) -> Value:
        """The indices along an axis of a tensor, `int64 [size]`: a constant if the size is known."""
        size = value.shape[axis]
        if isinstance(size, int):
            return self.const(np.arange(size, dtype=np.int64))
        count = self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))
        return self.op("Range", self.const(0, np.int64), count, self.const(1, np.int64))

    def chosen(self, index: Value, best: Value, every: Value) -> Value:
        """`index`, one for all rows or one each, and where it is negative `best`, in the shape of `best`.

        When the model runs, more indices than rows are refused, and an index that is none of `every`, `int64 [size]`.
        """
        index = self.op("Where", index < self.const(0, np.int64), best, index)
        # Broadcasting would accept several indices for one row; the Reshape refuses them.
        index = self.op("Reshape", index, self.shape_of(best), shape=best.shape)
        # Gather turns an index out of range into an error instead of a blank map.
        return self.op("Gather", every, index, shape=best.shape)

    def sized_as(self, old: ir.Value, new: Value) -> Value:
        """Say that an appended value has the shape of a tensor of the graph."""
        shape = TensorInfo.of(old).shape
        new = new if shape is None else self.refine(new, shape)
        replace(TensorInfo.of(new.core), probe_shape=TensorInfo.of(old).probe_shape).keep_on(new.core)
        return new

    def take_over(self, old: ir.Value, new: Value) -> None:
        """Put an appended value in the place of a tensor of the graph, under its name."""
        name, dead = str(old.name), self.unique("replaced")
        ir.convenience.replace_all_uses_with(old, new.core, replace_graph_outputs=True)
        old.name, new.core.name = dead, name
        declare(new.core, new.elem_type, new.known_shape)
        replace(TensorInfo.of(new.core), probe_shape=TensorInfo.of(old).probe_shape).keep_on(new.core)

    def adopt(self) -> None:
        """Let a backward pass cross the nodes appended so far."""
        self.nodes = tuple(self.graph)

    @property
    def appended(self) -> tuple[ir.Node, ...]:
        """The nodes appended so far, in this order."""
        return tuple(self._appended)

    def substitute(self, old: ir.Value, new: Value) -> None:
        """Let the readers of an appended value read another one, and sort the graph afterwards.

        An output of the graph keeps its name.
        """
        if old.is_graph_output():
            self.take_over(old, self.op("Identity", new, shape=new.known_shape))
        else:
            ir.convenience.replace_all_uses_with(old, new.core)

    def finish(self) -> bool:
        """Remove, in place, appended nodes and constants that no output needs; whether there were any."""
        return self.model.remove_unread(self._appended, [c.core for c in self._constants.values()])

    # ----- shapes and the few operators everyone needs -----------------------

    def shape_of(self, x: Value) -> Value:
        """The shape of `x` as an `int64` vector: a constant if it is static, the output of a Shape node otherwise."""
        shape = x.known_shape
        if shape is not None and all(isinstance(d, int) for d in shape):
            return self.ints(*(d for d in shape if isinstance(d, int)))
        return self.op("Shape", x)

    def reshape_like(self, g: Value, x: Value) -> Value:
        """`g` reshaped to the shape of `x`, which has as many elements."""
        shape = x.known_shape
        free = [i for i, d in enumerate(shape or ()) if not isinstance(d, int)]
        if shape is not None and len(free) == 1 and 0 not in shape:
            target = self.ints(*(d if isinstance(d, int) else -1 for d in shape))
            return self.op("Reshape", g, target, shape=shape)
        return self.op("Reshape", g, self.shape_of(x), allowzero=1, shape=shape)

    def merged(self, x: Value, start: int, end: int | None = None, *, parts: Sequence[int] = ()) -> Value:
        """`x` with its dimensions from `start` to `end` as `parts` and one of the rest; those behind `end` are known.

        An empty batch stays one: where it is free, no size is inferred from the number of elements.
        """
        end = x.rank if end is None else end
        behind = [d for d in x.shape[end:] if isinstance(d, int)]
        if isinstance(x.shape[0], int) or all(isinstance(d, int) for d in x.shape[start:end]):
            return self.op("Reshape", x, self.ints(*[0] * start, *parts, -1, *behind))
        rest = self.op("ReduceProd", self.op("Shape", x, start=start, end=end))
        rest = self.op("Div", rest, self.ints(math.prod(parts))) if parts else rest
        known = [self.ints(*dims) if dims else None for dims in (parts, behind)]
        # ONNX Runtime writes -1 for the rest where the other sizes are constants, so those in front are not.
        sizes = [self.op("Shape", x, end=start), known[0], rest, known[1]]
        return self.op("Reshape", x, self.op("Concat", *(s for s in sizes if s is not None), axis=0))

    def expand_like(self, g: Value, x: Value) -> Value:
        """`g` broadcast to the shape of `x`."""
        source, target = g.known_shape, x.known_shape
        if source is not None and target is not None and len(source) == len(target):
            if source == target and None not in target:
                return g
            # Expand leaves a dimension as it is for a one, so only the dimensions that differ have to be numbers.
            factors = [1 if a == b and a is not None else b for a, b in zip(source, target, strict=True)]
            if all(isinstance(d, int) for d in factors):
                return self.op("Expand", g, self.ints(*(d for d in factors if isinstance(d, int))), shape=target)
        return self.op("Expand", g, self.shape_of(x), shape=target)

    def full_like(self, x: Value, fill: float, dtype: npt.DTypeLike | None = None) -> Value:
        """A tensor of the shape of `x` filled with `fill`, of the type of `x` by default."""
        return self.op("Expand", self.const(fill, dtype or x.dtype), self.shape_of(x), shape=x.known_shape)

    def reduce(self, kind: str, x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> Value:
        """`ReduceSum`, `ReduceMean`, `ReduceMax` ... of `x` over `axes` (all of them by default)."""
        axes = range(x.rank) if axes is None else axes
        if not axes:
            return x
        return self.op(kind, x, self.ints(*axes), keepdims=int(keepdims))

    def sum(self, x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> Value:
        """The sum of `x` over `axes`."""
        return self.reduce("ReduceSum", x, axes, keepdims=keepdims)

    def mean(self, x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> Value:
        """The mean of `x` over `axes`."""
        return self.reduce("ReduceMean", x, axes, keepdims=keepdims)

    def cast(self, x: Value, dtype: npt.DTypeLike | None) -> Value:
        """`x` in another element type, or `x` itself if it has this type. Equal casts are one node."""
        if x.dtype == dtype:
            return x
        key = x.core, np.dtype(dtype)
        if key not in self._casts:
            # An error that names the result shows which tensor of the model it is.
            stem = None if x.name.startswith(PREFIX) else f"Cast/{x.name}"
            (self._casts[key],) = self.ops("Cast", x, outputs=1, stem=stem, to=int(ir.DataType.from_numpy(key[1])))
        return self._casts[key]

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """`x` with its dimensions permuted."""
        return x if list(perm) == list(range(len(perm))) else self.op("Transpose", x, perm=list(perm))


def _type_proto(value: Value) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(value.elem_type, value.known_shape)


def _small_constant(value: Value) -> ir.TensorProtocol | None:
    tensor = ir.convenience.get_const_tensor(value.core)
    return tensor if tensor is not None and tensor.nbytes <= 1000 else None
