"""A request of the Open Inference Protocol, of whatever transport, and its tensors as arrays.

Everything here is somebody else's bytes: each is checked before anything of its size is allocated.
https://github.com/kserve/open-inference-protocol, "Tensor data".
"""

from __future__ import annotations

import base64
import binascii
import itertools
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ServerError

__all__ = ["DATATYPES", "Query", "Result", "Tensor", "datatype_of", "files", "numbers"]

Array = npt.NDArray[Any]

DATATYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""The protocol's numeric types, and NumPy's names of them."""

_LONGEST_NAME: Final = 256


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as it came: a list of values, nested or flat, or the raw bytes in row-major, little-endian order.

    Raises:
        ServerError: a shape of anything but whole numbers above 0.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any] | bytes
    content_type: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in self.shape):
            raise ServerError(f"input {_quoted(self.name)} has the shape {_listed(self.shape)}; its sizes are above 0")


@dataclass(frozen=True, eq=False)
class Query:
    """A request: its tensors, its parameters, and the outputs that it asks for; none is the usual ones."""

    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """An output: numbers, or a list of byte strings or names."""

    name: str
    datatype: str
    shape: list[int]
    data: Array | list[bytes] | list[str]

    @classmethod
    def of(cls, name: str, values: Array) -> Result:
        """An output of numbers."""
        return cls(name, datatype_of(values.dtype.name), list(values.shape), np.ascontiguousarray(values))

    @classmethod
    def of_bytes(cls, name: str, values: list[bytes] | list[str]) -> Result:
        """An output of byte strings or names."""
        return cls(name, "BYTES", [len(values)], values)


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy type.

    Raises:
        ServerError: it has none.
    """
    for datatype, known in DATATYPES.items():
        if known == dtype:
            return datatype
    raise ServerError(f"the Open Inference Protocol has no type for {dtype}; ask for another output", 500)


def numbers(tensor: Tensor, dtype: str, shape: Sequence[int | str | None]) -> Array:
    """The values of a tensor.

    Args:
        tensor: as it came.
        dtype: the NumPy type that the model wants.
        shape: the shape that the model wants; free dimensions are symbols or `None`.

    Raises:
        ServerError: another type or shape, another count of values, values out of range, infinite or NaN.
    """
    wanted = datatype_of(dtype)
    what = f"input {_quoted(tensor.name)}"
    if tensor.datatype != wanted:
        raise ServerError(f"{what} is of datatype {_quoted(tensor.datatype)}; the model wants {wanted}")
    _check_shape(what, tensor.shape, shape)
    count = 1
    for size in tensor.shape:
        count *= size
    if isinstance(tensor.data, bytes):
        values = _from_bytes(what, tensor.data, np.dtype(dtype).newbyteorder("<"), count)
    else:
        values = _from_list(what, tensor.data, np.dtype(dtype), tensor.shape, count)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ServerError(f"{what} has values that are infinite or not a number; send finite ones")
    return values.reshape(tensor.shape)


def files(tensor: Tensor) -> list[bytes]:
    """The byte strings of a BYTES tensor of shape [N] or [N, 1].

    In JSON they are base64 text. As raw bytes each comes behind its length, four bytes little-endian.

    Raises:
        ServerError: another type, another count, or a string that is no base64.
    """
    what = f"input {_quoted(tensor.name)}"
    if tensor.datatype != "BYTES":
        raise ServerError(f"{what} is of datatype {_quoted(tensor.datatype)}; image files are BYTES")
    _check_shape(what, tensor.shape, (None,) if len(tensor.shape) == 1 else (None, 1))
    strings = _framed(what, tensor.data) if isinstance(tensor.data, bytes) else _flat(what, tensor.data, tensor.shape)
    if len(strings) != tensor.shape[0]:
        raise ServerError(f"{what} has {len(strings)} values, but its shape says {tensor.shape[0]}")
    return [_file(what, one, tensor.content_type) for one in strings]


def _file(what: str, value: Any, content_type: str) -> bytes:
    if isinstance(value, bytes) and content_type != "base64":
        return value
    if not isinstance(value, (bytes, str)):
        raise ServerError(f"{what} has a value that is no text; send each image file as base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServerError(f"{what} has a value that is not base64 ({error}); encode the image file") from error


def _framed(what: str, data: bytes) -> list[bytes]:
    strings, at = [], 0
    while at < len(data):
        end = at + 4
        size = struct.unpack_from("<I", data, at)[0] if end <= len(data) else len(data)
        if end + size > len(data):
            raise ServerError(f"{what} is cut off: a length in it goes beyond its end")
        strings.append(data[end : end + size])
        at = end + size
    return strings


def _check_shape(what: str, shape: Sequence[Any], wanted: Sequence[int | str | None]) -> None:
    matches = len(shape) == len(wanted) and all(
        not isinstance(there, int) or there <= 0 or there == size for size, there in zip(shape, wanted, strict=True)
    )
    if not matches:
        free = [size if isinstance(size, int) and size > 0 else "N" for size in wanted]
        raise ServerError(f"{what} is of shape {_listed(shape)}; it has to be {_listed(free)}")


def _from_bytes(what: str, data: bytes, dtype: np.dtype[Any], count: int) -> Array:
    if len(data) != count * dtype.itemsize:
        raise ServerError(
            f"{what} has {len(data)} bytes, but its shape and datatype make {count * dtype.itemsize}; is it cut off?"
        )
    return np.frombuffer(data, dtype)


def _from_list(what: str, data: list[Any], dtype: np.dtype[Any], shape: Sequence[int], count: int) -> Array:
    flat = _flat(what, data, shape)
    if len(flat) != count:
        raise ServerError(f"{what} has {len(flat)} values, but its shape makes {count}")
    # An array of one C type takes numbers alone: NumPy would make numbers of text and of null.
    code = "d" if dtype.kind == "f" else "Q" if dtype == np.uint64 else "q"
    try:
        values: Array = np.frombuffer(array(code, flat), code) if count else np.zeros(0)
    except (TypeError, OverflowError) as error:
        kind = "a number" if code == "d" else "a whole number in range"
        raise ServerError(f"{what} has a value that is not {kind} ({str(error)[:80]})") from error
    if dtype.kind in "iu" and not (np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max):
        raise ServerError(f"{what} has values out of the range of {datatype_of(dtype.name)}")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _flat(what: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """The values of a list that is flat, or nested as `shape` says."""
    if not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise ServerError(f"{what} is a nested list of another shape than it says; a flat list will do")
        level = list(itertools.chain.from_iterable(level))
    return level


def _listed(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(size)[:24] for size in shape[:8]) + (", ...]" if len(shape) > 8 else "]")


def _quoted(name: Any) -> str:
    """A name for a message: not longer than a line."""
    return repr(name if len(str(name)) <= _LONGEST_NAME else str(name)[:_LONGEST_NAME] + "...")
