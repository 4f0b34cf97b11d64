"""Files appear complete or not at all, links stay links, and only regular files are read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.graphs import graph

import onnx_gradcam
from onnx_gradcam import Explainer, attach, evaluate, files, inspect
from onnx_gradcam.errors import ExplainError, InputError, reason
from onnx_gradcam.files import Drafts, check_replaceable, is_path, locked, make_folder, open_file, read_file, write_file
from onnx_gradcam.graph.load import load

posix = pytest.mark.skipif(os.name == "nt", reason="named pipes and devices")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_two(folder: Path, error: Exception) -> None:
    with Drafts() as drafts:
        drafts.folder(folder / "f").joinpath("x").write_bytes(b"1")
        drafts.file(folder / "a").write_bytes(b"after")
        drafts.file(folder / "b").write_bytes(b"after")
        raise error


def test_a_file_is_written_and_replaced(tmp_path):
    write_file(tmp_path / "a.txt", b"one")
    write_file(str(tmp_path / "a.txt"), b"two", durable=True)
    assert read_file(tmp_path / "a.txt") == b"two"
    assert names(tmp_path) == ["a.txt"]


def test_files_appear_together(tmp_path):
    with Drafts() as drafts:
        first, second = drafts.file(tmp_path / "a"), drafts.file(tmp_path / "b")
        assert first.parent == second.parent
        assert (first.name, second.name) == ("a", "b")
        first.write_bytes(b"1")
        assert not (tmp_path / "a").exists()
        second.write_bytes(b"2")
        drafts.file(tmp_path / "unwritten")
    assert names(tmp_path) == ["a", "b"]


def test_nothing_appears_when_the_block_fails(tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(KeyError):
        write_two(tmp_path, KeyError())
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"b' cannot be written: 10 requested and 4 written$"):
        write_two(tmp_path, OSError("10 requested and 4 written"))  # as NumPy raises it, without a number
    assert names(tmp_path) == []


def test_a_failure_to_rename_is_one_sentence(tmp_path, monkeypatch):
    def full(paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(InputError, match=r"a' cannot be written: No space left on device$"):
        write_file(tmp_path / "a", b"1", durable=True)
    assert names(tmp_path) == []


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; give the path of a file in it"):
        write_file(tmp_path, b"")
    with pytest.raises(InputError, match="is a folder; give the path of a file in it"):
        read_file(tmp_path)
    assert names(tmp_path) == []


def test_the_folder_has_to_exist(tmp_path):
    with pytest.raises(InputError, match=r"x' cannot be written: No such file or directory$"):
        write_file(tmp_path / "gone" / "x", b"")
    make_folder(tmp_path / "gone" / "deeper")
    make_folder(tmp_path / "gone" / "deeper")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"the folder .*file' cannot be made: "):
        make_folder(tmp_path / "file")


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    for content in (b"1", b"2"):
        write_file(link, content)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file").read_bytes() == content
    assert names(tmp_path / "there") == ["file"]


@posix
def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="cannot be written"):
        write_file(tmp_path / "a", b"")
    with pytest.raises(InputError, match="cannot be read: Too many levels"):
        read_file(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


@posix
def test_a_named_pipe_is_written_through(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"through")
    reader.join(10)
    assert received == [b"through"]
    assert pipe.is_fifo()


@posix
def test_a_device_is_written_to_and_stays(tmp_path):
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_file(link, b"gone")
    assert Path(os.devnull).is_char_device()
    assert link.is_symlink()


@posix
def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(InputError, match="is not a regular file; copy its content to one"):
            open_file(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"there is no file '.*gone'; check the path"):
        read_file(tmp_path / "gone")
    with pytest.raises(InputError, match=r"cannot be read: .*null"):
        read_file("a\0b")
    (tmp_path / "large").write_bytes(bytes(2**20 + 1))
    with pytest.raises(InputError, match="is larger than 1 MB; give a smaller file"):
        read_file(tmp_path / "large", 2**20)
    assert len(read_file(tmp_path / "large", 2**20 + 1)) == 2**20 + 1


def test_a_folder_appears_complete(tmp_path):
    (tmp_path / "empty").mkdir()
    with Drafts() as drafts:
        for name in ("new", "empty"):
            (drafts.folder(tmp_path / name) / "x").write_bytes(b"1")
        assert not (tmp_path / "new").exists()
    assert [names(tmp_path / name) for name in names(tmp_path)] == [["x"], ["x"]]
    for taken in ("new", "new/x"):
        with pytest.raises(InputError, match="already exists; remove it or choose another name"), Drafts() as drafts:
            drafts.folder(tmp_path / taken)


def test_the_reason_of_an_operating_systems_error():
    assert reason(OSError(28, "No space left on device", "/long/path")) == "No space left on device"
    assert reason(OSError("short read")) == "short read"


HOLD = """
import sys, time
from pathlib import Path
from onnx_gradcam.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_locked_folder_is_refused_until_its_process_is_killed(tmp_path):
    environment = {"PYTHONPATH": str(Path(onnx_gradcam.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=r"another process is writing to .*; wait until"), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_a_path_is_none(tmp_path):
    assert is_path(str(tmp_path))
    assert not is_path("x" * 10**6)
    assert not is_path("a\0b")


# ----- what can be a model ---------------------------------------------------


def forms(tmp_path):
    """One explained model in every form that a function takes."""
    explained = attach(graph("c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
                             K=(6, 3, 3, 3), W=(6, 4)))  # fmt: skip
    path = tmp_path / "explained.onnx"
    explained.save(path)
    return [path, str(path), path.read_bytes(), explained.to_proto(), explained, explained.model]


def test_a_model_may_be_given_in_every_form(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    description = {"size": [8, 8], "scale": 1 / 255}
    maps = [Explainer(form, preprocess=description)(image).heatmap for form in forms(tmp_path)]
    assert maps[0].max() > 0
    for one in maps[1:]:
        np.testing.assert_array_equal(one, maps[0])


def test_an_explained_model_is_recognised_in_every_form(tmp_path):
    for form in forms(tmp_path):
        with pytest.raises(ExplainError, match="explained already"):
            attach(form)
        with pytest.raises(ExplainError, match="explained already"):
            Explainer(form, method="layercam")
        with pytest.raises(ExplainError, match="explained already"):
            evaluate(form, [Path(__file__).parents[1] / "models" / "square_and_ring.png"], methods=["gradcam"])


@pytest.mark.parametrize("function", [attach, inspect, Explainer, load])
@pytest.mark.parametrize("source", [None, 5, [], {}, bytearray(b"x"), io.BytesIO(b"x")])
def test_what_cannot_be_a_model_is_refused_by_its_type(function, source):
    with pytest.raises(ExplainError, match=rf"an onnx.ModelProto, not {type(source).__name__};"):
        function(source)


ZIP = b"PK\x03\x04" + bytes(40)
CONTENTS = {
    "an image": [
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"\xff\xd8\xff\xe0" + bytes(40),
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"II*\0" + bytes(9),
    ],
    "a NumPy array": [b"\x93NUMPY\x01\0"],
    "a ZIP archive": [ZIP],
    "an HTML page": [b"<!DOCTYPE html><html>", b"\n <html lang='en'>"],
    "an HDF5 file": [b"\x89HDF\r\n\x1a\n"],
    "a PDF document": [b"%PDF-1.7\n"],
    "a compressed file": [b"\x1f\x8b\x08\0"],
    "a text": [b"MIT License, and so on", b"all:\n\tmake everything\n"],
    "": [b"", b"old", b"\x08\x0a\x12\x07pytorch\x1a\x032.13", bytes(64), b"\0\0noise\xff" * 9],
}


@pytest.mark.parametrize("kind", ["an image", "a model", "an HTML page", "a NumPy array", "a ZIP archive"])
def test_a_file_that_is_clearly_something_else_is_not_replaced(kind, tmp_path):
    path = tmp_path / "file"
    check_replaceable(path, kind)
    check_replaceable(tmp_path, kind)
    for found, contents in CONTENTS.items():
        for content in contents:
            path.write_bytes(content)
            if found in {kind, ""}:
                check_replaceable(path, kind)
                continue
            with pytest.raises(InputError, match=rf"file' exists and is {found}, not {kind}; remove it, or choose"):
                check_replaceable(path, kind)


def test_no_door_writes_over_another_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    explained = attach(graph("c = Relu(x) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, W)", W=(3, 4)))
    explanation = Explainer(explained.to_proto(), preprocess={"size": [8, 8]})(image)
    doors = {"model": explained.save, "m.onnx": explained.save, "o.png": explanation.overlay().save}
    for name, save in doors.items():
        Path(name).write_bytes(ZIP)
        with pytest.raises(InputError, match=f"'{name}' exists and is a ZIP archive, not a"):
            save(name)
        assert Path(name).read_bytes() == ZIP
        Path(name).unlink()
        save(name)
        save(name)
