"""What is known of a tensor, and the shape inference that finds it out.

ONNX's own inference loses most dimensions behind a dynamic batch, because exporters compute with the output of
`Shape` nodes there. Here inference runs twice more, with two different numbers for every free input dimension. A
dimension that is equal in both runs is static; one that equals the pair of an input dimension *is* that dimension;
every other pair becomes a new symbol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ModelError

from .fold import complete_shapes

__all__ = ["Shape", "TensorInfo", "declare", "infer_shapes", "ranked_shape"]

Shape = tuple["int | str | None", ...]
"""One entry a dimension: a number, a symbol (equal symbols are equal numbers), or `None` for unknown."""

_BATCH_PROBES = ((3, 5), (7, 11), (13, 17), (19, 23))
_UNINFERABLE = {"GroupNormalization", "MeanVarianceNormalization"}
_SIZE_PROBES = ((224, 320), (256, 352), (288, 384), (192, 416))
_KEY = "onnx_gradcam.tensor_info"


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor, kept on its `ir.Value`: ONNX element type (0 for unknown) and shape.

    `ir.Value.shape` is what the file states and is written back unchanged; inference knows more, under symbols that no
    file should contain. `probe_shape` is the shape for one choice of the free input dimensions, where all are known.
    """

    elem_type: int = 0
    shape: Shape | None = None
    probe_shape: tuple[int, ...] | None = None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The NumPy type; `None` for unknown."""
        return ir.DataType(self.elem_type).numpy() if self.elem_type else None

    @classmethod
    def of(cls, value: ir.Value) -> TensorInfo:
        """What is known of `value`."""
        info = value.meta.get(_KEY, _UNKNOWN)
        assert isinstance(info, TensorInfo)  # noqa: S101 - nobody else writes this key
        return info

    def keep_on(self, value: ir.Value) -> bool:
        """Make this what is known of `value`, in place; whether that is news."""
        changed = self != TensorInfo.of(value)
        value.meta[_KEY] = self
        return changed


_UNKNOWN = TensorInfo()


def ranked_shape(value: ir.Value) -> Shape:
    """The shape of a tensor; a `ModelError` if its rank is unknown."""
    shape = TensorInfo.of(value).shape
    if shape is None:
        raise ModelError(f"the rank of tensor {value.name!r} is unknown; export the model with fixed sizes")
    return shape


def declare(value: ir.Value, elem_type: int, shape: Shape | None) -> None:
    """Set the type and shape of a tensor, in what is known and in the file; 0 and `None` leave each as it is."""
    info = TensorInfo.of(value)
    if elem_type:
        value.dtype = ir.DataType(elem_type)
        info = replace(info, elem_type=elem_type)
    if shape is not None:
        value.shape = ir.Shape(shape)
        info = replace(info, shape=shape)
    info.keep_on(value)


def infer_shapes(skeleton: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Infer types and shapes of the tensors of the main graph, by name; the model stays as it is."""
    plain = _run(skeleton)
    types = {i.name: i.type.tensor_type.elem_type for i in _infos(plain) if i.type.HasField("tensor_type")}
    types |= {t.name: t.data_type for t in skeleton.graph.initializer}
    shapes = dict(_shapes(plain))
    probes = _bindings(skeleton)
    if not probes:
        first = shapes = shapes | complete_shapes(plain)
    else:
        bound = [_run(_bound(skeleton, probes, i)) for i in (0, 1)]
        first, second = (dict(_shapes(model)) | complete_shapes(model) for model in bound)
        symbols = {pair: symbol for symbol, pair in probes.items()}
        for name in first.keys() & second.keys():
            # A rank that only the probes give is inference giving up half-way on sizes that do not fit.
            if len(first[name]) == len(second[name]) == len(shapes.get(name, first[name])):
                shapes[name] = _merge(first[name], second[name], shapes.get(name), symbols)
    return {
        name: TensorInfo(types.get(name, 0), shapes.get(name), _numbers(first.get(name)))
        for name in types.keys() | shapes.keys() | first.keys()
    }


def _numbers(shape: Shape | None) -> tuple[int, ...] | None:
    """The shape, if every dimension is a number."""
    sizes = tuple(d for d in shape or () if isinstance(d, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


def _merge(a: Shape, b: Shape, plain: Shape | None, symbols: Mapping[tuple[int, int], str]) -> Shape:
    fallback = plain if plain is not None and len(plain) == len(a) else (None,) * len(a)
    merged: list[int | str | None] = []
    for p, q, old in zip(a, b, fallback, strict=True):
        if not isinstance(p, int) or not isinstance(q, int):
            merged.append(old)
        elif p == q:
            merged.append(p)
        else:
            merged.append(symbols.get((p, q)) or f"dim_{p}_{q}")
    return tuple(merged)


def _run(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    model = _inferable(skeleton)
    return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)


def _inferable(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """The model with Identity for the operators that keep the shape but that ONNX does not infer."""
    if not any(node.op_type in _UNINFERABLE for node in skeleton.graph.node):
        return skeleton
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    for node in model.graph.node:
        if node.op_type in _UNINFERABLE:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return model


def _infos(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from model.graph.input
    yield from model.graph.value_info
    yield from model.graph.output


def _shapes(model: onnx.ModelProto) -> Iterator[tuple[str, Shape]]:
    for info in _infos(model):
        if info.type.tensor_type.HasField("shape"):
            yield info.name, tuple(_dim(d) for d in info.type.tensor_type.shape.dim)
    for tensor in model.graph.initializer:
        yield tensor.name, tuple(tensor.dims)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)


def _bindings(skeleton: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Two numbers for every free input dimension, by its symbol; one without a symbol gets one."""
    bindings: dict[str, tuple[int, int]] = {}
    batches, sizes = iter(_BATCH_PROBES), iter(_SIZE_PROBES)
    for info in skeleton.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            symbol = _symbol(info.name, axis, dim)
            if symbol is not None and symbol not in bindings:
                pair = next(batches if axis == 0 else sizes, None)
                if pair is None:
                    return {}
                bindings[symbol] = pair
    return bindings


def _symbol(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> str | None:
    """The symbol of a free dimension; `None` for a positive number. Some converters write 0 or -1 for "any"."""
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return None
    return dim.dim_param or f"{name}.{axis}"


def _bound(skeleton: onnx.ModelProto, probes: Mapping[str, tuple[int, int]], run: int) -> onnx.ModelProto:
    """A copy with numbers for the free input dimensions and without the shapes that the file states."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    del model.graph.value_info[:]
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            symbol = _symbol(info.name, axis, dim)
            if symbol is not None:
                dim.dim_value = probes[symbol][run]
    return model
