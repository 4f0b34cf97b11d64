"""Shapes of every tensor, sharper than one pass of shape inference gives them.

Exporters write dynamic batches as arithmetic over `Shape` nodes, and ONNX's own inference loses most dimensions
behind it. Here inference runs twice more with every free input dimension bound to two different numbers: what comes
out equal both times does not depend on the inputs, what comes out as an input's own pair *is* that input's
dimension, and any other pair gets a symbol of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from .fold import complete_shapes

__all__ = ["Inferred", "Shape", "infer_shapes"]

Shape = tuple["int | str | None", ...]
"""One entry a dimension: a number, a symbol (equal symbols are equal numbers), or `None` for unknown."""

_BATCH_PROBES = ((3, 5), (7, 11), (13, 17), (19, 23))
_UNINFERABLE = {"GroupNormalization", "MeanVarianceNormalization"}
_SIZE_PROBES = ((224, 320), (256, 352), (288, 384), (192, 416))


@dataclass(frozen=True)
class Inferred:
    """What inference found, by tensor name.

    Attributes:
        types: ONNX element types.
        shapes: shapes; tensors of unknown rank are left out.
        example: shapes for one choice of the free input dimensions, as far as they are numbers.
    """

    types: dict[str, int]
    shapes: dict[str, Shape]
    example: dict[str, tuple[int, ...]]


def infer_shapes(skeleton: onnx.ModelProto) -> Inferred:
    """Element types and shapes of all tensors of the main graph of a weightless model."""
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
    example = {n: tuple(d for d in dims if isinstance(d, int)) for n, dims in first.items()}
    return Inferred(types, shapes, {n: dims for n, dims in example.items() if len(dims) == len(first[n])})


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
    """The model, with Identity in place of the operators that keep the shape and that ONNX infers nothing for."""
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
    """Two numbers for every free dimension of the inputs, keyed by its symbol (made up where it has none)."""
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
    """The symbol of a free dimension; `None` when the dimension is a positive number.

    Zero and negative numbers are what some converters write for "any".
    """
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return None
    return dim.dim_param or f"{name}.{axis}"


def _bound(skeleton: onnx.ModelProto, probes: Mapping[str, tuple[int, int]], which: int) -> onnx.ModelProto:
    """The model with the free input dimensions bound, and every shape it states of itself forgotten."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    del model.graph.value_info[:]
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            symbol = _symbol(info.name, axis, dim)
            if symbol is not None:
                dim.dim_value = probes[symbol][which]
    return model
