"""Answers about the boxes of a detector, without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from support.graphs import graph, placed_detector, thresholded_detector

from onnx_gradcam import Explainer, text_classifier
from onnx_gradcam.errors import ExplainError, InputError, ServerError
from onnx_gradcam.images.drawing import encode_image
from onnx_gradcam.serve.answering import Answerer, image_outputs
from onnx_gradcam.serve.hosting import read_sources
from onnx_gradcam.serve.limits import Limits
from onnx_gradcam.serve.query import Query, Tensor
from onnx_gradcam.serve.queueing import BatchingExplainer

MODEL = placed_detector()
PREPROCESS = {"size": [32, 32], "resize": "stretch", "scale": 1 / 64, "mean": [2], "std": [1]}
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain() -> Explainer:
    return Explainer(MODEL, preprocess=PREPROCESS, labels=["cat", "dog"], threads=1)


@pytest.fixture(scope="module")
def answerer():
    explainer = BatchingExplainer(MODEL, preprocess=PREPROCESS, labels=["cat", "dog"], threads=1, batch=4)
    yield Answerer(explainer, Limits())
    explainer.close()


def tensor(name: str, values: np.ndarray) -> Tensor:
    datatype = {"float32": "FP32", "int64": "INT64"}[values.dtype.name]
    return Tensor(name, datatype, list(values.shape), values.reshape(-1).tolist())


def answer(answerer: Answerer, *tensors: Tensor, outputs=(), **parameters) -> dict[str, np.ndarray]:
    results, _, _ = answerer.answer(Query(list(tensors), parameters, list(outputs)))
    return {result.name: result.data for result in results}


def test_rows_of_tensors_have_boxes_of_their_own(answerer, plain):
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    boxes, classes = np.array([5, -1, 40]), np.array([1, 0, -1])
    got = answer(answerer, tensor("x", x), tensor("target_box", boxes), tensor("target_class", classes))
    expected = plain.run(x, classes.tolist(), boxes.tolist())
    assert got["heatmap_box"].tolist() == expected["heatmap_box"].tolist()
    assert got["heatmap_box"].tolist()[::2] == [5, 40]
    np.testing.assert_allclose(got["cam"], expected["cam"], rtol=1e-5, atol=1e-6)
    assert "detection_scores" not in got
    named = answer(answerer, tensor("x", x), outputs=["detection_boxes", "heatmap_box"])
    assert named["detection_boxes"].shape == (3, 64, 4)
    one = answer(answerer, tensor("x", x), tensor("target_box", np.array([7])))
    assert one["heatmap_box"].tolist() == [7, 7, 7]


def image() -> Tensor:
    return files(PHOTO)


def files(*images: np.ndarray) -> Tensor:
    return Tensor("image_bytes", "BYTES", [len(images)], [encode_image(one, ".png") for one in images])


def test_images_are_explained_box_by_box(answerer, plain):
    got = answer(answerer, image(), box="all")
    expected = plain(PHOTO, box="all")
    assert got["box_index"].tolist() == [m.boxes[0].index for m in expected.maps]
    np.testing.assert_allclose(got["box"], [m.boxes[0].xyxy for m in expected.maps], rtol=1e-5)
    assert got["label"] == [m.target.label for m in expected.maps]
    np.testing.assert_allclose(got["score"], [m.boxes[0].target.score for m in expected.maps], rtol=1e-5)
    assert got["box"].max() > 32, "in pixels of the image, which is larger than the model's input"
    best = answer(answerer, image())
    assert best["box_index"].tolist() == got["box_index"].tolist()[:1]
    chosen = answer(answerer, image(), box=11, target="dog", outputs=["box_index", "label", "score"])
    assert (chosen["box_index"].tolist(), chosen["label"]) == ([11], ["dog"])
    np.testing.assert_allclose(chosen["score"], [plain(PHOTO, "dog", box=11).maps[0].target.score], rtol=1e-5)
    assert image_outputs(plain.metadata)[-4:-2] == ["box_index", "box"]


@contextlib.contextmanager
def changed(name: str, change) -> Iterator[Answerer]:
    """Answers of the detector with other weights."""
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    weights = next(one for one in model.graph.initializer if one.name == name)
    weights.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(weights)), name))
    explainer = BatchingExplainer(model, preprocess={**PREPROCESS, "mean": [0]}, threads=1, batch=4)
    try:
        yield Answerer(explainer, Limits())
    finally:
        explainer.close()


def test_an_image_in_which_nothing_is_found_is_named():
    black = np.zeros_like(PHOTO)
    with changed("S", lambda weights: -100 * np.abs(weights)) as answerer:
        assert len(answer(answerer, files(black), box="all")["box_index"]) > 1
        with pytest.raises(ServerError, match=r"^image 1: the model finds nothing with a score of at least 0\.25; "):
            answer(answerer, files(black, PHOTO), box="all")
        with pytest.raises(ServerError, match=r"^the model finds nothing"):
            answer(answerer, files(PHOTO), box="all")


def test_a_box_without_a_finite_place_has_none():
    with changed("B", lambda weights: np.sign(weights) * np.float32(3e38)) as answerer:
        got = answer(answerer, files(PHOTO))
    assert got["box"].shape == (1, 4)
    assert np.isnan(got["box"]).all()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [([64], "there is no box 64; the model has boxes 0 to 63"), ([1, 2], "there are 2 boxes for 3 rows")],
)
def test_boxes_of_tensors_that_are_not_there(answerer, boxes, message):
    x = np.zeros((3, 3, 32, 32), np.float32)
    with pytest.raises(ServerError, match=message):
        answer(answerer, tensor("x", x), tensor("target_box", np.array(boxes)))


@pytest.mark.parametrize("box", ["sum", "1", -1, True, 1.5])
def test_parameters_that_are_no_box(answerer, box):
    with pytest.raises(ServerError, match=r"the parameter 'box' is .*; send the index of a box, or 'all'"):
        answer(answerer, image(), box=box)


def test_a_classifier_has_no_boxes():
    model = graph("c = Conv(x, K) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4))
    explainer = BatchingExplainer(model, preprocess="none", batch=2)
    try:
        classifier = Answerer(explainer, Limits())
        with pytest.raises(ServerError, match="unknown parameter 'box'"):
            answer(classifier, image(), box="all")
        with pytest.raises(ServerError, match="unknown output 'box_index'"):
            answer(classifier, image(), outputs=["box_index"])
    finally:
        explainer.close()


def test_an_image_without_a_batch_axis_is_one_row():
    explainer = BatchingExplainer(thresholded_detector(), preprocess={"scale": 1 / 255}, threads=1, batch=4)
    x = np.random.default_rng(0).random((3, 24, 30)).astype(np.float32)
    try:
        got = answer(Answerer(explainer, Limits()), tensor("x", x), outputs=("heatmap", "heatmap_box"))
        expected = explainer.run(x[None], [-1])
        np.testing.assert_allclose(got["heatmap"], expected["heatmap"], atol=1e-6)
        assert got["heatmap_box"].tolist() == expected["heatmap_box"].tolist()
        with pytest.raises(ServerError, match="shape"):
            answer(Answerer(explainer, Limits()), tensor("x", x[None]))
    finally:
        explainer.close()


TABLE = graph(
    "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(table, G) "
    "m = Mul(f, g) n = Mul(m, gain) y = Gemm(n, W)",
    inputs="float[N,3,12,12] x, float[N,3] table, float gain",
    K=(5, 3, 3, 3), G=(3, 5), W=(5, 4),
)  # fmt: skip
ROWS = np.array([[0.4, -1.2, 0.7], [1, 0, 0]], np.float32)
GAIN = np.array(1.5, np.float32)


@pytest.fixture(scope="module")
def with_table():
    explainer = BatchingExplainer(TABLE, preprocess={"size": [12, 12], "scale": 1 / 64}, threads=1, batch=4)
    yield Answerer(explainer, Limits())
    explainer.close()


def test_other_inputs_are_tensors_of_their_names(with_table):
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)
    plain = Explainer(TABLE, preprocess={"size": [12, 12], "scale": 1 / 64}, feeds={"gain": GAIN}, threads=1)
    gain = Tensor("gain", "FP32", [], [1.5])
    got = answer(with_table, tensor("x", x), tensor("table", ROWS), gain)
    np.testing.assert_allclose(got["cam"], plain.run(x, [-1, -1], feeds={"table": ROWS})["cam"], rtol=1e-5, atol=1e-6)
    other = answer(with_table, tensor("x", x), tensor("table", ROWS[:1]), gain)
    assert not np.allclose(other["cam"][1], got["cam"][1])
    images = [PHOTO, PHOTO[::-1].copy()]
    got = answer(with_table, files(*images), tensor("table", ROWS), gain, outputs=["scores", "cam"])
    for i, one in enumerate(images):
        expected = plain(one, feeds={"table": ROWS[i : i + 1]})
        np.testing.assert_allclose(got["scores"][i], expected.scores, rtol=1e-5)
        np.testing.assert_allclose(got["cam"][i], expected.cam, rtol=1e-4, atol=1e-6)


def test_other_inputs_without_values_are_named(with_table):
    x = tensor("x", np.zeros((1, 3, 12, 12), np.float32))
    gain = Tensor("gain", "FP32", [], [1.5])
    with pytest.raises(ServerError, match=r"need values: 'table' float32 \[N, 3\], 'gain' .*; send a tensor of that"):
        answer(with_table, x)
    with pytest.raises(ServerError, match=r"need values: 'table'"):
        answer(with_table, image(), gain)
    with pytest.raises(ServerError, match="datatype 'INT64'; send FP32"):
        answer(with_table, x, gain, Tensor("table", "INT64", [1, 3], [1, 2, 3]))
    with pytest.raises(ServerError, match=r"has shape \[1, 4\]"):
        answer(with_table, x, gain, tensor("table", np.zeros((1, 4), np.float32)))
    with pytest.raises(InputError, match="got 2 rows for 1 image"):
        answer(with_table, x, gain, tensor("table", ROWS))
    with pytest.raises(ServerError, match="must be the only input"):
        answer(with_table, image(), x, gain)


@pytest.fixture(scope="module")
def texts():
    """A classifier whose classes are texts, one of them with a comma, and the explainer that serves it."""
    tower = graph(
        "c = Conv(pixel_values, K) a = Relu(c) p = GlobalAveragePool(a) image_embeds = Flatten(p)",
        inputs="float[N,3,8,8] pixel_values",
        outputs="float[N,6] image_embeds",
        K=(6, 3, 3, 3),
    )
    names = ["a dog", "a cat, asleep", "7"]
    embeddings = np.random.default_rng(3).standard_normal((3, 6)).astype(np.float32)
    preprocess = {"size": [8, 8], "scale": 1 / 64}
    model = text_classifier(tower, names, embeddings=embeddings)
    explainer = BatchingExplainer(model, preprocess=preprocess, threads=1, batch=4)
    yield Answerer(explainer, Limits()), Explainer(model, preprocess=preprocess, threads=1)
    explainer.close()


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("a dog", ["a dog"]),
        (["a dog", "a cat, asleep"], ["a dog", "a cat, asleep"]),
        ('["a cat, asleep"]', ["a cat, asleep"]),
        (1, ["a cat, asleep"]),
        ("top3", None),
    ],
)
def test_texts_as_classes_are_named_in_requests(texts, target, names):
    answerer, plain = texts
    photo = encode_image(PHOTO, ".png")
    got = answer(answerer, Tensor("image_bytes", "BYTES", [1], [photo]), outputs=["label", "cam"], target=target)
    expected = plain(photo, names or "top3")
    assert list(got["label"]) == (names or [one.target.label for one in expected.maps])
    np.testing.assert_allclose(got["cam"], [one.cam for one in expected.maps], rtol=1e-5, atol=1e-6)


def test_a_text_that_is_no_class_is_refused_by_name(texts):
    photo = Tensor("image_bytes", "BYTES", [1], [encode_image(PHOTO, ".png")])
    with pytest.raises(ExplainError, match=r"'a dgo'.*did you mean 'a dog'"):
        answer(texts[0], photo, target="a dgo")
    for parameter in ("prompt", "method"):
        with pytest.raises(ServerError, match=f"unknown parameter '{parameter}'"):
            answer(texts[0], photo, **{parameter: "a bird"})


def test_requests_that_leave_an_input_out_take_the_servers_value(tmp_path):
    onnx.save(TABLE, tmp_path / "m.onnx")
    np.save(tmp_path / "usual.npy", ROWS[0])
    (tmp_path / "models.toml").write_text(
        'm.preprocess = {size = [12, 12], scale = 0.015625}\nm.feeds = {gain = 1.5, table = "usual.npy"}\n', "utf-8"
    )
    (source,) = read_sources(tmp_path, settings={"threads": 1, "feeds": {"gain": 9}})
    explainer = BatchingExplainer(source.path, batch=4, **source.settings)
    try:
        answerer = Answerer(explainer, Limits())
        x = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
        plain = Explainer(TABLE, preprocess={"size": [12, 12], "scale": 1 / 64}, threads=1)
        expected = plain.run(x, [-1], feeds={"gain": GAIN, "table": ROWS[:1]})
        np.testing.assert_allclose(answer(answerer, tensor("x", x))["cam"], expected["cam"], rtol=1e-5, atol=1e-6)
        expected = plain.run(x, [-1], feeds={"gain": GAIN, "table": ROWS[1:]})
        got = answer(answerer, tensor("x", x), tensor("table", ROWS[1:]))
        np.testing.assert_allclose(got["cam"], expected["cam"], rtol=1e-5, atol=1e-6)
        of_photo = plain(PHOTO, feeds={"gain": GAIN, "table": ROWS[:1]})
        got = answer(answerer, image(), outputs=["cam"])
        np.testing.assert_allclose(got["cam"][0], of_photo.cam, rtol=1e-4, atol=1e-6)
    finally:
        explainer.close()
