"""Inputs besides the image: fed by name, by convention, as constants, and all that is missing named at once."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph
from support.helpers import quiet_session
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, evaluate, inspect, verify
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError
from onnx_gradcam.feeds import Declared, Feeds, View
from onnx_gradcam.options import Options

MODELS = Path(__file__).parents[2].parent / "shared" / "detectors" / "models"
HOW = {"scale": 1 / 255}
TABLE = [0.4, -1.2, 0.7]
HEAD = "a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p)"


def with_table() -> onnx.ModelProto:
    """The table scales the channels before the scores, so that it changes where the class is seen."""
    return graph(
        f"c = Conv<pads=[1,1,1,1]>(x, K) {HEAD} g = Gemm(table, G) m = Mul(f, g) y = Gemm(m, W)",
        inputs="float[N,3,12,12] x, float[N,3] table",
        K=(5, 3, 3, 3), G=(3, 5), W=(5, 4),
    )  # fmt: skip


def with_depth() -> onnx.ModelProto:
    return graph(
        "r = Conv<pads=[1,1,1,1]>(x, K) q = Relu(r) d = Conv<pads=[1,1,1,1]>(depth, D) e = Relu(d) c = Add(q, e) "
        f"{HEAD} y = Gemm(f, W)",
        inputs="float[1,3,12,12] x, float[1,1,12,12] depth",
        outputs="float[1,4] y",
        K=(5, 3, 3, 3), D=(5, 1, 3, 3), W=(5, 4),
    )  # fmt: skip


def with_conventions() -> onnx.ModelProto:
    """A size, a scale, a flag and a state, which all change the score and the map."""
    return graph(
        f"c = Conv<pads=[1,1,1,1]>(x, K) {HEAD} s = Cast<to=1>(orig_target_sizes) i = Mul(s, hundredth) "
        "o = Concat<axis=1>(i, scale_factor, h) g = Gemm(o, G) z = Not(is_training) w = Cast<to=1>(z) v = Mul(g, w) "
        "m = Mul(f, v) y = Gemm(m, W) h_next = Add(h, h)",
        inputs="float[1,3,12,12] x, int64[1,2] orig_target_sizes, float[1,2] scale_factor, bool[1] is_training, "
        "float[1,2] h",
        outputs="float[1,4] y, float[1,2] h_next",
        K=(5, 3, 3, 3), G=(6, 5), W=(5, 4), hundredth=np.float32(0.01),
    )  # fmt: skip


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def by_hand(model, tensor, choices=None, **feeds) -> dict[str, np.ndarray]:
    """What the explained model gives when every input is fed by hand."""
    explained = attach(model, **(choices or {}))
    session = quiet_session(explained.to_proto())
    values = session.run(None, {explained.metadata.image_input: tensor, **feeds})
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True))


def same(explanation, outputs, row: int = 0) -> bool:
    maps = explanation.maps[0]
    pairs = ((maps.heatmap, outputs["heatmap"][row]), (maps.cam, outputs["cam"][row]))
    return maps.cam.any() and all(np.abs(a - b).max() <= 1e-6 for a, b in pairs)


def test_a_table_is_fed_as_array_list_file_or_json(photo, tmp_path):
    row = np.array([TABLE], np.float32)
    np.save(tmp_path / "t.npy", row)
    np.savez(tmp_path / "t.npz", other=row * 2, row=row[0])
    for value in (row, TABLE, str(TABLE), tmp_path / "t.npy", f"{tmp_path}/t.npz:row"):
        explainer = Explainer(with_table(), preprocess=HOW, feeds={"table": value})
        expected = by_hand(with_table(), explainer.prepared(photo).tensor[None], table=row)
        assert same(explainer(photo), expected)
    other = by_hand(with_table(), explainer.prepared(photo).tensor[None], table=-row)
    assert not same(explainer(photo), other), "the table matters"
    assert same(explainer(photo, feeds={"table": -row}), other)


def test_several_images_have_a_row_each_or_share_one(photo):
    rows = np.array([TABLE, [1, 0, 0], [0, 1, -1]], np.float32)
    explainer = Explainer(with_table(), preprocess=HOW, feeds={"table": rows})
    tensor = np.stack([explainer.prepared(photo).tensor] * 3)
    expected = by_hand(with_table(), tensor, table=rows)
    results = list(explainer.stream([photo] * 3, batch_size=2))
    assert all(same(result, expected, i) for i, result in enumerate(results))
    assert np.allclose(explainer.run(tensor, [-1] * 3)["heatmap"], expected["heatmap"], atol=1e-6)
    with pytest.raises(InputError, match="'table' got 3 rows for 2 images; give one row for all images, or one for"):
        list(explainer.stream([photo] * 2))
    shared = list(explainer.stream([photo] * 2, feeds={"table": TABLE}))
    assert same(shared[1], by_hand(with_table(), tensor[:1], table=rows[:1]))


@pytest.mark.parametrize("method", ["occlusion", "rise", "saliency", "integrated-gradients", "scorecam"])
def test_methods_that_run_the_model_often_feed_it_every_time(photo, method):
    """A constant table and a fed one are the same model."""
    fed = Explainer(with_table(), preprocess=HOW, method=method, feeds={"table": TABLE})
    baked = Explainer(with_table(), preprocess=HOW, method=method, bake={"table": TABLE})
    first, second = fed(photo, 1).maps[0], baked(photo, 1).maps[0]
    assert np.abs(first.heatmap - second.heatmap).max() <= 1e-6
    assert first.heatmap.any()


def test_a_head_that_reads_another_input_is_not_run_apart():
    with pytest.raises(UnsupportedError, match="also reads the input 'table'"):
        Explainer(with_table(), preprocess=HOW, method="ablationcam", feeds={"table": TABLE})


def test_a_depth_image_is_fed_and_explained(photo, tmp_path):
    depth = photo[:, :, 0]
    cv2.imwrite(str(tmp_path / "depth.png"), depth)
    explainer = Explainer(with_depth(), preprocess=HOW, feeds={"depth": str(tmp_path / "depth.png")})
    assert any("taken to be the input 'x'" in line and "'depth' with --input" in line for line in explainer.warnings)
    plane = cv2.resize(depth, (12, 12), interpolation=cv2.INTER_AREA)[None, None] / np.float32(255)
    tensor = explainer.prepared(photo).tensor[None]
    assert same(explainer(photo), by_hand(with_depth(), tensor, depth=plane.astype(np.float32)))
    other = Explainer(with_depth(), preprocess=HOW, image="depth", feeds={"x": photo})
    assert other.metadata.image_input == "depth"
    assert not any("taken to be" in line for line in other.warnings)
    expected = by_hand(
        with_depth(), other.prepared(photo).tensor[None], {"image": "depth"}, x=explainer.prepared(photo).tensor[None]
    )
    assert same(other(photo), expected)


def test_conventions_have_defaults_that_are_said(photo):
    explainer = Explainer(with_conventions(), preprocess=HOW, output="y")
    said = " ".join(explainer.warnings)
    for words in ("'orig_target_sizes' takes width and height of the photo", "'h' takes zeros", "'is_training' takes"):
        assert words in said
    feeds = {
        "orig_target_sizes": np.array([[30, 20]], np.int64),
        "scale_factor": np.array([[12 / 20, 12 / 30]], np.float32),
        "is_training": np.array([False]),
        "h": np.zeros((1, 2), np.float32),
    }
    explained = attach(with_conventions(), output="y", check=True)
    session = quiet_session(explained.to_proto())
    values = session.run(["heatmap", "cam"], {"x": explainer.prepared(photo).tensor[None], **feeds})
    assert same(explainer(photo), dict(zip(("heatmap", "cam"), values, strict=True)))
    given = Explainer(with_conventions(), preprocess=HOW, output="y", feeds={"h": "ones"})
    assert not same(given(photo), dict(zip(("heatmap", "cam"), values, strict=True)))
    assert "'h' takes" not in " ".join(given.warnings)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([1, 2], "give 3 numbers on axis 1"),
        ("missing.npy", r"missing\.npy"),
        ("some text", "neither JSON nor one of"),
        ('"text"', "no number or array"),
        ("[[1, 2], [3]]", "rows of equal lengths"),
        ("photo.png", "takes no picture"),
        ([[[1, 2, 3]]], "too many axes"),
        ([1e300, 0, 0], "cannot be float32 without being changed"),
        (["a", "b", "c"], "not of numbers"),
        ("values.npz", "name one for 'table' as values.npz:KEY"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, sentence):
    with pytest.raises(InputError, match=sentence):
        Explainer(with_table(), preprocess=HOW, feeds={"table": value})


def test_integers_are_never_rounded():
    with pytest.raises(InputError, match="'orig_target_sizes' cannot be int64 without being changed"):
        Explainer(with_conventions(), preprocess=HOW, output="y", feeds={"orig_target_sizes": [[3.5, 2]]})


def test_names_that_are_not_other_inputs_are_refused():
    with pytest.raises(InputError, match="no other input 'tabel' to feed; did you mean 'table'"):
        Explainer(with_table(), preprocess=HOW, feeds={"tabel": TABLE})
    with pytest.raises(InputError, match="'x' is the input that takes the image"):
        Explainer(with_table(), preprocess=HOW, feeds={"x": TABLE})


def test_everything_that_is_missing_is_named_before_an_image_is_read(tmp_path):
    model = graph(
        f"c = Conv<pads=[1,1,1,1]>(x, K) {HEAD} g = Gemm(table, G) i = Cast<to=1>(ids) s = ReduceSum(i) m = Mul(f, g) "
        "n = Mul(m, s) y = Gemm(n, W)",
        inputs="float[N,3,12,12] x, float[N,3] table, int64[texts,tokens] ids",
        K=(5, 3, 3, 3), G=(3, 5), W=(5, 4),
    )  # fmt: skip
    explainer = Explainer(model, preprocess=HOW)
    with pytest.raises(InputError, match=r"'table' float32 \[N, 3\], 'ids' int64 \[texts, tokens\]; give each with"):
        explainer("there is no such file.png")
    onnx.save(model, tmp_path / "m.onnx")
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "m.onnx"), "none.png", "--preprocess", "none"])
    assert result.exit_code != 0
    assert "'table' float32" in result.output or "none.png" in result.output
    assert dict(inspect(model).decisions.to_feed) == {"table": "", "ids": ""}


def test_images_run_alone_where_an_input_has_free_rows_of_its_own(photo):
    """Each text is a class, so texts must not be repeated for every image."""
    model = graph(
        f"c = Conv<pads=[1,1,1,1]>(x, K) {HEAD} t = Transpose<perm=[1,0]>(texts) y = MatMul(f, t)",
        inputs="float[images,3,12,12] x, float[count,5] texts",
        outputs="float[images,count] y",
        K=(5, 3, 3, 3),
    )
    texts = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    explainer = Explainer(model, preprocess=HOW, feeds={"texts": texts})
    expected = by_hand(model, explainer.prepared(photo).tensor[None], texts=texts)
    for result in explainer.stream([photo, photo]):
        assert same(result, expected)
        assert len(result.scores) == 3


def test_a_baked_input_is_gone_and_has_the_same_maps(photo):
    explained = attach(with_table(), bake={"table": TABLE}, check=True)
    assert "table" not in [value.name for value in explained.model.core.graph.inputs]
    explainer = Explainer(explained.to_proto(), preprocess=HOW)
    tensor = np.stack([explainer.prepared(photo).tensor] * 2)
    expected = by_hand(with_table(), tensor, table=np.array([TABLE] * 2, np.float32))
    assert np.abs(explainer.run(tensor, [-1, -1])["heatmap"] - expected["heatmap"]).max() <= 1e-6
    with pytest.raises(TargetError, match="no other input 'tabel' to bake; did you mean 'table'"):
        attach(with_table(), bake={"tabel": TABLE})
    with pytest.raises(InputError, match="depends on the photo"):
        attach(with_conventions(), output="y", bake={"orig_target_sizes": "image-size"})


def test_verify_and_evaluate_feed_the_model(photo, tmp_path):
    assert verify(with_table(), feeds={"table": TABLE}).agrees
    with pytest.raises(InputError, match="'table' float32"):
        verify(with_table())
    cv2.imwrite(str(tmp_path / "p.png"), photo)
    how = {"methods": ["gradcam"], "metrics": ["deletion"], "steps": 4}
    fed = evaluate(with_table(), [tmp_path / "p.png"], options=Options(preprocess=HOW), feeds={"table": TABLE}, **how)
    baked = evaluate(with_table(), [tmp_path / "p.png"], options=Options(preprocess=HOW, bake={"table": TABLE}), **how)
    assert fed.means["gradcam"]["deletion"].mean == pytest.approx(baked.means["gradcam"]["deletion"].mean, abs=1e-6)


def test_the_command_line_feeds_every_command(photo, tmp_path):
    onnx.save(with_table(), tmp_path / "m.onnx")
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), photo[:, :, ::-1])
    rows = np.array([TABLE, [1, 0, 0]], np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "feeds.json").write_text(json.dumps({"table": TABLE}))
    model, images = str(tmp_path / "m.onnx"), [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    how = ["--preprocess", json.dumps(HOW)]

    def ran(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    rowwise = [
        "--feed",
        f"table={tmp_path}/rows.npy",
        "--npy",
        "--arrays",
        str(tmp_path / "n"),
        "-o",
        str(tmp_path / "o"),
    ]
    ran("explain", model, *images, *how, *rowwise)
    tensor = np.stack([Explainer(model, preprocess=HOW, feeds={"table": TABLE}).prepared(photo).tensor] * 2)
    expected = by_hand(with_table(), tensor, table=rows)
    for i, stem in enumerate("ab"):
        (file,) = (tmp_path / "n").glob(f"{stem}_*.npy")
        assert np.abs(np.load(file) - expected["heatmap"][i]).max() <= 1e-6
    feed = ["--feed", f"@{tmp_path}/feeds.json"]
    ran("verify", model, images[0], *how, "--feed", f"table={TABLE}")
    ran("batch", model, str(tmp_path / "a.png"), *how, *feed, "-o", str(tmp_path / "batch"))
    ran("evaluate", model, "--images", images[0], *how, *feed, "--method", "gradcam", "--metric", "deletion")
    ran("compare", model, model, "--images", images[0], *how, *feed)
    assert "other input: 'table'" in ran("inspect", model)
    ran("attach", model, "-o", str(tmp_path / "baked.onnx"), "--bake", f"table={TABLE}")
    assert "other input" not in ran("inspect", str(tmp_path / "baked.onnx"))


@pytest.mark.parametrize("pair", ["table", "=3", "table=", "@none.json"])
def test_what_is_not_a_pair_is_refused(pair, tmp_path):
    onnx.save(with_table(), tmp_path / "m.onnx")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "m.onnx"), "--feed", pair])
    assert result.exit_code != 0
    assert "NAME=VALUE" in str(result.exception) + result.output or "none.json" in str(result.exception) + result.output


def test_words_need_sizes_that_are_known():
    image = Declared("x", "float32", ("N", 3, 8, 8))
    feeds = Feeds(image, [Declared("ids", "int64", ("t", "l"))], [], {"ids": "zeros"})
    with pytest.raises(InputError, match="leaves its size t open, so zeros have no shape"):
        feeds.of_image(View((8, 8), (8, 8), (1, 1)), (1, 3, 8, 8))


CASES = {
    "in_image_table": {},
    "in_rgb_depth": {},
    "in_siamese": {"image": "a"},
    "in_change_detection": {"image": "before", "task": "segmentation"},
    "in_clip_like": {},
    "in_paddle_scale_factor": {},
    "in_state_gru": {"output": "logits"},
}


@pytest.mark.real
@pytest.mark.parametrize("name", CASES)
def test_models_with_several_inputs_equal_those_fed_by_hand(name):
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("the folder of models is not beside the project")
    choices = CASES[name]
    with np.load(path.with_suffix(".npz")) as stored:
        values = {key.removeprefix("in_"): stored[key][: 1 if name == "in_image_table" else None] for key in stored}
    explained = attach(path, **choices)
    image = explained.metadata.image_input
    session = quiet_session(explained.to_proto())
    inputs = {i.name: values[i.name] for i in session.get_inputs() if i.name in values}
    results = session.run(["heatmap", "cam"], inputs)
    others = {key: value for key, value in inputs.items() if key != image}
    assert others
    explainer = Explainer(path, preprocess="none", feeds=others, **choices)
    assert same(explainer(inputs[image]), dict(zip(("heatmap", "cam"), results, strict=True)))
