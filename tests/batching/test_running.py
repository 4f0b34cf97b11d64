"""Whole runs: what is refused, what is continued, what is left behind."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from pyarrow import parquet
from support.batch_runs import PREPROCESS, classifier, draw, failures, listed
from support.graphs import placed_detector
from typer.testing import CliRunner

from onnx_gradcam import Explainer, batch
from onnx_gradcam.batching import running
from onnx_gradcam.batching.job import Job
from onnx_gradcam.batching.manifest import model_digest
from onnx_gradcam.batching.records import cut
from onnx_gradcam.batching.running import run_batch
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.runtime.detections import Selection


@pytest.fixture
def job(model):
    def of(**options):
        options = {"model": model, "choices": {"preprocess": PREPROCESS}, "format": "npz", "threads": 2, **options}
        return Job(**{"shard_size": 8, **options})

    return of


def test_every_image_once_in_shards_of_the_size_asked_for(job, images, tmp_path):
    seen = []
    summary = run_batch(job(), iter(images), tmp_path / "out", progress=seen.append)
    assert (summary.images, summary.failures, summary.resumed, sum(seen)) == (40, 0, 0, 40)
    assert listed(tmp_path / "out") == (list(range(40)), [])
    shards = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert shards == ["_failures.jsonl", "_manifest.json", *(f"part-{i:08d}" for i in range(5))]


def test_failures_of_all_shards_lie_in_one_file_in_their_order(job, images, tmp_path):
    given = [*images[:10], "/nowhere/a.png", *images[10:20], "/nowhere/b.png"]
    summary = run_batch(job(), given, tmp_path / "out")
    assert summary.failures == 2
    assert [(f["image"], f["path"]) for f in failures(tmp_path / "out")] == [
        (10, "/nowhere/a.png"),
        (21, "/nowhere/b.png"),
    ]


def test_paths_are_asked_for_as_they_are_needed(job, images, tmp_path):
    asked, done = [0], [0]

    def endless():
        for path in itertools.cycle(images):
            asked[0] += 1
            assert asked[0] <= done[0] + 4 * 8  # what is worked on: three shards, and one that is being cut
            if asked[0] > 400:
                return
            yield path

    def progress(count):
        done[0] += count

    summary = run_batch(job(), endless(), tmp_path / "out", progress=progress)
    assert summary.images == 400


def test_memory_does_not_grow_with_the_images(job, images, tmp_path):
    held = []

    def watched():
        for number in range(700):
            if number % 25 == 0:
                gc.collect()  # or what is held depends on when cycles were last collected
            held.append(tracemalloc.get_traced_memory()[0])
            yield images[number % 40]

    tracemalloc.start()
    try:
        run_batch(job(shard_size=25), watched(), tmp_path / "out")
    finally:
        tracemalloc.stop()
    # At any one moment a shard may be on its way to the disk: the least that is held of many moments is without it.
    assert min(held[500:]) - min(held[100:300]) < 100_000


def test_a_run_goes_on_where_it_stopped_and_redoes_nothing(job, images, tmp_path):
    def stops():
        yield from images[:27]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(job(), stops(), tmp_path / "out")
    there = {f: f.stat().st_ino for f in (tmp_path / "out").glob("part-*/*")}
    summary = run_batch(job(), images, tmp_path / "out", resume=True)
    assert summary.images == 40
    assert summary.resumed == 8 * len({f.parent for f in there})
    assert there == {f: f.stat().st_ino for f in there}
    assert listed(tmp_path / "out") == (list(range(40)), [])
    assert not (tmp_path / "out" / ".drafts").exists()


def test_a_damaged_shard_alone_is_computed_again(job, images, tmp_path):
    run_batch(job(), [*images[:30], "/nowhere/a.png"], tmp_path / "out")
    kept = {f: f.stat().st_ino for f in (tmp_path / "out").glob("part-*/*") if f.parent.name != "part-00000001"}
    (tmp_path / "out" / "part-00000001" / "000000009.npz").unlink()
    said = []
    summary = run_batch(job(), [*images[:30], "/nowhere/a.png"], tmp_path / "out", resume=True, warn=said.append)
    assert (summary.images, summary.explained, summary.failures, summary.resumed) == (31, 30, 1, 22)
    assert len(said) == 1
    assert "part-00000001' is damaged and is computed again" in said[0]
    assert listed(tmp_path / "out") == (list(range(30)), [30])
    assert kept == {f: f.stat().st_ino for f in kept}


def test_threads_batch_size_and_engine_may_change_on_the_way(job, images, tmp_path):
    run_batch(job(threads=1, batch_size=3), images, tmp_path / "out")
    assert run_batch(job(), images, tmp_path / "out", resume=True).resumed == 40


def test_a_run_is_not_begun_over_another(job, images, tmp_path):
    run_batch(job(), images[:8], tmp_path / "out")
    with pytest.raises(InputError, match="already contains a run; continue it with --resume"):
        run_batch(job(), images[:8], tmp_path / "out")


def test_a_folder_with_something_else_in_it_is_refused(job, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", "utf-8")
    for resume in (False, True):
        with pytest.raises(InputError, match="is not empty and does not contain a run"):
            run_batch(job(), images, tmp_path / "out", resume=resume)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_resuming_nothing_begins_a_run(job, images, tmp_path):
    assert run_batch(job(), images, tmp_path / "out", resume=True).images == 40


CHANGES = {
    "method": ({"choices": {"preprocess": PREPROCESS, "method": "layercam"}}, r"explanation \(method was \"gradcam\""),
    "choice": ({"choices": {"preprocess": PREPROCESS, "seed": 5}}, r"choices \(seed was null, is now 5\)"),
    "preprocessing": ({"choices": {"preprocess": {"scale": 1.0}}}, r"preprocessing \(scale was 0.0039"),
    "labels": ({"choices": {"preprocess": PREPROCESS, "labels": list("abcd")}}, "labels"),
    "target": ({"target": 2}, r"target \(was null, is now 2\)"),
    "format": ({"format": "png"}, r"format \(was \"npz\", is now \"png\"\)"),
    "shards": ({"shard_size": 9}, r"shard size \(was 8, is now 9\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_not_continued(job, images, tmp_path, change):
    options, sentence = CHANGES[change]
    run_batch(job(), images[:16], tmp_path / "out")
    before = sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "out").rglob("*"))
    with pytest.raises(InputError, match=f"contains a run with another {sentence}") as error:
        run_batch(job(**options), images, tmp_path / "out", resume=True)
    assert "choose another folder with -o" in str(error.value)
    assert before == sorted((f, f.stat().st_mtime_ns) for f in (tmp_path / "out").rglob("*"))


def test_another_model_is_not_continued_with(job, images, tmp_path):
    run_batch(job(), images[:16], tmp_path / "out")
    other = classifier(tmp_path / "other.onnx", seed=4)  # of the same architecture
    with pytest.raises(InputError, match="contains a run with another model"):
        run_batch(job(model=other), images, tmp_path / "out", resume=True)


def test_another_version_is_not_continued_with(job, images, tmp_path):
    run_batch(job(), images[:16], tmp_path / "out")
    file = tmp_path / "out" / "_manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "version": "0.0.9"}), "utf-8")
    with pytest.raises(InputError, match=r'another version \(was "0.0.9", '):
        run_batch(job(), images, tmp_path / "out", resume=True)


@pytest.mark.parametrize("count", [15, 24, 39])
def test_fewer_images_are_not_the_same_run(job, images, tmp_path, count):
    run_batch(job(), images, tmp_path / "out")
    with pytest.raises(InputError, match="not those that the run was started with"):
        run_batch(job(), images[:count], tmp_path / "out", resume=True)


def test_one_more_image_is_not_the_same_run(job, images, tmp_path):
    run_batch(job(), images[:12], tmp_path / "out")
    with pytest.raises(InputError, match="not those that the run was started with"):
        run_batch(job(), images[:13], tmp_path / "out", resume=True)


@pytest.mark.parametrize("damage", ["", "[]", "{", "\xff\x00", "[" * 100_000])
def test_a_damaged_manifest_is_refused(job, images, tmp_path, damage):
    run_batch(job(), images[:8], tmp_path / "out")
    (tmp_path / "out" / "_manifest.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(InputError, match=r"_manifest.json' is damaged"):
        run_batch(job(), images[:8], tmp_path / "out", resume=True)


def test_nothing_is_written_for_a_class_that_is_not_there(job, images, tmp_path):
    with pytest.raises(TargetError, match="out of range"):
        run_batch(job(target=4), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_for_a_model_that_is_none(job, images, tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"none")
    with pytest.raises(ModelError):
        run_batch(job(model=tmp_path / "none.onnx"), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_is_refused_at_once(job, images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow.*'\.\[batch\]'"):
        run_batch(job(format="parquet"), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_one_sentence(job, images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(running, "_gather_failures", full)
    with pytest.raises(InputError, match=r"No space left on device.*--resume"):
        run_batch(job(), images, tmp_path / "out")
    monkeypatch.undo()
    assert run_batch(job(), images, tmp_path / "out", resume=True).resumed == 40


def test_a_file_where_the_folder_should_be_is_said_in_one_sentence(job, images, tmp_path):
    (tmp_path / "out").write_text("", "utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        run_batch(job(), images, tmp_path / "out")


def test_the_digest_is_of_the_weights_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "m.onnx"
        model = onnx.load(classifier(tmp_path / "inside.onnx"))
        onnx.save(model, file, save_as_external_data=True, location="weights", size_threshold=0)
    assert model_digest(tmp_path / "a" / "m.onnx") == model_digest(tmp_path / "b" / "m.onnx")
    data = bytearray((tmp_path / "b" / "weights").read_bytes())
    data[5] ^= 1
    (tmp_path / "b" / "weights").write_bytes(data)
    assert model_digest(tmp_path / "a" / "m.onnx") != model_digest(tmp_path / "b" / "m.onnx")


def test_shards_are_cut_one_at_a_time():
    numbers = iter(range(10))
    shards = cut((str(n) for n in numbers), 4)
    first = next(shards)
    assert (first.number, first.first, first.paths) == (0, 0, ["0", "1", "2", "3"])
    assert next(numbers) == 4
    assert [(s.number, s.first, len(s.paths)) for s in shards] == [(1, 4, 4), (2, 8, 1)]


def test_paths_that_are_no_text_are_told_apart(job, tmp_path):
    (path,) = draw(tmp_path / "p", 1)
    odd = [f"{tmp_path}/p/\udcff.png", f"{tmp_path}/p/\udcfe.png"]
    for name in odd:
        with open(name, "wb") as file, open(path, "rb") as source:  # noqa: PTH123
            file.write(source.read())
    assert run_batch(job(shard_size=2), odd, tmp_path / "out").images == 2
    assert run_batch(job(shard_size=2), odd, tmp_path / "out", resume=True).resumed == 2
    with pytest.raises(InputError, match="not those"):
        run_batch(job(shard_size=2), odd[::-1], tmp_path / "out", resume=True)
    pytest.importorskip("pyarrow")
    run_batch(job(format="parquet"), odd, tmp_path / "table")
    assert listed(tmp_path / "table") == ([0, 1], [])


# ----- detectors -------------------------------------------------------------


LETTERBOXED = {"resize": "letterbox", "size": [32, 32], "scale": 1 / 64, "mean": [2], "std": [1]}


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    onnx.save(placed_detector(3), path)
    return path


def wide(folder: Path) -> Path:
    """Two images that are wider than high, and larger than what a sheet keeps of one."""
    folder.mkdir()
    for number in range(2):
        blocks = np.random.default_rng(number).integers(0, 256, (5, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(blocks, (1600, 1000), interpolation=cv2.INTER_NEAREST))
    return folder


@pytest.mark.parametrize("format", ["parquet", "npz", "png"])
def test_a_record_for_each_box(detector, tmp_path, format):  # noqa: A002 - the option's name
    explainer = Explainer(detector, preprocess=LETTERBOXED)
    images = wide(tmp_path / "photos")
    box = Selection(which="all", least=0.3, most=3)
    batch(detector, images, tmp_path / "out", box=box, format=format, preprocess=LETTERBOXED)
    (shard,) = (tmp_path / "out").glob("part-*")
    for number, image in enumerate(sorted(images.iterdir())):
        expected = [m.boxes[0] for m in explainer(image, box=box).maps]
        assert len(expected) > 1
        if format == "parquet":
            rows = parquet.read_table(shard).to_pylist()
            rows = [row for row in rows if row["image"] == number]
            found = [(row["box_index"], row["class"], row["box"]) for row in rows]
        else:
            entries = [json.loads(line) for line in (shard / "index.jsonl").read_text("utf-8").splitlines()]
            (entry,) = (e for e in entries if e["image"] == number)
            found = [(b["index"], b["class"], b["xyxy"]) for (b,) in entry["boxes"]]
        assert [f[:2] for f in found] == [(b.index, b.target.index) for b in expected]
        np.testing.assert_allclose([f[2] for f in found], [b.xyxy for b in expected], atol=0.02)


def test_all_boxes_are_all(detector, tmp_path):
    images = wide(tmp_path / "photos")
    batch(detector, images, tmp_path / "out", box="all", format="npz", preprocess=LETTERBOXED)
    (shard,) = (tmp_path / "out").glob("part-*")
    explainer = Explainer(detector, preprocess=LETTERBOXED)
    for line in (shard / "index.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        expected = explainer.boxes(sorted(images.iterdir())[entry["image"]])
        assert len(entry["boxes"]) == len(expected) > 12


def test_an_image_with_fewer_boxes_stops_no_other(detector, tmp_path):
    images = wide(tmp_path / "photos")
    explainer = Explainer(detector, preprocess=LETTERBOXED)
    counts = [len(explainer.boxes(image, least=0.3)) for image in sorted(images.iterdir())]
    assert counts[0] != counts[1]
    box = Selection(which="number", value=min(counts), least=0.3)
    summary = batch(detector, images, tmp_path / "out", box=box, format="npz", preprocess=LETTERBOXED)
    assert (summary.explained, summary.failures) == (1, 1)
    assert f"there is no box {min(counts)} in this image" in failures(tmp_path / "out")[0]["error"]


def test_one_map_of_all_boxes_of_a_class(detector, tmp_path):
    images = wide(tmp_path / "photos")
    batch(detector, images, tmp_path / "out", target=1, box="sum", format="npz", preprocess=LETTERBOXED)
    (shard,) = (tmp_path / "out").glob("part-*")
    entry = json.loads((shard / "index.jsonl").read_text("utf-8").splitlines()[0])
    expected = Explainer(detector, preprocess=LETTERBOXED).boxes(sorted(images.iterdir())[entry["image"]], 1)
    assert [b["index"] for b in entry["boxes"][0]] == [b.index for b in expected]
    assert len(expected) > 1


def test_another_choice_of_boxes_is_another_run(detector, tmp_path):
    images = wide(tmp_path / "photos")
    batch(detector, images, tmp_path / "out", box="all", format="npz", preprocess=LETTERBOXED)
    with pytest.raises(InputError, match="another box"):
        batch(detector, images, tmp_path / "out", format="npz", preprocess=LETTERBOXED, resume=True)


def test_boxes_of_a_model_without_any_end_the_run(model, tmp_path):
    with pytest.raises(TargetError, match="no detector"):
        batch(model, wide(tmp_path / "photos"), tmp_path / "out", box="all", format="npz", preprocess=PREPROCESS)


def test_boxes_on_the_command_line(detector, tmp_path):
    words = ["batch", str(detector), str(wide(tmp_path / "photos")), "-o", str(tmp_path / "out"), "--format", "npz"]
    words += ["--preprocess", json.dumps(LETTERBOXED), "--box", "all", "--least", "0.4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (shard,) = (tmp_path / "out").glob("part-*")
    entries = [json.loads(line) for line in (shard / "index.jsonl").read_text("utf-8").splitlines()]
    assert all(score >= 0.4 for entry in entries for score in entry["scores"])
    assert sum(len(entry["boxes"]) for entry in entries) > 2
