"""Models whose results for a row depend on the other rows of the batch are run on one image at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import graph, run, weight
from typer.testing import CliRunner

from onnx_gradcam.cli import app
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import ModelError, UnsupportedError
from onnx_gradcam.images.drawing import save_image
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.serve.repository import write_repository

PREPROCESS = {"resize": "stretch", "scale": 1 / 255}
SENTENCE = "results depend on the other images in it"


def dynamic(batch: int | str = "N", *, quantized: bool = True) -> onnx.ModelProto:
    """A classifier whose activations are quantized by the range of the whole batch, before and behind the layer."""

    def rounded(x: str, y: str) -> str:
        if not quantized:
            return f"{y} = Identity({x})"
        return f"{x}q, {x}s, {x}z = DynamicQuantizeLinear({x}) {y} = DequantizeLinear({x}q, {x}s, {x}z)"

    return graph(
        f"{rounded('x', 'u')} c = Conv(u, K) a = Relu(c) {rounded('a', 'b')} d = Conv(b, L) e = Relu(d) "
        f"p = GlobalAveragePool(e) f = Flatten(p) {rounded('f', 'g')} y = Gemm(g, W)",
        inputs=f"float[{batch},3,12,12] x",
        outputs=f"float[{batch},4] y",
        K=weight("K", 6, 3, 3, 3) * 5,
        L=weight("L", 6, 6, 3, 3) * 3,
        W=(6, 4),
    )


def picture(seed: int, brightest: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, brightest, (12, 12, 3), dtype=np.uint8)


PICTURES = [picture(1, 20), picture(2, 256), picture(3, 60)]


@pytest.mark.parametrize("batch", ["N", 4])
@pytest.mark.parametrize("stored", [False, True])
def test_an_image_does_not_depend_on_its_neighbours(batch, stored, tmp_path):
    model = dynamic(batch)
    if stored:
        attach(model).save(tmp_path / "explained.onnx")
    explainer = Explainer(tmp_path / "explained.onnx" if stored else model, preprocess=PREPROCESS)
    alone = [explainer(one) for one in PICTURES]
    together = list(explainer.stream(PICTURES, batch_size=8))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.heatmap, other.heatmap)
        np.testing.assert_array_equal(one.scores, other.scores)
    assert explainer.metadata.couples_rows
    assert any(SENTENCE in warning for warning in explainer.warnings)


def test_the_model_itself_does_depend_on_them():
    rows = np.stack([one.transpose(2, 0, 1) for one in PICTURES]).astype(np.float32) / 255
    proto = dynamic()
    together = run(proto, x=rows)["y"]
    alone = np.concatenate([run(proto, x=rows[i : i + 1])["y"] for i in range(3)])
    assert np.abs(together - alone).max() > 1e-3
    # What is explained is the model on each image alone.
    scores = [one.scores for one in Explainer(proto, preprocess=PREPROCESS).stream(PICTURES)]
    np.testing.assert_allclose(scores, alone, atol=1e-6)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "occlusion"])
def test_methods_that_run_the_model_many_times_do_not_mix_their_rows(method):
    one, other = (Explainer(dynamic(), method=method, preprocess=PREPROCESS, batch_size=size) for size in (1, 16))
    np.testing.assert_array_equal(one(PICTURES[0]).cam, other(PICTURES[0]).cam)


def test_a_head_with_a_range_over_the_batch_is_not_run_for_several_maps_at_once():
    with pytest.raises(UnsupportedError, match=r"DynamicQuantizeLinear .* computes a range or a mean over the whole"):
        attach(dynamic(), method="reciprocam")


def test_other_models_run_in_batches():
    explainer = Explainer(dynamic(quantized=False), preprocess=PREPROCESS)
    assert not explainer.metadata.couples_rows
    assert explainer.warnings == []
    # One image is always alone.
    assert not attach(dynamic(1)).metadata.couples_rows


def test_statistics_of_the_batch_couple_rows_too():
    model = graph(
        "c = Conv(x, K) n, m, v = BatchNormalization<training_mode=1>(c, one, zero, zero, one) a = Relu(n) "
        "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
        one=np.ones(6, np.float32),
        zero=np.zeros(6, np.float32),
    )
    assert attach(model, method="gradcam").metadata.couples_rows


def test_triton_is_given_one_row_per_batch(tmp_path):
    onnx.save(dynamic(), tmp_path / "dynamic.onnx")
    with pytest.raises(ModelError, match="use --max-batch 1"):
        write_repository(tmp_path / "dynamic.onnx", tmp_path / "repository")
    (folder,) = write_repository(tmp_path / "dynamic.onnx", tmp_path / "repository", max_batch=1)
    assert "max_batch_size: 1" in (folder / "config.pbtxt").read_text("utf-8")


def test_commands_say_so_and_run_one_image_at_a_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(dynamic(), "dynamic.onnx")
    Path("images").mkdir()
    names = [f"images/{i}.png" for i in range(len(PICTURES))]
    for name, one in zip(names, PICTURES, strict=True):
        save_image(one, name)
    runner, preprocess = CliRunner(), ["--preprocess", json.dumps(PREPROCESS)]
    explain = ["explain", "dynamic.onnx", *preprocess, "--json"]
    together = runner.invoke(app, [*explain, *names])
    assert SENTENCE in together.stderr
    for name, one in zip(names, json.loads(together.stdout)["images"], strict=True):
        assert json.loads(runner.invoke(app, [*explain, name]).stdout)["images"][0]["top"] == one["top"]
    for arguments in (
        ["batch", "dynamic.onnx", "images", "-o", "out", *preprocess],
        ["compare", "dynamic.onnx", "dynamic.onnx", "--images", "images", *preprocess],
        ["evaluate", "dynamic.onnx", "--images", "images", *preprocess],
        ["attach", "dynamic.onnx", "-o", "explained.onnx"],
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        assert SENTENCE in result.stderr, arguments
