"""Tensors as they come over the wire: what is right becomes an array, what is wrong one sentence."""

from __future__ import annotations

import base64
import struct
import tracemalloc

import numpy as np
import pytest

from onnx_gradcam.errors import ServerError
from onnx_gradcam.serve.query import DATATYPES, Result, Tensor, datatype_of, files, numbers


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BOOL"}))
def test_lists_nested_lists_and_bytes_are_the_same_array(datatype):
    values = np.arange(12).reshape(2, 2, 3).astype(DATATYPES[datatype])
    forms = (values.tolist(), values.reshape(-1).tolist(), values.astype(values.dtype.newbyteorder("<")).tobytes())
    for data in forms:
        got = numbers(Tensor("x", datatype, [2, 2, 3], data), values.dtype.name, ("N", 2, None))
        assert got.dtype == values.dtype
        np.testing.assert_array_equal(got, values)
    assert Result.of("x", values).datatype == datatype == datatype_of(values.dtype.name)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("FP32", [2], [1.0], "has 1 values, but its shape requires 2"),
        ("FP32", [2], bytes(7), "has 7 bytes, but its shape and datatype require 8"),
        ("FP32", [1], ["1.0"], "contains a value that is not a number"),
        ("FP32", [1], [True], "contains true or false; send numbers as FP32"),
        ("FP32", [2, 1], [[0.5], [False]], "contains true or false"),
        ("FP32", [1], [None], "contains a value that is not a number"),
        ("FP32", [1], [1e39], "infinite values or NaN"),
        ("FP32", [1], struct.pack("<f", float("nan")), "infinite values or NaN"),
        ("FP32", [1], struct.pack("<f", float("-inf")), "infinite values or NaN"),
        ("FP64", [1], [1.0], "has datatype 'FP64'; send FP32"),
        ("FP32", [2, 2], [[1, 2], [3]], "nested list that does not match"),
        ("FP32", [2, 2], [[1, 2], 3], "nested list that does not match"),
        ("FP32", [1, 1], [[[1]]], "contains a value that is not a number"),
        ("FP32", [2**62], [1.0], "its shape requires 4611686018427387904"),
        ("FP32", [2**62], b"\0\0\0\0", "its shape and datatype require"),
    ],
)
def test_what_is_wrong_is_said(datatype, shape, data, says):
    with pytest.raises(ServerError, match=says) as caught:
        numbers(Tensor("x", datatype, shape, data), "float32", ["N"] * len(shape))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("datatype", "data"), [("INT8", [128]), ("UINT8", [-1]), ("INT64", [2**63]), ("UINT64", [-1]), ("INT32", [1.0])]
)
def test_integers_out_of_range_are_no_integers(datatype, data):
    with pytest.raises(ServerError, match=r"range|whole number"):
        numbers(Tensor("x", datatype, [1], data), DATATYPES[datatype], ["N"])


@pytest.mark.parametrize("shape", [[-1], [0], [1.0], ["1"], [True], [None], [[1]]])
def test_sizes_are_whole_numbers_above_zero(shape):
    with pytest.raises(ServerError, match="its sizes must be whole numbers above 0"):
        Tensor("x", "FP32", shape, [1.0])


@pytest.mark.parametrize(("shape", "wanted"), [([2, 3], (None, 4)), ([2], (None, 1)), ([1, 2, 3], ("N", 3))])
def test_a_shape_is_that_of_the_model(shape, wanted):
    with pytest.raises(ServerError, match="it must be"):
        numbers(Tensor("x", "FP32", shape, [1.0] * int(np.prod(shape))), "float32", wanted)


def test_a_refusal_allocates_nothing_of_the_size_that_is_claimed():
    tracemalloc.start()
    with pytest.raises(ServerError):
        numbers(Tensor("x", "FP32", [2**40], b"\0" * 64), "float32", ["N"])
    with pytest.raises(ServerError):
        files(Tensor("x", "BYTES", [2**40], struct.pack("<I", 2**32 - 1) + b"abc"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_files_come_as_base64_as_bytes_and_behind_their_lengths():
    images = [b"first", b"", b"\x00\xff"]
    framed = b"".join(struct.pack("<I", len(p)) + p for p in images)
    encoded = [base64.b64encode(p) for p in images]
    for data, content_type in (
        ([e.decode() for e in encoded], ""),
        (encoded, "base64"),
        (list(images), ""),
        (framed, ""),
    ):
        assert files(Tensor("x", "BYTES", [3], data, content_type)) == images
        assert files(Tensor("x", "BYTES", [3, 1], data, content_type)) == images


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<I", 9) + b"abc", "truncated"),
        (b"\x01", "truncated"),
        (b"", "has 0 values"),
        (["a", "b"], "has 2 values"),
        (["a§"], "not base64"),
        ([7], "not text"),
    ],
)
def test_files_that_are_none(data, says):
    with pytest.raises(ServerError, match=says):
        files(Tensor("x", "BYTES", [1], data))


def test_a_type_that_the_protocol_does_not_know():
    with pytest.raises(ServerError, match="no type for complex64"):
        datatype_of("complex64")
