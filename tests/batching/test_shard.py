"""One shard: its content, and that it is written atomically."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.batch_runs import PREPROCESS, classifier, draw

from onnx_gradcam import Explainer
from onnx_gradcam.batching.job import Crew, Job, in_order
from onnx_gradcam.batching.shard import explain_shard
from onnx_gradcam.errors import InputError, ModelError, NothingFoundError


@pytest.fixture
def make(model):
    """Crews that are closed in the end."""
    crews = []

    def of(source: Path = model, **options) -> Crew:
        crews.append(Crew(Job(model=source, **{"choices": {"preprocess": PREPROCESS}, "threads": 2, **options})))
        return crews[-1]

    yield of
    for crew in crews:
        crew.close()


def index(shard: Path) -> list[dict]:
    return [json.loads(line) for line in (shard / "index.jsonl").read_text("utf-8").splitlines()]


def test_parquet_holds_what_the_explainer_gives(make, model, images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    crew = make(target=["top2", 3], batch_size=4)
    record = explain_shard(images[:11], tmp_path / "part", crew, first=100)
    assert (record.first, record.images, record.failures) == (100, 11, 0)
    rows = parquet.read_table(tmp_path / "part").to_pylist()
    alone = Explainer(model, preprocess=PREPROCESS)
    expected = [(100 + i, path, m) for i, path in enumerate(images[:11]) for m in alone(path, ["top2", 3]).maps]
    assert [(r["image"], r["path"], r["class"]) for r in rows] == [(i, p, m.target.index) for i, p, m in expected]
    for row, (_, _, one) in zip(rows, expected, strict=True):
        shape = row["heatmap_height"], row["heatmap_width"]
        assert np.abs(np.reshape(row["heatmap"], shape) - one.heatmap).max() < 1e-6
        assert np.abs(np.reshape(row["cam"], (row["cam_height"], row["cam_width"])) - one.cam).max() < 1e-5
        assert row["score"] == pytest.approx(one.target.score, abs=1e-5)
        assert (row["label"], row["seen"]) == (one.target.label, [0, 0, 20, 20])


def test_npz_holds_what_the_explainer_gives(make, model, images, tmp_path):
    explain_shard(images[:5], tmp_path / "part", make(target=["top2"], format="npz"))
    alone = Explainer(model, preprocess=PREPROCESS)
    for entry, path in zip(index(tmp_path / "part"), images, strict=False):
        expected = alone(path, "top2")
        with np.load(tmp_path / "part" / entry["file"]) as arrays:
            assert np.abs(arrays["heatmap"] - np.stack([m.heatmap for m in expected.maps])).max() < 1e-6
            assert np.abs(arrays["cam"] - np.stack([m.cam for m in expected.maps])).max() < 1e-5
            assert arrays["classes"].tolist() == entry["classes"] == [m.target.index for m in expected.maps]
            assert arrays["scores"] == pytest.approx([m.target.score for m in expected.maps], abs=1e-5)


def test_png_is_the_sheet_of_explain(make, model, images, tmp_path):
    explain_shard(images[:3], tmp_path / "part", make(format="png"))
    alone = Explainer(model, preprocess=PREPROCESS)
    for entry, path in zip(index(tmp_path / "part"), images, strict=False):
        drawn = cv2.imread(str(tmp_path / "part" / entry["file"]))[:, :, ::-1]
        expected = alone(path).sheet().pixels
        assert drawn.shape == expected.shape
        assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_large_photographs_are_drawn_smaller(make, tmp_path):
    (path,) = draw(tmp_path / "large", 1, sizes=(3000,))
    explain_shard([path], tmp_path / "part", make(format="png"))
    drawn = cv2.imread(str(tmp_path / "part" / "000000000.png"))
    assert 1024 < max(drawn.shape) < 2 * 1024 + 100  # the photo and the heatmap over it, side by side


def test_a_finished_shard_is_left_alone(make, images, tmp_path):
    crew = make(format="npz")
    first = explain_shard(images[:5], tmp_path / "part", crew)
    before = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in (tmp_path / "part").iterdir()}
    crew.close()  # nothing could be explained any more
    assert explain_shard(images[:5], tmp_path / "part", crew) == first
    assert before == {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in (tmp_path / "part").iterdir()}


@pytest.mark.parametrize("change", ["another", "fewer", "order", "place"])
def test_a_shard_of_other_images_is_refused(make, images, tmp_path, change):
    crew = make(format="npz")
    explain_shard(images[:5], tmp_path / "part", crew)
    others = {
        "another": [*images[:4], images[7]],
        "fewer": images[:4],
        "order": images[4::-1],
        "place": images[:5],
    }
    with pytest.raises(InputError, match="not those that the run was started with"):
        explain_shard(others[change], tmp_path / "part", crew, first=5 if change == "place" else 0)


@pytest.mark.parametrize("damage", ["", "[1]", '{"first": 0}', "{", "\x00\xff", '{"first": 0, "extra": 1}'])
def test_a_damaged_record_is_computed_again(make, images, tmp_path, damage):
    crew = make(format="npz")
    first = explain_shard(images[:2], tmp_path / "part", crew)
    (tmp_path / "part" / "_record.json").write_bytes(damage.encode("latin-1"))
    assert explain_shard(images[:2], tmp_path / "part", crew) == first
    assert [e["image"] for e in index(tmp_path / "part")] == [0, 1]
    assert not list((tmp_path / ".drafts").iterdir())


@pytest.mark.parametrize("form", ["npz", "parquet"])
@pytest.mark.parametrize("damage", ["truncated", "deleted", "changed", "added"])
def test_a_damaged_file_is_computed_again(make, images, tmp_path, form, damage):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    crew = make(format=form)
    explain_shard(images[:3], tmp_path / "part", crew)
    contents = {f.name: f.read_bytes() for f in (tmp_path / "part").iterdir()}
    file = next(f for f in (tmp_path / "part").iterdir() if f.suffix in {".npz", ".parquet"})
    data = file.read_bytes()
    changes = {
        "truncated": lambda: file.write_bytes(data[:100]),
        "deleted": file.unlink,
        "changed": lambda: file.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:]),
        "added": lambda: (tmp_path / "part" / "other").write_bytes(b"x"),
    }
    changes[damage]()
    explain_shard(images[:3], tmp_path / "part", crew)
    assert {f.name for f in (tmp_path / "part").iterdir()} == set(contents)
    assert file.stat().st_size == len(data)


def test_bad_images_are_listed_and_the_others_go_on(make, images, tmp_path):
    broken, text = tmp_path / "broken.png", tmp_path / "text.jpg"
    broken.write_bytes(Path(images[0]).read_bytes()[:60])
    text.write_text("no image", "utf-8")
    given = [str(broken), images[1], str(tmp_path / "missing.png"), images[2], str(tmp_path), str(text)]
    seen = []
    record = explain_shard(given, tmp_path / "part", make(format="npz", batch_size=2), first=10, progress=seen.append)
    assert (record.images, record.failures, sum(seen)) == (6, 4, 6)
    assert [e["image"] for e in index(tmp_path / "part")] == [11, 13]
    failed = [json.loads(line) for line in (tmp_path / "part" / "_failures.jsonl").read_text("utf-8").splitlines()]
    assert [(f["image"], f["path"]) for f in failed] == [(10 + i, given[i]) for i in (0, 2, 4, 5)]
    assert "damaged" in failed[0]["error"]
    assert "missing.png" in failed[1]["error"]


def test_a_shard_of_bad_images_alone_is_finished(make, tmp_path):
    record = explain_shard([str(tmp_path / "a.png")] * 3, tmp_path / "part", make(format="npz"))
    assert (record.images, record.failures) == (3, 3)
    assert index(tmp_path / "part") == []


def test_a_image_at_which_the_model_fails_costs_no_other(make, images, tmp_path, monkeypatch):
    crew = make(format="npz", batch_size=4)
    bad, real = crew.explainer.prepared(images[2]).tensor, crew.explainer.runner.run

    def fails(batch, *choices, **tables):
        if any(np.array_equal(row, bad) for row in batch):
            raise ModelError("the model gives NaN for this image; check --preprocess")
        return real(batch, *choices, **tables)

    monkeypatch.setattr(crew.explainer.runner, "run", fails)
    record = explain_shard(images[:6], tmp_path / "part", crew)
    assert record.failures == 1
    assert sorted(e["image"] for e in index(tmp_path / "part")) == [0, 1, 3, 4, 5]
    (failed,) = (tmp_path / "part" / "_failures.jsonl").read_text("utf-8").splitlines()
    assert json.loads(failed)["image"] == 2
    assert "NaN" in json.loads(failed)["error"]


def test_a_image_in_which_a_detector_finds_nothing_costs_no_other(make, images, tmp_path, monkeypatch):
    crew = make(format="npz", batch_size=4)
    bad, real = crew.explainer.prepared(images[2]).tensor, crew.explainer.explained

    def finds(contents, *choices, **more):
        if any(np.array_equal(content.tensor, bad) for content in contents):
            raise NothingFoundError("the model does not find anything in this image: its best score is 0")
        return real(contents, *choices, **more)

    monkeypatch.setattr(crew.explainer, "explained", finds)
    assert explain_shard(images[:6], tmp_path / "part", crew).failures == 1
    assert sorted(e["image"] for e in index(tmp_path / "part")) == [0, 1, 3, 4, 5]
    # Images without any object are no fault of the model.
    assert explain_shard(images[2:3], tmp_path / "empty", crew).failures == 1


def test_a_model_that_always_fails_stops_the_run(make, images, tmp_path, monkeypatch):
    crew = make(format="npz")

    def fails(*_, **__):
        raise ModelError("the model gives NaN")

    monkeypatch.setattr(crew.explainer.runner, "run", fails)
    with pytest.raises(ModelError, match="NaN"):
        explain_shard(images[:6], tmp_path / "part", crew)
    assert not (tmp_path / "part").exists()
    assert list((tmp_path / ".drafts").iterdir()) == []


def test_images_of_one_size_run_together(make, tmp_path, monkeypatch):
    free = classifier(tmp_path / "free.onnx", size="free")
    paths = draw(tmp_path / "mixed", 24, sizes=(16, 20, 24))
    crew = make(free, format="npz", batch_size=4)
    ran, real = [], crew.explainer.runner.run
    monkeypatch.setattr(crew.explainer.runner, "run", lambda b, *c, **t: ran.append(len(b)) or real(b, *c, **t))
    explain_shard(paths, tmp_path / "part", crew)
    assert sorted(ran) == [4] * 6
    for entry in index(tmp_path / "part"):
        with np.load(tmp_path / "part" / entry["file"]) as arrays:
            assert arrays["heatmap"].shape[-1] == (16, 20, 24)[entry["image"] % 3]


def test_little_waits_where_every_image_has_another_size(make, tmp_path, monkeypatch):
    free = classifier(tmp_path / "free.onnx", size="free")
    paths = draw(tmp_path / "mixed", 30, sizes=tuple(range(16, 46)))
    crew = make(free, format="npz", batch_size=2)
    ahead, most, real = [0], [0], crew.explainer.prepared
    lock = threading.Lock()

    def prepared(path, feeds):
        with lock:
            ahead[0] += 1
            most[0] = max(most[0], ahead[0])
        return real(path, feeds)

    def progress(count):
        with lock:
            ahead[0] -= count

    monkeypatch.setattr(crew.explainer, "prepared", prepared)
    explain_shard(paths, tmp_path / "part", crew, progress=progress)
    assert len(index(tmp_path / "part")) == 30
    assert most[0] <= 2 * 2 + 4 * 2 + 2 * 3 + 2  # read ahead, waiting for their like, in the runs


def test_two_who_write_the_same_shard_leave_one(make, images, tmp_path):
    crew = make(format="npz", batch_size=2)
    with ThreadPoolExecutor(2) as both:
        done = [both.submit(explain_shard, images[:20], tmp_path / "part", crew) for _ in range(2)]
        assert done[0].result() == done[1].result()
    assert [e["image"] for e in index(tmp_path / "part")] == list(range(20))
    assert list((tmp_path / ".drafts").iterdir()) == []


def test_no_more_is_begun_than_allowed():
    begun, taken = [], []
    with ThreadPoolExecutor(2) as pool:
        for result in in_order(pool, lambda i: begun.append(i) or i, range(20), 3):
            taken.append(result)
            assert len(begun) <= len(taken) + 3
    assert taken == list(range(20))


def test_the_heatmap_of_a_letterboxed_image_covers_more_than_the_image(make, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (15, 30, 3), np.uint8))
    described = {**PREPROCESS, "resize": "letterbox"}
    explain_shard([str(path)], tmp_path / "part", make(choices={"preprocess": described}))
    (row,) = parquet.read_table(tmp_path / "part").to_pylist()
    assert row["seen"] == [0, -7.5, 30, 22.5]
