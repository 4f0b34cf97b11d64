"""Values of other inputs for each image of a batch run: as `Explainer` with them, or one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from support.batch_runs import draw, failures
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer, batch
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError

HOW = {"scale": 1 / 255}
ROWS = [[0.4, -1.2, 0.7], [1.5, 0.3, -0.2], [-0.6, 0.9, 1.1]]


@pytest.fixture
def model(tmp_path) -> Path:
    """A table and a gain scale the channels before the scores, a photo's width moves them."""
    proto = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(table, G) "
        "e = Mul(g, gain) s = Cast<to=1>(orig_target_sizes) t = Gemm(s, S) h = Add(e, t) m = Mul(f, h) y = Gemm(m, W)",
        inputs="float[N,3,12,12] x, float[N,3] table, float[1] gain, int64[N,2] orig_target_sizes",
        K=(5, 3, 3, 3), G=(3, 5), S=(2, 5), W=(5, 4),
    )  # fmt: skip
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """Three photos, one of them larger than what `--format png` holds."""
    paths = draw(tmp_path / "photos", 3)
    cv2.imwrite(paths[2], cv2.resize(cv2.imread(paths[2]), (1500, 40), interpolation=cv2.INTER_NEAREST))
    return paths


@pytest.fixture
def table(tmp_path, photos) -> Path:
    """The values as JSON, as a file beside the table, and as an archive's array."""
    np.save(tmp_path / "one.npy", np.float32(ROWS[1]))
    np.savez(tmp_path / "more.npz", two=np.float32(ROWS[2]))
    cells = [json.dumps(ROWS[0]), "one.npy", "more.npz:two"]
    lines = [f'photos/{Path(p).name}, "{cell}", cat' for p, cell in zip(photos, cells, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["image,table,label", *reversed(lines)]) + "\n", "utf-8")
    return tmp_path / "t.csv"


def scores(out: Path) -> list[float]:
    (index,) = out.glob("part-*/index.jsonl")
    entries = sorted((json.loads(line) for line in index.read_text("utf-8").splitlines()), key=lambda e: e["image"])
    return [entry["scores"][0] for entry in entries]


def test_each_image_has_its_own_values_as_one_by_one(model, photos, table, tmp_path):
    said: list[str] = []
    summary = batch(
        model, photos, tmp_path / "out", format="npz", preprocess=HOW, feeds={"gain": 2}, feed_table=table,
        warn=said.append,
    )  # fmt: skip
    assert (summary.explained, summary.failures) == (3, 0)
    explainer = Explainer(model, preprocess=HOW, feeds={"gain": 2})
    for number, (photo, row) in enumerate(zip(photos, ROWS, strict=True)):
        expected = explainer(photo, feeds={"table": row})
        stored = np.load(tmp_path / "out" / "part-00000000" / f"{number:09d}.npz")
        assert np.abs(stored["heatmap"] - expected.arrays()["heatmap"]).max() <= 1e-6
        assert np.abs(stored["cam"] - expected.arrays()["cam"]).max() <= 1e-6
        assert np.abs(stored["scores"] - expected.arrays()["scores"]).max() <= 1e-6
        assert stored["cam"].any()
    assert any("'label'" in line for line in said)


def test_the_command_gives_the_same_also_where_images_are_held_smaller(model, photos, table, tmp_path):
    result = CliRunner().invoke(
        app,
        ["batch", str(model), *photos, "-o", str(tmp_path / "out"), "--format", "png", "--feed", "gain=2",
         "--feed-table", str(table), "--preprocess", json.dumps(HOW)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    explainer = Explainer(model, preprocess=HOW, feeds={"gain": 2})
    expected = [explainer(p, feeds={"table": r}).maps[0].target.score for p, r in zip(photos, ROWS, strict=True)]
    assert np.allclose(scores(tmp_path / "out"), expected, atol=1e-6)


def test_all_that_is_missing_is_named_before_anything_is_written(model, photos, tmp_path):
    with pytest.raises(InputError, match=r"inputs besides.*'table'.*'gain'.*--feed"):
        batch(model, photos, tmp_path / "out", format="npz", preprocess=HOW)
    with pytest.raises(InputError, match=r"'table' got 2 rows.*--feed-table"):
        batch(model, photos, tmp_path / "out", format="npz", preprocess=HOW, feeds={"gain": 2, "table": ROWS[:2]})
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_line_or_with_a_wrong_value_fails_alone(model, photos, tmp_path):
    name = [Path(p).name for p in photos]
    (tmp_path / "t.csv").write_text(f'image,table\nphotos/{name[0]},"[1, 2]"\nphotos/{name[2]},1\n', "utf-8")
    summary = batch(
        model, photos, tmp_path / "out", format="npz", preprocess=HOW, feeds={"gain": 2}, feed_table=tmp_path / "t.csv"
    )
    assert (summary.explained, summary.failures) == (1, 2)
    errors = [one["error"] for one in failures(tmp_path / "out")]
    assert "give 3 numbers" in errors[0]
    assert "no line for this image" in errors[1]


def test_another_table_does_not_continue_the_run(model, photos, table, tmp_path):
    options = {"format": "npz", "preprocess": HOW, "feeds": {"gain": 2}, "feed_table": table, "resume": True}
    batch(model, photos, tmp_path / "out", **options)
    assert batch(model, photos, tmp_path / "out", **options).resumed == 3
    table.write_text(table.read_text("utf-8").replace("-1.2", "1.2"), "utf-8")
    with pytest.raises(InputError, match="another feed table"):
        batch(model, photos, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'image'"),
        ("path,table\na.png,1\n", "no column 'image'"),
        ("image,table,table\na.png,1,2\n", "two columns 'table'"),
        ("image,table,\na.png,1,2\n", "two columns ''"),
        ("image,table\na.png,[1, 2]\n", "line 2 of .* has 3 cells for 2 columns; quote"),
        ("image,table\na.png,1\n./a.png,2\n", "line 3 .* earlier line"),
        ('image,table\na.png,"1\n', "line 2 .* cannot be read"),
        ("image,table\na.png," + "1" * 200_000, "cannot be read"),
        ("image\0", "not a UTF-8 text file"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_sentence(model, photos, tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as refusal:
        batch(model, photos, tmp_path / "out", format="npz", preprocess=HOW, feed_table=tmp_path / "t.csv")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_not_there_is_refused(model, photos, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        batch(model, photos, tmp_path / "out", format="npz", feed_table=tmp_path / "none.csv", preprocess=HOW)
