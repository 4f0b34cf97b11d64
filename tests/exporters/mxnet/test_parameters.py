"""Parameter files of every version, and files that lie."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

from onnx_gradcam.errors import ExportError, InputError
from onnx_gradcam.exporters.mxnet.parameters import read_parameters

from .conftest import Case
from .networks import DTYPES, V1, V2, V3, array, name, params

CONTENT = np.arange(12, dtype=np.float32).reshape(3, 4)


def written(folder, data: bytes):
    path = folder / "n-0000.params"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [0, V1, V2, V3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_version_and_type(tmp_path, version, dtype):
    contents = {"arg:a": CONTENT.astype(dtype), "aux:b": CONTENT[:, :1].astype(dtype)}
    data = params([array(c, version) for c in contents.values()], [name(n) for n in contents])
    got = read_parameters(written(tmp_path, data))
    assert list(got) == list(contents)
    for key, content in contents.items():
        assert got[key].dtype == dtype
        np.testing.assert_array_equal(got[key], content)


def test_what_mxnet_wrote(tmp_path):
    got = read_parameters(written(tmp_path, Case("batch_norm_free").params))
    assert {key: value.shape for key, value in got.items()} == dict.fromkeys(
        ("arg:y_gamma", "arg:y_beta", "aux:y_moving_mean", "aux:y_moving_var"), (4,)
    )
    assert got["aux:y_moving_var"].min() >= 0.5


def test_scalars_of_the_newest_version(tmp_path):
    got = read_parameters(written(tmp_path, params([array(np.float32(3), V3)], [name("s")])))
    assert got["s"].shape == ()
    assert got["s"] == 3


@pytest.mark.parametrize("version", [0, V1, V2])
def test_arrays_that_were_never_filled_are_left_out(tmp_path, version):
    empty = struct.pack("<I", 0) if version == 0 else array(np.float32(0), version)[: 12 if version == V2 else 8]
    data = params([empty, array(CONTENT)], [name("none"), name("a")])
    assert list(read_parameters(written(tmp_path, data))) == ["a"]


def test_no_elements(tmp_path):
    got = read_parameters(written(tmp_path, params([array(np.zeros((0, 3), np.float32))], [name("a")])))
    assert got["a"].shape == (0, 3)


def test_no_copies_are_made(tmp_path):
    got = read_parameters(written(tmp_path, params([array(CONTENT)], [name("a")])))["a"]
    assert not got.flags.owndata
    assert not got.flags.writeable


GOOD = params([array(CONTENT)], [name("arg:a")])
HUGE = struct.pack("<3i", V2 - 2**32, 0, 2) + struct.pack("<2q", 2**31, 2**31) + struct.pack("<3i", 1, 0, 0)
DAMAGE = {
    "empty": (b"", "not an MXNet parameter file"),
    "other_magic": (b"\x89PNG\r\n\x1a\n" + b"0" * 50, "not an MXNet parameter file"),
    "short_header": (GOOD[:12], "the header needs 24 bytes at 0, but the file ends after 12"),
    "many_arrays": (params([array(CONTENT)], [], count=2**60), "claims to hold 1152921504606846976 arrays"),
    "huge_shape": (params([HUGE], [name("a")]), r"array 0 of shape \(2147483648, 2147483648\) needs"),
    "more_names": (
        params([array(CONTENT)], [name("a")], named=2**61),
        "it holds 1 arrays, but 2305843009213693952 names",
    ),
    "no_names": (params([array(CONTENT)], []), "it holds 1 arrays, but 0 names"),
    "long_name": (
        params([array(CONTENT)], [struct.pack("<Q", 2**63) + b"a"]),
        "name 0 needs 9223372036854775808 bytes",
    ),
    "bad_name": (params([array(CONTENT)], [name(b"\xff\xfe")]), "name 0 is not UTF-8"),
    "same_names": (params([array(CONTENT)] * 2, [name("a")] * 2), "two arrays have the same name"),
    "trailing": (GOOD + b"more", "4 bytes follow the last name"),
    "sparse": (params([struct.pack("<Ii", V2, 1) + b"\0" * 80], [name("a")]), r"array 0 is stored sparse \(kind 1\)"),
    "rank": (params([struct.pack("<Iii", V2, 0, 1000)], [name("a")]), "has 1000 dimensions"),
    "old_rank": (params([struct.pack("<I", 77)], [name("a")]), "array 0 has an unknown version"),
    "negative": (
        params([struct.pack("<Iii2q3i", V2, 0, 2, -3, -4, 1, 0, 0)], [name("a")]),
        r"array 0 has the impossible shape \(-3, -4\)",
    ),
    "bfloat16": (params([struct.pack("<Iii1q3i", V2, 0, 1, 1, 1, 0, 12)], [name("a")]), "has the unknown dtype 12"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file(tmp_path, kind):
    data, message = DAMAGE[kind]
    path = written(tmp_path, data)
    with pytest.raises(ExportError, match=message) as caught:
        read_parameters(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", range(len(GOOD)))
def test_a_truncated_file(tmp_path, end):
    with pytest.raises(ExportError):
        read_parameters(written(tmp_path, GOOD[:end]))


def test_changed_bytes_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(GOOD)
        for place in rng.integers(0, 60, 3):
            data[place] = rng.integers(0, 256)
        try:
            got = read_parameters(written(tmp_path, bytes(data)))
        except ExportError:
            continue
        assert sum(a.nbytes for a in got.values()) <= len(data)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_parameters(tmp_path / "none.params")
    with pytest.raises(InputError, match="cannot be read"):
        read_parameters(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process, as Linux can")
def test_lies_cost_no_memory(tmp_path):
    """Refused in a process that may take no more than 256 MiB beyond what importing took."""
    kinds = ("many_arrays", "huge_shape", "more_names", "long_name")
    for kind in kinds:
        (tmp_path / kind).write_bytes(DAMAGE[kind][0])
    script = f"""
        import resource
        from pathlib import Path
        from onnx_gradcam.errors import ExportError
        from onnx_gradcam.exporters.mxnet.parameters import read_parameters

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
        for kind in {kinds!r}:
            try:
                read_parameters(Path({str(tmp_path)!r}) / kind)
            except ExportError:
                print(kind)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == kinds


# ----- .npz, which MXNet 2 writes --------------------------------------------


def npz(folder, **arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return written(folder, stream.getvalue())


def test_npz(tmp_path):
    contents = {"arg:a": CONTENT, "b": np.asfortranarray(CONTENT.astype(np.float16)), "s": np.float32(2)}
    got = read_parameters(npz(tmp_path, **contents))
    assert set(got) == set(contents)
    for key, content in contents.items():
        np.testing.assert_array_equal(got[key], content)


def test_npz_with_objects(tmp_path):
    with pytest.raises(ExportError, match="has elements of type object"):
        read_parameters(npz(tmp_path, a=np.array([{}])))


def test_compressed_npz(tmp_path):
    stream = io.BytesIO()
    np.savez_compressed(stream, a=CONTENT)
    with pytest.raises(ExportError, match=r"is compressed.*numpy\.savez"):
        read_parameters(written(tmp_path, stream.getvalue()))


def test_npz_that_lies(tmp_path):
    stream, entry = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", entry.getvalue())
    with pytest.raises(ExportError, match="needs 4398046511104 bytes, but has 0"):
        read_parameters(written(tmp_path, stream.getvalue()))


def test_npz_without_arrays(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", b"not an array")
    with pytest.raises(ExportError, match="array 'a' is not a NumPy array"):
        read_parameters(written(tmp_path, stream.getvalue()))


def test_truncated_npz(tmp_path):
    data = npz(tmp_path, a=CONTENT).read_bytes()
    with pytest.raises(ExportError, match=r"damaged \.npz archive"):
        read_parameters(written(tmp_path, data[: len(data) // 2]))
