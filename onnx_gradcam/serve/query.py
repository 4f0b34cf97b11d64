"""Requests of the Open Inference Protocol, independent of the transport, and their tensors as arrays.

Requests are untrusted: everything is checked before memory of its size is allocated.
https://github.com/kserve/open-inference-protocol, "Tensor data".
"""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import struct
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ServerError, reason

__all__ = ["DATATYPES", "Query", "Result", "Tensor", "check_counts", "datatype_of", "files", "numbers"]

Array = npt.NDArray[Any]

DATATYPES: Final[Mapping[str, str]] = {
    "BOOL": "bool",
    **{f"{kind.upper()}{bits}": f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
"""The protocol's numeric types and their NumPy names."""

_MAX_NAME: Final = 256
_MAX_ENTRIES: Final = 64
"""Inputs, outputs and parameters per request, far more than any model has."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as received: a flat or nested list of values, or raw bytes in row-major, little-endian order.

    Raises:
        ServerError: a size in the shape is not a whole number above 0.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    data: list[Any] | bytes
    content_type: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in self.shape):
            raise ServerError(
                f"input {_quoted(self.name)} has shape {_listed(self.shape)}; its sizes must be whole numbers above 0"
            )


@dataclass(frozen=True, eq=False)
class Query:
    """A request: its tensors, its parameters, and the requested outputs, empty for the default ones."""

    tensors: Sequence[Tensor]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Result:
    """An output: an array, or a list of byte strings or names."""

    name: str
    datatype: str
    shape: list[int]
    data: Array | list[bytes] | list[str]

    @classmethod
    def of(cls, name: str, values: Array) -> Result:
        """Make an output of an array."""
        return cls(name, datatype_of(values.dtype.name), list(values.shape), np.ascontiguousarray(values))

    @classmethod
    def of_bytes(cls, name: str, values: list[bytes] | list[str]) -> Result:
        """Make an output of byte strings or names."""
        return cls(name, "BYTES", [len(values)], values)

    def raw(self) -> bytes:
        """The values in row-major, little-endian order; strings behind their lengths of four bytes each."""
        if not isinstance(self.data, list):
            return self.data.astype(self.data.dtype.newbyteorder("<"), copy=False).tobytes()
        strings = [one.encode() if isinstance(one, str) else one for one in self.data]
        return b"".join(struct.pack("<I", len(one)) + one for one in strings)


def check_counts(**entries: Collection[Any]) -> None:
    """Refuse requests with more inputs, outputs or parameters than any model has, before each is looked at."""
    for kind, items in entries.items():
        if len(items) > _MAX_ENTRIES:
            raise ServerError(f"the request has {len(items)} {kind}; send at most {_MAX_ENTRIES}")


def datatype_of(dtype: str) -> str:
    """The protocol's name of a NumPy type; refuses types that it does not have."""
    for datatype, name in DATATYPES.items():
        if name == dtype:
            return datatype
    raise ServerError(f"the Open Inference Protocol has no type for {dtype}; request another output", 500)


def numbers(tensor: Tensor, dtype: str, shape: Sequence[int | str | None]) -> Array:
    """The values of a tensor as an array of the model's `dtype` and `shape`, whose free sizes are symbols or `None`.

    Refuses a wrong type, shape or number of values, and values that are out of range, infinite or NaN.
    """
    datatype = datatype_of(dtype)
    source = f"input {_quoted(tensor.name)}"
    if tensor.datatype != datatype:
        raise ServerError(f"{source} has datatype {_quoted(tensor.datatype)}; send {datatype}")
    _check_shape(source, tensor.shape, shape)
    count = math.prod(tensor.shape)
    if isinstance(tensor.data, bytes):
        values = _from_bytes(source, tensor.data, np.dtype(dtype).newbyteorder("<"), count)
    else:
        values = _from_list(source, tensor.data, np.dtype(dtype), tensor.shape, count)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ServerError(f"{source} contains infinite values or NaN; send finite numbers")
    return values.reshape(tensor.shape)


def files(tensor: Tensor) -> list[bytes]:
    """The byte strings of a BYTES tensor of shape [N] or [N, 1].

    In JSON they are base64. In raw bytes each is preceded by its length, four bytes little-endian.
    """
    source = f"input {_quoted(tensor.name)}"
    if tensor.datatype != "BYTES":
        raise ServerError(f"{source} has datatype {_quoted(tensor.datatype)}; send image files as BYTES")
    _check_shape(source, tensor.shape, (None,) if len(tensor.shape) == 1 else (None, 1))
    count, data = tensor.shape[0], tensor.data
    strings = _framed(source, data, count) if isinstance(data, bytes) else _flat(source, data, tensor.shape)
    if len(strings) != count:
        raise ServerError(f"{source} has {len(strings)} values, but its shape is [{count}]")
    return [_file(source, one, tensor.content_type) for one in strings]


def _file(source: str, value: Any, content_type: str) -> bytes:
    if isinstance(value, bytes) and content_type != "base64":
        return value
    if not isinstance(value, (bytes, str)):
        raise ServerError(f"{source} contains a value that is not text; send each image file as base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServerError(
            f"{source} contains a value that is not base64 ({reason(error)}); encode the image file"
        ) from error


def _framed(source: str, data: bytes, count: int) -> list[bytes]:
    strings: list[bytes] = []
    at = 0
    while at < len(data):
        if len(strings) == count:
            raise ServerError(f"{source} has more than {count} values, but its shape is [{count}]")
        end = at + 4
        size = struct.unpack_from("<I", data, at)[0] if end <= len(data) else len(data)
        if end + size > len(data):
            raise ServerError(f"{source} is truncated: a string in it extends beyond its end")
        strings.append(data[end : end + size])
        at = end + size
    return strings


def _check_shape(source: str, shape: Sequence[Any], expected: Sequence[int | str | None]) -> None:
    fixed = [size if isinstance(size, int) and size > 0 else None for size in expected]
    if len(shape) != len(fixed) or any(b not in (None, a) for a, b in zip(shape, fixed, strict=True)):
        required = _listed(["N" if size is None else size for size in fixed])
        raise ServerError(f"{source} has shape {_listed(shape)}; it must be {required}")


def _from_bytes(source: str, data: bytes, dtype: np.dtype[Any], count: int) -> Array:
    if len(data) != count * dtype.itemsize:
        raise ServerError(
            f"{source} has {len(data)} bytes, but its shape and datatype require {count * dtype.itemsize}; send all"
        )
    return np.frombuffer(data, dtype)


def _from_list(source: str, data: list[Any], dtype: np.dtype[Any], shape: Sequence[int], count: int) -> Array:
    flat = _flat(source, data, shape)
    if len(flat) != count:
        raise ServerError(f"{source} has {len(flat)} values, but its shape requires {count}")
    if dtype.kind != "b" and bool in set(map(type, flat)):
        raise ServerError(f"{source} contains true or false; send numbers as {datatype_of(dtype.name)}")
    # `array` accepts only numbers, whereas NumPy would convert text and null.
    code = "d" if dtype.kind == "f" else "Q" if dtype == np.uint64 else "q"
    try:
        values: Array = np.frombuffer(array(code, flat), code) if count else np.zeros(0)
    except (TypeError, OverflowError) as error:
        kind = "a number" if code == "d" else "a whole number in range"
        raise ServerError(f"{source} contains a value that is not {kind} ({reason(error, 80)})") from error
    if dtype.kind in "iu" and not (np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max):
        raise ServerError(f"{source} contains values out of the range of {datatype_of(dtype.name)}")
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _flat(source: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """The values of a list that is flat, or nested as `shape`."""
    if not data or not isinstance(data[0], list):
        return data
    level: list[Any] = [data]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise ServerError(f"{source} is a nested list that does not match its shape; send a flat list")
        level = list(itertools.chain.from_iterable(level))
    return level


def _listed(shape: Sequence[Any]) -> str:
    return "[" + ", ".join(str(size)[:24] for size in shape[:8]) + (", ...]" if len(shape) > 8 else "]")


def _quoted(name: Any) -> str:
    """A name for a message, shortened to one line."""
    return repr(name if len(str(name)) <= _MAX_NAME else str(name)[:_MAX_NAME] + "...")
