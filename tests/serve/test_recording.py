"""The log of requests: the answers' own values, readable by `drift`, bounded, and never in a request's way."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import time
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="onnx-gradcam[serve] is not installed")
pytest.importorskip("pyarrow", reason="onnx-gradcam[batch] is not installed")

from pyarrow import parquet

from onnx_gradcam import drift
from onnx_gradcam.batching.writers import PARQUET
from onnx_gradcam.errors import InputError
from onnx_gradcam.serve import recording as module
from onnx_gradcam.serve.hosting import read_sources
from onnx_gradcam.serve.query import Query, Tensor
from onnx_gradcam.serve.recording import Recording, RequestLog
from onnx_gradcam.serve.service import Service

pytestmark = pytest.mark.serve

BATCH_COLUMNS = ["image", "path", "class", "label", "score", "heatmap", "heatmap_height", "heatmap_width", "cam"]
BATCH_COLUMNS += ["cam_height", "cam_width", "seen", "box", "box_index"]


@pytest.fixture
def opened(explained):
    """A log and a service that writes to it, closed by the test or at the end."""
    logs = []

    def open_(folder, errors=None, **choices):
        settings = Recording(folder=folder, **{"sample": 1.0, **choices})
        log = RequestLog(settings, apart=False, stopped=(errors if errors is not None else []).append).__enter__()
        service = Service(lambda: read_sources(explained, settings={"threads": 1}), requests=log)

        def close():
            service.close()
            log.__exit__(None, None, None)

        logs.append(close)
        return service.find(None), close

    yield open_
    for close in logs:
        close()


def answers(model, *photos: bytes, **parameters) -> dict:
    outputs = ["heatmap_class", "label", "score", "cam", "heatmap"]
    query = Query([Tensor("image_bytes", "BYTES", [len(photos)], list(photos))], parameters, outputs)
    return {one.name: one.data for one in model.answer(query)}


def table(folder):
    shards = sorted(folder.glob("part-*"))
    return [row for shard in shards for row in parquet.read_table(shard / PARQUET).to_pylist()]


def shifted(photo: bytes, count: int, right: int, seed: int) -> list[bytes]:
    """The image with a little noise, its content moved to the right."""
    pixels = np.roll(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR), right, 1).astype(float)
    rng = np.random.default_rng(seed)
    noisy = [np.clip(pixels + 12 * rng.standard_normal(pixels.shape), 0, 255).astype(np.uint8) for _ in range(count)]
    return [cv2.imencode(".png", one)[1].tobytes() for one in noisy]


def test_logged_values_are_those_of_the_answers(opened, photo, tmp_path):
    model, close = opened(tmp_path / "log")
    got = answers(model, photo, photo, target=["star", "circle"])
    close()
    rows = table(tmp_path / "log")
    assert [row["class"] for row in rows] == list(got["heatmap_class"])
    assert [row["label"] for row in rows] == list(got["label"]) == ["star", "circle"] * 2
    assert [row["image"] for row in rows] == [0, 0, 1, 1]
    for i, row in enumerate(rows):
        assert row["score"] == pytest.approx(float(got["score"][i]), rel=1e-6)
        for name in ("heatmap", "cam"):
            shape = row[f"{name}_height"], row[f"{name}_width"]
            np.testing.assert_array_equal(np.reshape(np.float32(row[name]), shape), got[name][i])
        assert abs(row["time"] - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert list(rows[0]) == [*BATCH_COLUMNS, "time"], "no image content, unless it is asked for"


def test_image_files_are_logged_on_request_alone(opened, photo, tmp_path):
    model, close = opened(tmp_path / "log", images=True)
    answers(model, photo)
    close()
    assert table(tmp_path / "log")[0]["file"] == photo


def test_drift_reads_two_logs_and_finds_what_was_planted(opened, photo, tmp_path):
    for name, right, seed in (("march", 0, 0), ("april", 0, 1), ("may", 12, 2)):
        model, close = opened(tmp_path / name)
        answers(model, *shifted(photo, 20, right, seed), target="star")
        close()
    assert not drift(tmp_path / "march", tmp_path / "april").drifted
    assert [one.label for one in drift(tmp_path / "march", tmp_path / "may").classes if one.drifted] == ["star"]


def test_a_sample_is_a_sample(opened, photo, tmp_path):
    model, close = opened(tmp_path / "log", sample=0.25)
    for _ in range(10):
        answers(model, *[photo] * 32)
    close()
    assert 40 < len(table(tmp_path / "log")) < 125  # 80, and more than five standard deviations


def test_shards_are_bounded_in_number_and_a_log_is_continued(opened, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD_IMAGES", 1)
    for _ in range(2):
        model, close = opened(tmp_path / "log", shards=2)
        for _ in range(3):
            answers(model, photo)
            time.sleep(0.2)
        close()
    names = sorted(one.name for one in (tmp_path / "log").glob("part-*"))
    assert len(names) == 2
    assert names[-1] >= "part-00000003"


def test_a_log_that_cannot_be_written_ends_once_and_requests_are_answered(opened, photo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    errors: list[Exception] = []
    monkeypatch.setattr(module, "_SHARD_IMAGES", 1)
    monkeypatch.setattr(module, "publish", full)
    model, close = opened(tmp_path / "log", errors)
    for _ in range(5):
        assert answers(model, photo)["label"]
        time.sleep(0.1)
    close()
    assert [error.errno for error in errors] == [28]
    assert table(tmp_path / "log") == []
    assert list((tmp_path / "log" / ".drafts").iterdir()) == []


def test_a_disk_that_does_not_keep_up_loses_entries_not_memory(opened, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAITING_BYTES", 100_000)  # two heatmaps of 96x96
    model, close = opened(tmp_path / "log")
    answers(model, *[photo] * 8)
    close()
    assert 1 <= len(table(tmp_path / "log")) <= 2


def test_what_is_refused(opened, explained, tmp_path, monkeypatch):
    for sample in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            Recording(folder=tmp_path, sample=sample)
    with pytest.raises(InputError, match="a whole number above 0"):
        Recording(folder=tmp_path, shards=0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"")
    with pytest.raises(InputError, match="contains no log of requests; choose another folder with --log-requests"):
        opened(tmp_path / "photos")
    assert [one.name for one in (tmp_path / "photos").iterdir()] == ["one.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        opened(tmp_path / "file")
    opened(tmp_path / "log")
    with pytest.raises(InputError, match="another process is writing"):
        opened(tmp_path / "log")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"--log-requests needs pyarrow.*'\.\[batch\]'"):
        opened(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_killed_server_leaves_readable_shards(explained, start_server, photo, tmp_path, explainer):
    folder = tmp_path / "log"
    live = start_server(explained, "--threads=1", f"--log-requests={folder}", "--log-sample=1")
    data = [base64.b64encode(photo).decode()] * 32
    document = {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [32], "data": data}]}
    for _ in range(9):  # a shard has 256 images
        assert live.infer({**document, "outputs": [{"name": "label"}]})[0] == 200
    for _ in range(100):
        if table(folder):
            break
        time.sleep(0.1)
    start_server.stopped(live)
    os.kill(live.process.pid, signal.SIGKILL)
    live.process.wait(10)
    rows = table(folder)
    assert len(rows) == 256
    expected = explainer(photo).maps[0]
    assert {row["label"] for row in rows} == {expected.target.label}
    np.testing.assert_allclose(rows[0]["cam"], expected.cam.reshape(-1), rtol=1e-4, atol=1e-5)


def test_each_model_of_a_folder_has_a_log_of_its_own(explained, start_server, photo, tmp_path):
    models = tmp_path / "models"
    for name in ("one", "two"):
        (models / name / "3").mkdir(parents=True)
        (models / name / "3" / "model.onnx").write_bytes(explained.read_bytes())
    options = ["--threads=1", f"--log-requests={tmp_path / 'log'}", "--log-sample=1"]
    live = start_server(models, *options, name="")
    encoded = {"instances": [{"b64": base64.b64encode(photo).decode()}]}
    for name in ("one", "two", "two"):
        assert live.request(f"/v1/models/{name}:predict", json.dumps(encoded).encode())[0] == 200
    start_server.stopped(live)
    assert live.close() == 0
    counts = {name: len(table(tmp_path / "log" / name / "3")) for name in ("one", "two")}
    assert counts == {"one": 1, "two": 2}


def test_the_server_says_what_is_wrong_with_the_log(explained, start_server, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(RuntimeError, match=re.escape("cannot be made")):
        start_server(explained, f"--log-requests={tmp_path / 'x'}")
    with pytest.raises(RuntimeError, match="above 0 and at most 1"):
        start_server(explained, f"--log-requests={tmp_path / 'y'}", "--log-sample=0")
