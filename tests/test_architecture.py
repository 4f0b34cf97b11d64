"""Every statement of docs/architecture.md that a program can check."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.graphs import graph, images
from test_imports import ALLOWED, FILES, part

import onnx_gradcam
from onnx_gradcam import attach
from onnx_gradcam.metadata import Metadata

PACKAGE = Path(onnx_gradcam.__file__).parent


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def explained():
    model = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4)
    )
    return attach(model)


def session(explained) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(explained.to_proto().SerializeToString(), providers=["CPUExecutionProvider"])


def test_every_file_it_names_exists(page, repository):
    paths = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", page))
    assert len(paths) > 40
    assert sorted(path for path in paths if not (PACKAGE / path).exists() and not (repository / path).exists()) == []


def test_every_package_is_in_its_table_with_its_imports(page):
    table = page[page.index("## Packages") : page.index("## What an explained model")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    rows = {name.strip("`"): {other for other in imports.split(", ") if other} for name, _, imports in cells}
    assert rows == ALLOWED


def test_every_part_is_in_the_table():
    assert {part(module) for module in FILES.values()} - {"cli", "__main__", "onnx_gradcam"} <= set(ALLOWED)


def test_names_types_and_shapes_of_an_explained_model(page, explained):
    run = session(explained)
    outputs = {o.name: (o.type, len(o.shape)) for o in run.get_outputs()}
    assert outputs == {
        "y": ("tensor(float)", 2),
        "heatmap": ("tensor(float)", 3),
        "cam": ("tensor(float)", 3),
        "heatmap_class": ("tensor(int64)", 1),
    }
    assert [i.name for i in run.get_overridable_initializers()] == ["target_class"]
    assert all(f"`{name}`" in page for name in (*outputs, "target_class") if name != "y")


def test_classes_and_rows_as_it_says(explained):
    run = session(explained)
    x = images(3)

    def explain(rows, classes):
        return run.run(["heatmap", "heatmap_class", "y"], {"x": rows, "target_class": np.array(classes, np.int64)})

    heatmaps, classes, scores = explain(x, [-1])
    assert classes.tolist() == scores.argmax(1).tolist()
    assert 0 <= heatmaps.min() <= heatmaps.max() <= 1
    alone = explain(x[1:2], [int(classes[1])])[0]
    np.testing.assert_allclose(heatmaps[1:2], alone, atol=1e-6)
    with pytest.raises(Exception, match="out of"):
        explain(x, [4])


def test_names_that_are_taken_get_a_prefix():
    model = graph(
        "heatmap = Conv(x, K) a = Relu(heatmap) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )
    assert attach(model).metadata.heatmap == "gradcam_heatmap"


def test_metadata_entries_are_the_fields(explained):
    entries = {p.key for p in explained.to_proto().metadata_props}
    assert entries <= {f"onnx_gradcam.{field.name}" for field in dataclasses.fields(Metadata)}
    assert len(entries) > 20
