"""`onnx-gradcam batch`, as it is typed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from support.batch_runs import PREPROCESS, draw, failures, listed
from typer.testing import CliRunner

from onnx_gradcam.batching.listing import listed as paths_of
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError
from onnx_gradcam.files import locked


@pytest.fixture
def call(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: bytes | None = None, preprocess: bool = True):
        options = ["--preprocess", json.dumps(PREPROCESS)] if preprocess else []
        return CliRunner().invoke(app, ["batch", str(model), *map(str, arguments), *options], input=stdin)

    return run


def refused(result, code: int = 1) -> str:
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    if code == 1:
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ")
    return result.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images in folders of folders, and what is none."""
    draw(tmp_path / "photos", 3)
    draw(tmp_path / "photos" / "b", 2)
    draw(tmp_path / "photos" / "a", 2)
    (tmp_path / "photos" / "notes.txt").write_text("no image", "utf-8")
    (tmp_path / "photos" / ".hidden.png").write_text("no image", "utf-8")
    return tmp_path / "photos"


def test_folders_are_walked_in_an_order_that_stays(folder):
    found = [os.path.relpath(path, folder) for path in paths_of(str(folder), io.BytesIO())]
    assert found == [
        *("00000.png", "00001.png", "00002.png"),
        *(f"{name}/{number}.png" for name in "ab" for number in ("00000", "00001")),
    ]


def test_a_folder_a_image_and_a_list_in_one_run(call, folder, tmp_path):
    (other,) = draw(tmp_path / "other", 1)
    stdin = f"{folder}/00001.png\r\n\n{folder}/missing.png\nphotos/00002.png\n".encode()
    result = call("photos", "-", other, "-o", "out", "--format", "npz", "--target", "top2", stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "10 images explained, in out\n")
    assert "warning: 1 image could not be explained; see out/_failures.jsonl" in result.stderr
    done, failed = listed(tmp_path / "out")
    assert (sorted(done + failed), failed) == (list(range(11)), [8])
    entries = [json.loads(line) for line in (tmp_path / "out/part-00000000/index.jsonl").read_text().splitlines()]
    assert [e["path"] for e in entries][-3:] == [f"{folder}/00001.png", f"{folder}/00002.png", other]
    assert all(len(e["classes"]) == 2 for e in entries)
    again = call("photos", "-", other, "-o", "out", "--format", "npz", "--target", "top2", "--resume", stdin=stdin)
    assert again.stdout == "10 images explained, 10 of them by earlier runs, in out\n"


def test_where_no_image_can_be_explained_the_exit_code_says_so(call, tmp_path):
    result = call("-", "-o", "out", "--format", "png", stdin=b"/nowhere/a.png\n/nowhere/b.png\n")
    assert result.exit_code == 1
    assert "error: 2 images could not be explained" in result.stderr
    assert [f["image"] for f in failures(tmp_path / "out")] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos", "-o", "photos/out"], "would be written into 'photos', among the images"),
        (["photos", "-o", "photos"], "would be written into 'photos', among the images"),
        (["nowhere", "-o", "out"], "no such image or folder: 'nowhere'"),
        (["", "-o", "out"], "the path of an image is empty"),
        (["photos", "-o", "out", "--target", "9"], "class 9 is out of range"),
        (["photos", "-o", "out", "--target", "cat"], "cannot be looked up without class names"),
        (["photos", "-o", "out", "--method", "gradcan"], "did you mean"),
        (["photos", "-o", "out", "--provider", "rocket"], "there is no execution provider 'rocket'"),
    ],
)
def test_what_is_refused_leaves_nothing(call, folder, tmp_path, arguments, sentence):
    assert sentence in refused(call(*arguments, "--format", "npz"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        (b"", "standard input is empty"),
        (b"\x89PNG\0\0\n", "line 1 of standard input is not a path"),
        (b"a.png\n" + b"x" * 100_000, "line 2 of standard input is not a path"),
    ],
)
def test_standard_input_that_is_no_list_is_refused(call, stdin, sentence):
    assert sentence in refused(call("-", "-o", "out", "--format", "npz", stdin=stdin))


def test_a_folder_without_images_is_refused(call, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "contains no image" in refused(call("empty", "-o", "out", "--format", "npz"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_folder_that_cannot_be_read_stops_the_run(folder):
    (folder / "a").chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        list(paths_of(str(folder), io.BytesIO()))


def test_a_folder_that_vanishes_stops_the_run(folder, monkeypatch):
    def walk(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/a"))

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(InputError, match=r"/a' cannot be read \(Permission denied\)"):
        list(paths_of(str(folder), io.BytesIO()))


def test_wrong_usage(call, folder):
    assert "give '-' once" in refused(call("-", "-", "-o", "out"))
    assert "Missing option" in refused(call("photos"), 2)
    assert "--shard-size" in refused(call("photos", "-o", "out", "--shard-size", "0"), 2)


def test_without_preprocessing_nothing_is_guessed(call, folder, tmp_path):
    assert "give it with --preprocess" in refused(call("photos", "-o", "out", "--format", "npz", preprocess=False))
    assert not (tmp_path / "out").exists()


def test_two_runs_in_one_folder(call, folder, tmp_path):
    assert call(folder, "-o", "out").exit_code == 0
    with locked(tmp_path / "out"):
        assert "another process is writing to 'out'; wait until it has ended" in refused(
            call(folder, "-o", "out", "--resume")
        )
    assert call(folder, "-o", "out", "--resume").exit_code == 0
