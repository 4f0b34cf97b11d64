"""A model and images in, explanations out."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import onnx
import pytest
from support.graphs import graph, run, weight

from onnx_gradcam.editor import attachment
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import InputError, ModelError, TargetError
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.images.drawing import overlay, save_image
from onnx_gradcam.images.masks import Look
from onnx_gradcam.runtime import opening
from onnx_gradcam.runtime.answers import percentage
from onnx_gradcam.runtime.explainer import Explainer, Explanation
from onnx_gradcam.runtime.session import Session
from onnx_gradcam.serve.repository import write_repository
from onnx_gradcam.web.building import build_page

LABELS = ["tabby, tabby cat", "water_ouzel, dipper", "Goldfish", "cat"]
PREPROCESS = {"resize": "stretch", "scale": 1 / 255}


def model(batch: str = "N", tail: str = "l = Gemm(f, W) y = Softmax(l)", classes: int = 4) -> onnx.ModelProto:
    return graph(
        f"c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) {tail}",
        inputs=f"float[{batch},3,8,8] x",
        outputs=f"float[{batch},{classes}] y",
        K=weight("K", 6, 3, 3, 3) * 5,
        W=(6, 4),
        W1=(6, 1),
    )


@pytest.fixture
def explainer() -> Explainer:
    return Explainer(model(), labels=LABELS, preprocess=PREPROCESS, threads=1)


def images(count: int, height: int = 12, width: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def expected(explainer: Explainer, image: np.ndarray, cls: int) -> dict[str, np.ndarray]:
    tensor, _ = prepare(image, explainer.preprocessing)
    return run(attach(model()).to_proto(), x=tensor[None], target_class=np.array([cls]))


def test_an_explanation(explainer):
    (image,) = images(1)
    got = explainer(image, 2)
    want = expected(explainer, image, 2)
    assert isinstance(got, Explanation)
    np.testing.assert_allclose(got.heatmap, want["heatmap"][0], atol=1e-6)
    np.testing.assert_allclose(got.cam, want["cam"][0], atol=1e-6)
    np.testing.assert_allclose(got.scores, want["y"][0], rtol=1e-5)
    assert (got.target.index, got.target.label) == (2, "Goldfish")
    assert got.target.score == pytest.approx(want["y"][0, 2], rel=1e-5)
    np.testing.assert_array_equal(got.image, image)
    assert got.heatmap_on_image().shape == (12, 16)
    assert got.overlay().pixels.shape == (12, 16, 3)
    assert [t.index for t in got.top(3)] == np.argsort(-want["y"][0])[:3].tolist()


@pytest.mark.parametrize(
    ("target", "indices"),
    [
        (0, [0]),
        (np.int64(3), [3]),
        ("3", [3]),
        ("Goldfish", [2]),
        ("goldfish", [2]),
        ("water ouzel", [1]),
        ("WATER_OUZEL", [1]),
        ("dipper", [1]),
        ("tabby cat", [0]),
        # The whole name goes before a synonym.
        ("cat", [3]),
        (["goldfish", 0, "cat"], [2, 0, 3]),
        ((1, 1), [1]),
        ([3], [3]),
    ],
)
def test_targets(explainer, target, indices):
    (image,) = images(1)
    got = explainer(image, target)
    assert [m.target.index for m in got.maps] == indices
    assert [m.target.label for m in got.maps] == [LABELS[i] for i in indices]
    for one, index in zip(got.maps, indices, strict=True):
        np.testing.assert_allclose(one.heatmap, expected(explainer, image, index)["heatmap"][0], atol=1e-6)


@pytest.mark.parametrize(("target", "count"), [(None, 1), ("top1", 1), ("top3", 3), ("top4", 4), ("top9", 4)])
def test_the_highest_scores(explainer, target, count):
    for got in explainer.stream(images(3), target):
        assert isinstance(got, Explanation)
        assert [m.target for m in got.maps] == got.top(count)
        assert len(got.maps) == count


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (4, r"class 4 is out of range; the model has classes 0 to 3"),
        (-1, "class -1 is out of range"),
        ("99", "class 99 is out of range"),
        ("goldfisch", r"no class is called 'goldfisch'; did you mean 'goldfish'"),
        ("zzz", r"no class is called 'zzz'"),
        ("top0", "top0"),
        ([], "the list of classes is empty"),
        (["cat", "dog"], "no class is called 'dog'"),
    ],
)
def test_targets_that_are_not_there(explainer, target, message):
    with pytest.raises(TargetError, match=message):
        explainer(images(1)[0], target)


@pytest.mark.parametrize("batched", [False, True])
def test_a_floating_point_array_is_the_input_of_the_model(explainer, batched):
    (image,) = images(1)
    tensor, _ = prepare(image, explainer.preprocessing)
    got = explainer(tensor[None] if batched else tensor.astype(np.float64), 2)
    np.testing.assert_allclose(got.heatmap, explainer(image, 2).heatmap, atol=1e-6)
    np.testing.assert_array_equal(got.image, np.rint(np.moveaxis(tensor, 0, -1) * 255))
    assert got.overlay().pixels.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), r"shape \[8, 8, 3\], and .* are inputs of the model, \[3, 8, 8\] here"),
        (np.zeros((2, 3, 8, 8), np.float32), r"shape \[2, 3, 8, 8\]"),
        (np.full((3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_other_floating_point_arrays_are_refused(explainer, array, said):
    with pytest.raises(InputError, match=said):
        explainer(array)


def test_what_a_notebook_shows(explainer):
    (image,) = images(1)
    explanation = explainer(image, [1, 2])
    assert read_image(explanation._repr_png_()).shape == explanation.sheet().pixels.shape
    assert repr(explanation).startswith(
        "<Explanation of blank map: water_ouzel, dipper 28.2 %, blank map: Goldfish 0.5 %"
    )
    assert repr(explanation).endswith(": heatmap 8x8, image 12x16>")
    overlay = explanation.overlay()
    np.testing.assert_array_equal(read_image(overlay._repr_png_()), overlay.pixels)
    np.testing.assert_array_equal(np.asarray(overlay), overlay.pixels)
    assert np.asarray(overlay, np.float32).dtype == np.float32
    assert repr(overlay) == "<Drawing 12x16>"
    assert repr(attach(model())) == "<Explained: gradcam at 'a'; outputs y, heatmap, cam, heatmap_class>"


def test_a_provider_that_ignores_the_class_is_noticed(explainer, monkeypatch):
    """OpenVINO's execution provider gives an input with a default value this value, whatever is fed."""
    run = Session.run
    monkeypatch.setattr(
        Session,
        "run",
        lambda self, feeds, *rest: run(self, {n: v for n, v in feeds.items() if n != "target_class"}, *rest),
    )
    (image,) = images(1)
    best = explainer(image).target.index
    assert explainer(image, best).target.index == best
    other = (best + 1) % 4
    sentence = f"ignores the model's input 'target_class': it explained {best} instead of {other}; attach .* required"
    with pytest.raises(ModelError, match=sentence):
        explainer(image, other)


def test_models_are_attached_as_the_provider_takes_them(monkeypatch):
    attached = []
    monkeypatch.setattr(attachment, "attach", lambda model, options: attached.append(options) or attach(model, options))
    monkeypatch.setattr(opening, "resolve_provider", {"openvino": "OpenVINOExecutionProvider"}.get)
    monkeypatch.setattr(opening, "Session", lambda *given, **rest: Session(*given, **{**rest, "provider": "cpu"}))
    (image,) = images(1)
    found = Explainer(model(), preprocess=PREPROCESS, provider="openvino")(image, 2)
    assert (attached[0].class_input, attached[0].profile) == ("required", "openvino")
    np.testing.assert_allclose(
        found.heatmap, expected(Explainer(model(), preprocess=PREPROCESS), image, 2)["heatmap"][0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("tail", "shares"),
    [
        ("l = Gemm(f, W) y = Softmax(l)", lambda y: y),
        ("l = Gemm(f, W) y = LogSoftmax(l)", np.exp),
        ("l = Gemm(f, W) y = Sigmoid(l)", lambda y: y),
        ("y = Gemm(f, W)", lambda y: np.exp(y) / np.exp(y).sum()),
    ],
)
def test_probabilities_beside_scores(tail, shares):
    explanation = Explainer(model(tail=tail), labels=LABELS, preprocess=PREPROCESS, threads=1)(images(1)[0], [1, 3])
    expected = shares(explanation.scores.astype(np.float64))
    np.testing.assert_allclose(explanation.probabilities, expected, rtol=1e-5)
    for target in (*explanation.top(), *(m.target for m in explanation.maps)):
        assert target.probability == pytest.approx(expected[target.index], rel=1e-5)
        assert target.caption == f"{target.label} {100 * expected[target.index]:.1f} %"
        assert target.to_dict()["probability"] == target.probability


def test_how_scores_become_probabilities_is_chosen_or_stored(tmp_path):
    (image,) = images(1)
    logits = model(tail="y = Gemm(f, W)")
    each = Explainer(logits, preprocess=PREPROCESS, probabilities="sigmoid", threads=1)(image)
    np.testing.assert_allclose(each.probabilities, 1 / (1 + np.exp(-each.scores.astype(np.float64))), rtol=1e-6)
    assert Explainer(logits, preprocess=PREPROCESS, probabilities="none", threads=1)(image).probabilities is None
    # What the model carries, before and after it is explained.
    logits.metadata_props.add(key="onnx_gradcam.probabilities", value="sigmoid")
    explained = attach(logits, preprocess=PREPROCESS)
    assert explained.metadata.probabilities == "sigmoid"
    for source in (logits, explained):
        carried = Explainer(source, threads=1, **({} if source is explained else {"preprocess": PREPROCESS}))(image)
        np.testing.assert_array_equal(carried.probabilities, each.probabilities)
    other = Explainer(explained, probabilities="softmax", threads=1)(image)
    assert other.probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("tail", "choices", "sentence"),
    [
        ("l = Gemm(f, W) y = Softmax(l)", {}, "the model ends in softmax and outputs probabilities already; omit"),
        ("y = Gemm(f, W)", {"task": "regression"}, "a model for regression has no probabilities of classes; omit"),
    ],
)
def test_probabilities_that_a_model_does_not_have_are_refused(tail, choices, sentence):
    with pytest.raises(InputError, match=sentence):
        Explainer(model(tail=tail), preprocess=PREPROCESS, probabilities="sigmoid", **choices)


def test_a_damaged_word_in_the_model_is_named():
    damaged = model(tail="y = Gemm(f, W)")
    damaged.metadata_props.add(key="onnx_gradcam.probabilities", value="sigmoyd")
    with pytest.raises(ModelError, match=r"'onnx_gradcam\.probabilities' is 'sigmoyd', not one of '', 'softmax'"):
        Explainer(damaged, preprocess=PREPROCESS)


def test_a_single_logit_has_two_probabilities():
    explainer = Explainer(model(tail="y = Gemm(f, W1)", classes=1), preprocess=PREPROCESS, threads=1)
    explanation = explainer(images(1)[0])
    one = 1 / (1 + np.exp(-float(explanation.scores[1])))
    np.testing.assert_allclose(explanation.probabilities, [1 - one, one], rtol=1e-5)


def test_other_tasks_than_classification_have_no_probabilities():
    regression = Explainer(model(tail="y = Gemm(f, W)"), task="regression", preprocess=PREPROCESS, threads=1)
    explanation = regression(images(1)[0], 2)
    assert explanation.probabilities is None
    assert "probability" not in explanation.target.to_dict()
    assert explanation.target.caption == f"class 2 {explanation.target.score:.3g}"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1e-9, "<0.1 %"), (0.081, "8.1 %"), (0.5, "50.0 %"), (1 - 1e-9, ">99.9 %"), (1, "100.0 %")],
)
def test_a_percentage_never_looks_certain_unless_it_is(share, text):
    assert percentage(share) == text


def test_a_blank_map_says_so_above_its_panel(explainer):
    explanation = explainer(images(1)[0], 2)
    blank = replace(explanation.maps[0], heatmap=np.zeros((8, 8), np.float32))
    assert repr(replace(explanation, maps=[blank])).startswith("<Explanation of blank map: Goldfish ")


def test_attributions_are_drawn_without_the_image():
    (image,) = images(1, 8, 8)
    attribution = Explainer(model(), preprocess=PREPROCESS, method="gradient", threads=1)(image, 2)
    drawn = attribution.overlay().pixels
    assert (drawn == drawn[..., :1]).all()
    values = attribution.heatmap_on_image()
    order = np.argsort(values, axis=None)
    assert (np.diff(drawn[..., 0].reshape(-1)[order].astype(int)) >= 0).all()  # the brighter, the larger
    assert drawn.max() == 255
    assert (drawn == 255).all(axis=2).sum() >= 0.01 * drawn[..., 0].size - 1  # what is above the percentile 99
    for look in ({"style": "overlay"}, {"opacity": 0.5}):
        np.testing.assert_array_equal(attribution.overlay(**look).pixels, overlay(image, attribution.shown(0, Look())))
    maps = Explainer(model(), preprocess=PREPROCESS, threads=1)(image, 2)
    np.testing.assert_array_equal(maps.overlay().pixels, maps.overlay(style="overlay").pixels)


def test_heat_in_the_padding_is_said(explainer):
    padded = Explainer(model(), labels=LABELS, preprocess={**PREPROCESS, "resize": "letterbox"}, threads=1)
    explanation = padded(images(1, height=8, width=32)[0], 2)
    inside = np.zeros((8, 8), np.float32)
    inside[3:5] = 1  # the image is in two of eight rows
    (m,) = explanation.maps
    for values, words in ((inside, []), (inside * 0 + 1, ["75 % of the heat of 'Goldfish' lies in the padding"])):
        said = replace(explanation, maps=[replace(m, heatmap=values)]).warnings
        assert [warning[: len(word)] for warning, word in zip(said, words, strict=True)] == words
    assert explainer(images(1)[0], 2).placement.beside(np.ones((8, 8), np.float32)) == 0


class Axes:
    def imshow(self, pixels):
        self.pixels = pixels

    def set_title(self, title):
        self.title = title

    def set_axis_off(self):
        self.off = True


def test_an_explanation_is_drawn_into_axes(explainer):
    explanation = explainer(images(1)[0], [1, 2])
    axes = Axes()
    assert explanation.plot(axes, 1, style="mask") is axes
    np.testing.assert_array_equal(axes.pixels, explanation.overlay(1, style="mask").pixels)
    assert axes.title == f"blank map: {explanation.maps[1].target.caption}"
    assert axes.off


def test_without_matplotlib_nothing_is_plotted(explainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(InputError, match="there is no Matplotlib to plot with"):
        explainer(images(1)[0]).plot()


def test_names_without_labels_and_labels_that_are_not_unique():
    bare = Explainer(model(), preprocess=PREPROCESS)
    assert bare(images(1)[0], 1).target.label == "class 1"
    with pytest.raises(TargetError, match="give them with --labels"):
        bare(images(1)[0], "cat")
    cranes = Explainer(model(), labels=["crane", "dog", "crane", "cat"], preprocess=PREPROCESS)
    with pytest.raises(TargetError, match=r"several classes are called 'crane' \(0, 2\); give the index"):
        cranes(images(1)[0], "crane")


@pytest.mark.parametrize("explained", [False, True])
def test_labels_that_do_not_fit_are_refused(explained):
    source = attach(model(), layer="a").to_proto().SerializeToString() if explained else model()
    with pytest.raises(InputError, match="there are 2 class names for 4 classes"):
        Explainer(source, labels=["a", "b"], preprocess=PREPROCESS)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_a_stream_is_its_images_one_by_one(explainer, batch_size):
    several = images(5)
    together = list(explainer.stream(several, ["goldfish", 0], batch_size=batch_size))
    for image, got in zip(several, together, strict=True):
        alone = explainer(image, ["goldfish", 0])
        for a, b in zip(got.maps, alone.maps, strict=True):
            assert a.target.index == b.target.index
            np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-6)


def test_a_stream_holds_one_batch_at_a_time(explainer):
    taken: list[int] = []

    def source():
        for i, image in enumerate(images(5)):
            taken.append(i)
            yield image

    stream = explainer.stream(source(), batch_size=2)
    next(stream)
    assert taken == [0, 1]


def test_a_image_that_cannot_be_read_does_not_stop_the_others(explainer, tmp_path):
    good = images(2)
    save_image(good[0], tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    got = list(explainer.stream([tmp_path / "bad.png", tmp_path / "good.png", b"", good[1]], 1, batch_size=3))
    assert [type(g) for g in got] == [InputError, Explanation, InputError, Explanation]
    assert "bad.png" in str(got[0])
    np.testing.assert_allclose(got[1].heatmap, explainer(good[0], 1).heatmap, atol=1e-6)
    with pytest.raises(InputError, match=r"bad\.png"):
        explainer(tmp_path / "bad.png")


@pytest.mark.parametrize("batch", ["1", "2", "3"])
def test_fixed_batches(explainer, batch):
    fixed = Explainer(model(batch), labels=LABELS, preprocess=PREPROCESS)
    assert fixed.fixed_batch == int(batch)
    several = images(4)
    for got, want in zip(fixed.stream(several, "top2"), explainer.stream(several, "top2"), strict=True):
        assert [m.target.index for m in got.maps] == [m.target.index for m in want.maps]
        for a, b in zip(got.maps, want.maps, strict=True):
            np.testing.assert_allclose(a.cam, b.cam, atol=1e-6)


SINGLE = "u = Unsqueeze({x}, i0) c = Conv(u, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) l = Gemm(f, W) "
ENDS = {
    "softmax of a row": "s = Squeeze(l, i0) y = Softmax(s)",
    "row of a softmax": "s = Softmax(l) y = Gather<axis=0>(s, zero)",
    "logits": "y = Reshape(l, flat)",
}


def single(end: str, *, channels_last: bool = False) -> onnx.ModelProto:
    """The classifier of `model` for one image without a batch axis."""
    start = "t = Transpose<perm=[2,0,1]>(x) " if channels_last else ""
    return graph(
        start + SINGLE.format(x="t" if channels_last else "x") + ENDS[end],
        inputs="float[8,8,3] x" if channels_last else "float[3,8,8] x",
        outputs="float[4] y",
        K=weight("K", 6, 3, 3, 3) * 5, W=(6, 4), i0=[0], zero=0, flat=[-1],
    )  # fmt: skip


class TestOneImageWithoutABatchAxis:
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("method", ["gradcam", "hirescam", "saliency", "scorecam", "rise"])
    def test_it_is_explained_as_the_same_model_with_one(self, end, channels_last, method):
        choices = {"labels": LABELS, "preprocess": PREPROCESS, "threads": 1, "method": method}
        one = Explainer(single(end, channels_last=channels_last), **choices)
        plain = model(tail="y = Gemm(f, W)") if end == "logits" else model()
        batched = Explainer(plain, **choices)
        assert one.metadata.layout == ("HWC" if channels_last else "CHW")
        assert one.fixed_batch == 1
        several = images(3)
        for got, want in zip(one.stream(several, "top2"), batched.stream(several, "top2"), strict=True):
            np.testing.assert_allclose(got.scores, want.scores, atol=1e-6)
            for a, b in zip(got.maps, want.maps, strict=True):
                assert a.target.index == b.target.index
                scale = np.abs(b.cam).max()
                np.testing.assert_allclose(a.cam, b.cam, atol=1e-6 * max(1, scale))
                np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-5)

    def test_what_the_explanation_adds_has_a_batch_axis_and_the_rest_stays(self, tmp_path):
        source = single("softmax of a row")
        explained = attach(source)
        x = np.random.default_rng(0).random((3, 8, 8), np.float32)
        got = run(explained.to_proto(), x=x, target_class=np.array([2]))
        want = run(attach(model()).to_proto(), x=x[None], target_class=np.array([2]))
        np.testing.assert_allclose(got["y"], run(source, x=x)["y"], rtol=1e-6)
        np.testing.assert_allclose(got["target_scores"], want["y"], rtol=1e-5)
        for name in ("heatmap", "cam", "heatmap_class"):
            assert got[name].shape == want[name].shape
            np.testing.assert_allclose(got[name], want[name], atol=1e-6)
        explained.save(tmp_path / "explained.onnx")
        stored = Explainer(tmp_path / "explained.onnx", preprocess=PREPROCESS)
        assert [info.name for info in stored.results] == ["target_scores", "heatmap", "cam", "heatmap_class"]
        np.testing.assert_allclose(stored.run(x[None], [2])["cam"], want["cam"], atol=1e-6)

    def test_an_attribution_has_it_too(self):
        x = np.random.default_rng(0).random((3, 8, 8), np.float32)
        one, batched = (
            attach(m, method="saliency").to_proto() for m in (single("logits"), model(tail="y = Gemm(f, W)"))
        )
        got, want = run(one, x=x)["attribution"], run(batched, x=x[None])["attribution"]
        np.testing.assert_allclose(got, want, atol=1e-6)

    def test_what_feeds_batches_refuses_it(self, tmp_path):
        source = tmp_path / "single.onnx"
        attach(single("logits"), preprocess=PREPROCESS).save(source)
        with pytest.raises(ModelError, match="a page feeds batches of images"):
            build_page(source, tmp_path / "page", runtime={})
        with pytest.raises(ModelError, match="an ensemble feeds batches of images"):
            write_repository(source, tmp_path / "repository", max_batch=0, ensemble=True)
        with pytest.raises(TargetError, match="one image without a batch axis, and embeddings are compared"):
            Explainer(single("logits"), preprocess=PREPROCESS, task="embedding", reference=images(1)[0])

    def test_a_sequence_is_a_signal_with_a_batch_axis_and_no_image(self):
        source = graph(
            "t = Transpose<perm=[0,2,1]>(x) c = Conv(t, K) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, W)",
            inputs="float[N,16,8] x", K=(6, 8, 3), W=(6, 4),
        )  # fmt: skip
        explained = attach(source)
        assert explained.metadata.layout == "NWC"
        rows = run(explained.to_proto(), x=np.random.default_rng(0).random((3, 16, 8), np.float32))
        assert rows["heatmap"].shape == (3, 16)


@pytest.mark.parametrize("activation", ["", "sigmoid", "sigmoid of the output"])
def test_a_single_logit_speaks_for_two_classes(activation):
    tail = "l = Gemm(f, W1) y = Sigmoid(l)" if activation else "y = Gemm(f, W1)"
    choices = {"score": "output"} if "output" in activation else {}
    explainer = Explainer(model(tail=tail, classes=1), labels=["no", "yes"], preprocess=PREPROCESS, **choices)
    for image in images(3):
        got = explainer(image, ["yes", "no"])
        yes, no = (m.target.score for m in got.maps)
        assert no == pytest.approx(1 - yes if activation else -yes)
        np.testing.assert_allclose(got.maps[0].cam, -got.maps[1].cam, atol=1e-7)
        assert explainer(image).target.index == int(np.argmax(got.scores))
    with pytest.raises(TargetError, match="the model has classes 0 to 1"):
        explainer(images(1)[0], 2)


# ----- explained models ------------------------------------------------------


def test_an_explained_model_carries_what_it_needs(tmp_path, explainer):
    attach(model(), labels=LABELS, preprocess=PREPROCESS).save(tmp_path / "explained.onnx")
    (image,) = images(1)
    for source in (tmp_path / "explained.onnx", (tmp_path / "explained.onnx").read_bytes()):
        got = Explainer(source)(image, "dipper")
        np.testing.assert_allclose(got.heatmap, explainer(image, 1).heatmap, atol=1e-6)
    overridden = Explainer(tmp_path / "explained.onnx", labels=["a", "b", "c", "d"])
    assert overridden(image, "b").target.label == "b"


def test_choices_come_too_late_for_an_explained_model(tmp_path):
    attach(model()).save(tmp_path / "explained.onnx")
    with pytest.raises(TargetError, match=r"explained already \(layer 'a'.*so layer cannot be chosen"):
        Explainer(tmp_path / "explained.onnx", preprocess=PREPROCESS, layer="c")
    with pytest.raises(TargetError, match="explained already"):
        Explainer(attach(model()).to_proto(), preprocess=PREPROCESS, layer="c")


def test_an_explained_model_runs_without_graph_code(tmp_path):
    attach(model(), labels=LABELS, preprocess=PREPROCESS).save(tmp_path / "explained.onnx")
    code = """
        import sys
        import numpy as np
        from onnx_gradcam import Explainer
        explanation = Explainer(sys.argv[1])(np.zeros((12, 16, 3), np.uint8), "cat")
        assert explanation.target.index == 3
        print(sorted({"onnx", "onnx_ir", "onnx_gradcam.editor.attachment"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "explained.onnx")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_class_fixed_in_the_model():
    explainer = Explainer(model(), labels=LABELS, preprocess=PREPROCESS, class_input="none", target=2)
    assert explainer(images(1)[0]).target.index == 2
    with pytest.raises(TargetError, match="the class is fixed in this model"):
        explainer(images(1)[0], 1)


def test_a_class_that_has_to_be_given():
    explainer = Explainer(model(), labels=LABELS, preprocess=PREPROCESS, class_input="required")
    assert explainer(images(1)[0], "cat").target.index == 3
    got = explainer(images(1)[0])
    assert got.target == got.top(1)[0]


def test_preprocessing_has_to_be_known():
    with pytest.raises(InputError, match="--preprocess: one of torchvision"):
        Explainer(model())


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_gradients_are_written_for_the_provider_unless_that_makes_the_model_too_large(method, monkeypatch):
    choices = {"method": method, "preprocess": PREPROCESS}
    assert Explainer(model(), **choices).metadata.profile == "cpu"
    assert Explainer(model(), **choices, profile="cuda").metadata.profile == "cuda"
    monkeypatch.setattr("onnx_gradcam.graph.model._LARGEST_FILE", 10)
    assert Explainer(model(), **choices).metadata.profile == "portable"
    assert Explainer(model(), **choices, profile="cpu").metadata.profile == "cpu"


def test_an_execution_provider_that_is_not_there():
    with pytest.raises(InputError, match="no execution provider 'tpu'"):
        Explainer(model(), preprocess=PREPROCESS, provider="tpu")


def test_warnings_of_attaching_are_handed_on():
    padded = graph(
        "c = Conv(x, K) n = Neg(c) d = Pad(n, pads) q = MaxPool<kernel_shape=[2, 2]>(d) e = Conv(q, L)"
        " p = GlobalAveragePool(e) f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        L=(6, 6, 1, 1),
        W=(6, 4),
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
    )
    explainer = Explainer(padded, preprocess=PREPROCESS)
    assert len(explainer.warnings) == 1
    assert "Pad_Fusion" in explainer.warnings[0]


def test_a_model_that_gives_nan(explainer):
    spoilt = model()
    kernel = next(t for t in spoilt.graph.initializer if t.name == "K")
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.full((6, 3, 3, 3), np.nan, np.float32), "K"))
    stream = Explainer(spoilt, preprocess=PREPROCESS).stream(images(3))
    with pytest.raises(ModelError, match="the model gives NaN for this image; check --preprocess"):
        next(stream)
    assert isinstance(explainer(images(1)[0]), Explanation)


@pytest.mark.parametrize("choices", [{}, {"method": "scorecam"}, {"augment": True}])
def test_nothing_to_explain_gives_nothing(choices):
    explainer = Explainer(model(), preprocess=PREPROCESS, threads=1, **choices)
    assert explainer.explained([], 1) == list(explainer.stream([])) == []
    one, none = explainer.run(inputs(explainer, 1), [1]), explainer.run(inputs(explainer, 0), [])
    assert list(one) == list(none)
    assert {result.name for result in explainer.results} <= set(one)
    for name, values in none.items():
        assert (values.shape, values.dtype) == ((0, *one[name].shape[1:]), one[name].dtype)


def inputs(explainer, count):
    prepared = [explainer.prepared(image).tensor for image in images(1)]
    return np.stack(prepared * count) if count else np.stack(prepared)[:0]


def test_a_map_that_is_zero_everywhere_is_said(explainer):
    explanation = explainer(images(1)[0], 1)
    blank, seen = (replace(explanation.maps[0], heatmap=np.full_like(explanation.heatmap, v)) for v in (0, 0.5))
    assert replace(explanation, maps=[seen]).warnings == []
    (sentence,) = replace(explanation, maps=[blank, seen]).warnings
    assert sentence.startswith(f"the heatmap of {blank.target.label!r} is zero everywhere: ")
