"""What a job and a list of images refuse themselves, whichever way they are reached."""

from __future__ import annotations

import io

import pytest
from support.batch_runs import PREPROCESS, draw, listed

from onnx_gradcam.batching.job import Job
from onnx_gradcam.batching.listing import ImageList
from onnx_gradcam.batching.ray_engine import RayCluster
from onnx_gradcam.batching.running import batch
from onnx_gradcam.errors import InputError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "parket"}, "format is 'parket'; did you mean 'parquet'? choose 'parquet', 'npz' or 'png'"),
        ({"format": None}, "format is None"),
        ({"batch_size": 0}, "batch_size is 0; choose a whole number from 1 to 1024"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"shard_size": 0}, "shard_size is 0; choose a whole number from 1 to 65536"),
        ({"shard_size": "many"}, "shard_size is 'many'"),
        ({"threads": -1}, "threads is -1"),
        ({"provider": "rocket"}, "there is no execution provider 'rocket'"),
    ],
)
def test_a_job_checks_its_fields(model, change, message):
    with pytest.raises(InputError) as error:
        Job(model=model, **change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers is 0; choose a number from 1 up"),
        ({"cpus": 0}, "cpus is 0; choose a number from 0.05 up"),
        ({"stall_timeout": float("nan")}, "stall_timeout is nan"),
    ],
)
def test_a_cluster_checks_its_fields(change, message):
    with pytest.raises(InputError) as error:
        RayCluster(**change)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "files", "iterator"])
def test_batch_takes_folders_files_and_iterators(model, tmp_path, kind):
    files = draw(tmp_path / "photos", 5)
    sources = {"folder": str(tmp_path / "photos"), "files": files, "iterator": iter(files)}[kind]
    totals = []
    summary = batch(
        model,
        sources,
        tmp_path / "out",
        format="npz",
        preprocess=PREPROCESS,
        progress=lambda done, total: totals.append((done, total)),
    )
    assert (summary.images, summary.explained, summary.failures, summary.resumed) == (5, 5, 0, 0)
    assert listed(tmp_path / "out") == (list(range(5)), [])
    assert totals[-1][0] == 5
    assert {total for _, total in totals} <= ({None} if kind == "iterator" else {None, 5})


def test_batch_refuses_before_anything_is_written(model, tmp_path):
    draw(tmp_path / "photos", 1)
    for images, out, message in (
        (tmp_path / "photos", tmp_path / "photos" / "out", "among the images"),
        (tmp_path / "nowhere", tmp_path / "out", "no such image or folder"),
        ([""], tmp_path / "out", "the path of an image is empty"),
    ):
        with pytest.raises(InputError, match=message):
            batch(model, images, out, format="npz", preprocess=PREPROCESS)
    assert not (tmp_path / "out").exists()


def test_standard_input_is_given_once(monkeypatch):
    with pytest.raises(InputError, match="give '-' once"):
        ImageList(["-", "-"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/a.png\n/b.png\n")))
    assert list(ImageList(["-"])) == ["/a.png", "/b.png"]
