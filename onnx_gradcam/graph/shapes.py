"""What is known of a tensor, and the shape inference that finds it out.

ONNX's own inference loses most dimensions behind a dynamic batch, because exporters compute with the output of
`Shape` nodes there. Here inference runs three times more, with three different numbers for every free input dimension.
A dimension that is equal in all runs is static; one that equals the three numbers of an input dimension *is* that
dimension; every other three numbers become a new symbol, which is never written into a file.

Dimensions that differ must not be equal by accident. Sizes of images are therefore no multiples of powers of two, so
that rounding up and rounding down differ after every stride, and batches are primes. Only a model that does not fit
such sizes (one that adds upsampled maps to maps before a stride, for example) is inferred at multiples of 2, 4, 8 and
so on, the first that it fits.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_gradcam.errors import ModelError

from .fold import complete_shapes

__all__ = ["Shape", "TensorInfo", "Unnamed", "declare", "dimension", "infer_shapes", "named", "ranked_shape"]

Shape = tuple["int | str | None", ...]
"""One entry a dimension: a number, a symbol (equal symbols are equal numbers), or `None` for unknown.

A symbol is a name that the file gives, or an `Unnamed`.
"""

_BATCH_PROBES = (
    (20_123, 20_183, 20_327),
    (20_507, 20_543, 20_627),
    (20_663, 21_059, 21_179),
    (21_227, 21_383, 21_419),
)
"""Numbers for free batches: primes, which are no product of sizes, and one less is twice a prime, which is no grid
beside a class token. Not larger, as ONNX's inference writes out the entries of vectors where it follows their numbers.
"""

_SHORT_BATCH_PROBES = ((467, 479, 503), (563, 587, 719), (839, 863, 887), (983, 1019, 1187))
"""The same where a Range may count the rows, which other dimensions may multiply."""

_LONGEST_RANGE = 10_000_000

_SIZE_PROBES = ((193, 1087, 2006), (191, 1153, 854), (211, 1409, 1686), (223, 1471, 2710))
"""Numbers for free sizes: one more than a multiple of 64, one less, and 22 more. The first is below a usual crop.

Neither of two sides is the shorter one every time, since some models scale the shorter one to a fixed size.
"""

_STEPS = (2, 4, 8, 16, 32, 64)
_LARGEST_STEPS = (128, 224)
"""Divisors of the sizes for models that do not fit any size; 224 is the window of 7 positions at stride 32."""

_UNINFERABLE = {"GroupNormalization", "MeanVarianceNormalization"}
_KEY = "onnx_gradcam.tensor_info"
_UNNAMED = "onnx_gradcam/size/"


class Unnamed(str):
    """A symbol for a dimension that the file gives no name; shown as `?` and never written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "?"

    __str__ = __repr__


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


def named(shape: Shape) -> Shape:
    """The shape with `None` for every symbol that the file does not name."""
    return tuple(None if isinstance(d, Unnamed) else d for d in shape)


def dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A number, a symbol, or `None` for unknown."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    return Unnamed(dim.dim_param) if dim.dim_param.startswith(_UNNAMED) else dim.dim_param or None


def declare(value: ir.Value, elem_type: int, shape: Shape | None) -> None:
    """Set the type and shape of a tensor, in what is known and in the file; 0 and `None` leave each as it is."""
    info = TensorInfo.of(value)
    if elem_type:
        value.dtype = ir.DataType(elem_type)
        info = replace(info, elem_type=elem_type)
    if shape is not None:
        value.shape = ir.Shape(named(shape))
        info = replace(info, shape=shape)
    info.keep_on(value)


def infer_shapes(skeleton: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Infer types and shapes of the tensors of the main graph, by name; the model stays as it is."""
    _refuse_long_ranges(skeleton)
    plain = _run(skeleton)
    types = {i.name: i.type.tensor_type.elem_type for i in _infos(plain) if i.type.HasField("tensor_type")}
    types |= {t.name: t.data_type for t in skeleton.graph.initializer}
    shapes = dict(_shapes(plain, _symbols(skeleton)))
    free = _free(skeleton)
    first: Mapping[str, Shape] = {}
    if not free:
        first = shapes = {**shapes, **complete_shapes(plain).shapes}
    elif probes := _probes(skeleton, free):
        first = probes[0].shapes
        symbols = {tuple(probe.numbers[symbol] for probe in probes): symbol for symbol in free}
        for name in set.intersection(*({*probe.shapes} for probe in probes)):
            rows = [probe.shapes[name] for probe in probes]
            # A rank that only the probes give is inference giving up half-way on sizes that do not fit.
            if len({*map(len, rows), len(shapes.get(name, first[name]))}) == 1:
                shapes[name] = _merge(rows, shapes.get(name), symbols)
    return {
        name: TensorInfo(types.get(name, 0), shapes.get(name), _numbers(first.get(name)))
        for name in types.keys() | shapes.keys() | first.keys()
    }


def _refuse_long_ranges(skeleton: onnx.ModelProto) -> None:
    """Refuse constant ranges that would fill the memory, since inference writes out their numbers."""
    ranges = [node for node in skeleton.graph.node if node.op_type == "Range" and len(node.input) == 3]
    if not ranges:
        return
    scalars = {t.name: t for t in skeleton.graph.initializer if math.prod(t.dims) == 1}
    scalars |= {
        node.output[0]: node.attribute[0].t
        for node in skeleton.graph.node
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value"
    }
    for node in ranges:
        tensors = [scalars.get(name) for name in node.input]
        values = [np.asarray(onnx.numpy_helper.to_array(t)).reshape(-1) for t in tensors if t is not None]
        if len(values) < 3 or any(v.size != 1 for v in values):
            continue
        start, limit, step = (float(v[0]) for v in values)
        if step and abs((limit - start) / step) > _LONGEST_RANGE:
            raise ModelError(
                f"Range ({node.name or node.output[0]!r}) has more than {_LONGEST_RANGE:,} numbers; export the model "
                "again"
            )


def _numbers(shape: Shape | None) -> tuple[int, ...] | None:
    """The shape, if every dimension is a number."""
    sizes = tuple(d for d in shape or () if isinstance(d, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


def _merge(rows: Sequence[Shape], plain: Shape | None, symbols: Mapping[tuple[int, ...], str]) -> Shape:
    """One shape from those of all probes; a dimension that a probe leaves open is as `plain` says."""
    merged: list[int | str | None] = []
    for column, old in zip(zip(*rows, strict=True), plain or (None,) * len(rows[0]), strict=True):
        numbers = tuple(number for number in column if isinstance(number, int))
        if len(numbers) < len(rows):
            merged.append(old)
        elif len(set(numbers)) == 1:
            merged.append(numbers[0])
        else:
            merged.append(symbols.get(numbers) or Unnamed(_UNNAMED + "_".join(map(str, numbers))))
    return tuple(merged)


@dataclass(frozen=True)
class _Probe:
    """Shape inference with a number for every free dimension: what it found, and whether the model fits them."""

    numbers: Mapping[str, int]
    shapes: Mapping[str, Shape]
    fits: bool


def _probes(skeleton: onnx.ModelProto, free: Mapping[str, bool]) -> list[_Probe]:
    """Inference with several numbers for every free dimension: those that the model fits, else all."""
    plain = _probed(skeleton, free, 1)
    if _fitting(plain):
        return _fitting(plain)
    for largest in _LARGEST_STEPS if not all(free.values()) else ():
        # What fits multiples of a number fits multiples of its multiples.
        coarse = _fitting(_probed(skeleton, free, largest))
        if coarse:
            finer = (_fitting(_probed(skeleton, free, step)) for step in _STEPS if largest % step == 0)
            return next(filter(None, finer), coarse)
    return plain


def _fitting(probes: Sequence[_Probe]) -> list[_Probe]:
    """The probes that the model fits, which has to be more than one."""
    fitting = [probe for probe in probes if probe.fits]
    return fitting if len(fitting) > 1 else []


def _probed(skeleton: onnx.ModelProto, free: Mapping[str, bool], step: int) -> list[_Probe]:
    """Inference at sizes that are multiples of `step`; none if there are more dimensions than numbers."""
    counts = any(node.op_type == "Range" for node in skeleton.graph.node)
    batches, sizes = iter(_SHORT_BATCH_PROBES if counts else _BATCH_PROBES), iter(_SIZE_PROBES)
    columns = {symbol: next(batches if is_batch else sizes, ()) for symbol, is_batch in free.items()}
    if not all(columns.values()):
        return []
    probes = []
    for run in range(len(_BATCH_PROBES[0])):
        numbers = {s: column[run] if free[s] else _multiple(column[run], step) for s, column in columns.items()}
        bound = _bound(skeleton, numbers)
        inferred, fits = _strict_run(bound)
        completed = complete_shapes(inferred)
        shapes = dict(_shapes(inferred, set())) | completed.shapes
        probes.append(_Probe(numbers, shapes, fits and not completed.contradiction))
    return probes


def _multiple(number: int, step: int) -> int:
    """An odd multiple of `step` near a number; the number itself for a step of one."""
    return number if step == 1 else step * (number // step | 1)


def _run(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    model = _inferable(skeleton)
    return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)


def _strict_run(skeleton: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Inference, and whether no node contradicts the shapes of its inputs."""
    try:
        model = _inferable(skeleton)
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=True, data_prop=True), True
    except onnx.shape_inference.InferenceError:
        return _run(skeleton), False


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


def _symbols(skeleton: onnx.ModelProto) -> set[str]:
    """The names that the file gives to dimensions."""
    infos = [info for info in _infos(skeleton) if info.type.tensor_type.HasField("shape")]
    return {d.dim_param for info in infos for d in info.type.tensor_type.shape.dim if d.dim_param}


def _shapes(model: onnx.ModelProto, symbols: Container[str]) -> Iterator[tuple[str, Shape]]:
    """Every shape of a model, by name; names of dimensions that are not among `symbols` are ONNX's own."""
    for info in _infos(model):
        if info.type.tensor_type.HasField("shape"):
            dims = map(dimension, info.type.tensor_type.shape.dim)
            yield (
                info.name,
                tuple(Unnamed(_UNNAMED + d) if isinstance(d, str) and d not in symbols else d for d in dims),
            )
    for tensor in model.graph.initializer:
        yield tensor.name, tuple(tensor.dims)


def _free(skeleton: onnx.ModelProto) -> dict[str, bool]:
    """The free input dimensions by symbol, and whether each is a batch; one without a symbol gets one."""
    free: dict[str, bool] = {}
    for info in skeleton.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            symbol = _symbol(info.name, axis, dim)
            if symbol is not None:
                free.setdefault(symbol, axis == 0)
    return free


def _symbol(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> str | None:
    """The symbol of a free dimension; `None` for a positive number. Some converters write 0 or -1 for "any"."""
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return None
    return dim.dim_param or Unnamed(f"{_UNNAMED}{name}.{axis}")


def _bound(skeleton: onnx.ModelProto, numbers: Mapping[str, int]) -> onnx.ModelProto:
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
                dim.dim_value = numbers[symbol]
    return model
