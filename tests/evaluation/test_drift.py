"""`drift`: the tests by hand, runs of `batch` in both formats, planted drift, what is refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from onnx_gradcam import drift
from onnx_gradcam.errors import InputError
from onnx_gradcam.evaluation.drift import energy_test, holm

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
planted = importlib.import_module("planted")


def blobs(rng, count, centre=(10.0, 10.0), width=4.0):
    """Gaussians around a place, for two classes by turns."""
    rows, columns = np.mgrid[:32, :30]
    places = rng.normal(centre, 3, (count, 2))
    return [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2)).astype(np.float32) for y, x in places]


@pytest.fixture
def runs(tmp_path):
    def make(**change):
        rng = np.random.default_rng(0)
        before, after = blobs(rng, 40), blobs(rng, 40, **change)
        number = len(list(tmp_path.iterdir()))
        return [planted.as_batch(tmp_path / f"{name}{number}", maps) for name, maps in (("a", before), ("b", after))]

    return make


def test_the_same_images_do_not_drift_and_moved_heat_does(runs):
    same = drift(*runs())
    assert not same.drifted
    assert {one.label for one in same.classes} == {"red", "green"}
    moved = drift(*runs(centre=(10, 20)))
    assert all(one.drifted and one.where < 0.01 for one in moved.classes)
    (down, right), (down_now, right_now) = moved.classes[0].centres
    assert abs(down_now - down) < 0.1
    assert right_now - right == pytest.approx(10 / 30, abs=0.1)


def test_heat_that_is_less_concentrated_drifts(runs, tmp_path):
    result = drift(*runs(width=7.0))
    assert all(one.concentration < 0.01 for one in result.classes)
    assert result.classes[0].sparsity[0] > result.classes[0].sparsity[1]
    result.write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 4
    assert "2 of 2 classes drifted" in page


def test_the_energy_distance_by_hand():
    """A third of all splits of four numbers has the two small ones on one side."""
    rng = np.random.default_rng(0)
    p = energy_test(np.array([[0.0], [1.0]]), np.array([[10.0], [11.0]]), rng, 2999)
    assert p == pytest.approx(1 / 3, abs=0.04)
    values = np.random.default_rng(1).standard_normal((60, 3))
    many = [energy_test(some[:30], some[30:], rng, 199) for some in (rng.permutation(values) for _ in range(200))]
    assert np.mean(np.array(many) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]


def test_what_is_refused(runs, tmp_path):
    reference, current = runs()
    with pytest.raises(InputError, match="holds no results of batch; give the folder of its --out"):
        drift(reference, tmp_path)
    with pytest.raises(InputError, match="give a probability between 0 and 1"):
        drift(reference, current, level=1)
    few = planted.as_batch(tmp_path / "few", blobs(np.random.default_rng(0), 6))
    with pytest.raises(InputError, match="no class has 8 heatmaps in both runs"):
        drift(reference, few)
    (part,) = reference.glob("part-*")
    text = (part / "index.jsonl").read_text().replace(".npz", ".png")
    (part / "index.jsonl").write_text(text)
    with pytest.raises(InputError, match="is an image, not a heatmap; run batch with --format npz or parquet"):
        drift(reference, current)
