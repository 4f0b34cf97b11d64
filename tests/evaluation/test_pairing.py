"""Maps from elsewhere: what is read, and what is refused before memory is taken."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.pairing import NativeMaps


def test_maps_are_found_by_the_name_of_the_image_and_finished(tmp_path):
    raw = np.array([[-1.0, 2.0, 0.0], [4.0, -3.0, 1.0]], np.float16)
    np.savez(
        tmp_path / "maps.npz", **{"a.jpg": raw, "b": 2 * raw, "deep/c.png": np.asfortranarray(raw.astype(np.float64))}
    )
    maps = NativeMaps(tmp_path / "maps.npz")
    expected = np.array([[0, 0.5, 0], [1, 0, 0.25]], np.float32)
    for image in ("photos/a.jpg", "b.png", "deep/c.png"):
        found = maps.heatmap(image)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    maps.close()


def test_a_map_without_anything_positive_is_blank(tmp_path):
    np.savez_compressed(tmp_path / "maps.npz", **{"a.jpg": -np.ones((2, 2))})
    np.testing.assert_array_equal(NativeMaps(tmp_path / "maps.npz").heatmap("a.jpg"), np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 2, 2)), "of shape"),
        (np.ones((2, 2), np.int64), "is int64"),
        (np.ones((1, 5000), np.float32), "above 4096"),
        (np.ones((0, 4)), "neither side"),
        (np.array([[np.nan]]), "NaN"),
        (np.array([[1.0, np.inf]]), "infinite"),
        (np.array([[None]]), "is object"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "maps.npz", **{"a.jpg": array})
    with pytest.raises(InputError, match=words):
        NativeMaps(tmp_path / "maps.npz").heatmap("a.jpg")


def test_a_missing_map_says_how_to_name_it(tmp_path):
    np.savez(tmp_path / "maps.npz", b=np.ones((2, 2)))
    with pytest.raises(InputError, match=r"no map for 'photos/a.jpg'; name the array 'a.jpg'"):
        NativeMaps(tmp_path / "maps.npz").heatmap("photos/a.jpg")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "maps.npz").write_bytes(content)
    with pytest.raises(InputError, match="holds no maps"):
        NativeMaps(tmp_path / "maps.npz")
    with pytest.raises(InputError, match="No such file"):
        NativeMaps(tmp_path / "nothing.npz")


def archive(path, data: bytes) -> NativeMaps:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jpg.npy", data)
    return NativeMaps(path)


def stored(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_every_cut_of_an_array_is_refused(tmp_path):
    whole = stored(np.ones((8, 8), np.float32))
    for end in range(0, len(whole), 7):
        with pytest.raises(InputError, match=r"damaged|truncated"):
            archive(tmp_path / "maps.npz", whole[:end]).heatmap("a.jpg")


@pytest.mark.parametrize("shape", [b"(4000, 4000)", b"(40000000, 8)", b"(-8, 8)"])
def test_a_header_that_lies_takes_no_memory(tmp_path, shape):
    whole = stored(np.ones((8, 8), np.float32))
    lying = whole.replace(b"(8, 8), }" + b" " * (len(shape) - 6), shape + b", }")
    assert lying != whole
    maps = archive(tmp_path / "maps.npz", lying)
    tracemalloc.start()
    with pytest.raises(InputError):
        maps.heatmap("a.jpg")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "maps.npz"
    np.savez_compressed(path, **{"a.jpg": np.random.default_rng(0).random((32, 32))})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged|truncated"):
        NativeMaps(path).heatmap("a.jpg")
