"""Images in, explanations out, of models of other tasks; all classes from one run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import InputError, ModelError, TargetError, UnsupportedError
from onnx_gradcam.images.decoding import prepare
from onnx_gradcam.images.drawing import save_image
from onnx_gradcam.runtime.explainer import Explainer

PREPROCESS = {"resize": "stretch", "scale": 1 / 255}
POOLED = "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)"


def pooled(tail: str = "", outputs: str = "float[N,4] y", classes: int = 4) -> onnx.ModelProto:
    return graph(f"{POOLED} {tail}", outputs=outputs, K=weight("K", 6, 3, 3, 3) * 5, W=(6, classes))


def segmenter(size: str = "8,8", batch: str = "N") -> onnx.ModelProto:
    return graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) y = Conv<pads=[1,1,1,1]>(a, M)",
        inputs=f"float[{batch},3,{size}] x",
        outputs=f"float[{batch},4,{size}] y",
        K=weight("K", 6, 3, 3, 3) * 5,
        M=(4, 6, 3, 3),
    )


def image(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


# ----- all classes at once -------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("preset", ["default", "pytorch-grad-cam"])
def test_all_classes_at_once_are_what_each_alone_is(method, preset):
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    every = run(attach(pooled(), class_input="all", method=method, preset=preset).to_proto(), x=x)
    assert every["heatmap"].shape == (2, 4, 8, 8)
    assert every["cam"].shape == (2, 4, 6, 6)
    np.testing.assert_array_equal(every["heatmap_class"], every["y"].argmax(1))
    one = attach(pooled(), method=method, preset=preset).to_proto()
    for index in range(4):
        alone = run(one, x=x, target_class=np.array([index]))
        np.testing.assert_allclose(every["cam"][:, index], alone["cam"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(every["heatmap"][:, index], alone["heatmap"], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) y = Flatten(p)", {}),
        ("c = Conv(x, K) a = Relu(c) p = ReduceSum<keepdims=0>(a, axes) y = Gemm(p, W)", {"W": (6, 6), "axes": [2, 3]}),
        ("c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) q = Conv(p, V) y = Flatten(q)", {"V": (6, 6, 1, 1)}),
        ("c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm<transB=1>(f, W) y = Mul(g, two)",
         {"W": (6, 6), "two": np.array(2, np.float32)}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_all_classes_of_every_linear_head(body, constants, dtype):
    kind = "float" if dtype == np.float32 else "float16"
    if "two" in constants:
        constants = {**constants, "two": constants["two"].astype(dtype)}
    source = graph(
        body, inputs=f"{kind}[N,3,8,8] x", outputs=f"{kind}[N,6] y", dtype=dtype, K=(6, 3, 3, 3), **constants
    )
    x = np.random.default_rng(0).random((2, 3, 8, 8)).astype(dtype)
    every = run(attach(source, class_input="all").to_proto(), x=x)
    for index in (0, 5):
        alone = run(attach(source).to_proto(), x=x, target_class=np.array([index]))
        np.testing.assert_allclose(every["cam"][:, index], alone["cam"], rtol=1e-4, atol=1e-6)


def test_a_single_logit_gives_its_complement_and_itself():
    source = pooled("z = Sigmoid(y)", "float[N,1] z", classes=1)
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    every = run(attach(source, class_input="all").to_proto(), x=x)["cam"]
    np.testing.assert_allclose(every[:, 0], -every[:, 1], rtol=1e-6)
    alone = run(attach(source).to_proto(), x=x, target_class=np.array([1]))["cam"]
    np.testing.assert_allclose(every[:, 1], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"method": "layercam"}, "gradcam or hirescam with plain gradients"),
        ({"weights": "gradient"}, "a head of pooling and one linear layer"),
        ({"against": "runner-up"}, "no class to compare with"),
        ({"preset": "keras-vis"}, "plain gradients"),
    ],
)
def test_what_cannot_be_had_for_all_classes_is_refused(choices, message):
    with pytest.raises(UnsupportedError, match=message):
        attach(pooled(), class_input="all", **choices)
    with pytest.raises(UnsupportedError, match="run the model many times"):
        Explainer(pooled(), preprocess=PREPROCESS, class_input="all", method="rise")
    flat = graph("c = Conv(x, K) a = Relu(c) f = Flatten(a) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(216, 4))
    with pytest.raises(UnsupportedError, match="a head of pooling and one linear layer"):
        attach(flat, class_input="all")


def test_the_explainer_takes_several_classes_from_one_run(monkeypatch):
    every = Explainer(pooled(), preprocess=PREPROCESS, class_input="all", threads=1)
    plain = Explainer(pooled(), preprocess=PREPROCESS, threads=1)
    runs = []
    original = every.session.run
    monkeypatch.setattr(every.session, "run", lambda feeds, names: runs.append(1) or original(feeds, names))
    for target in (None, 2, "top3", [3, "top2"]):
        runs.clear()
        got, want = every(image(), target), plain(image(), target)
        assert len(runs) == 1
        assert [m.target.index for m in got.maps] == [m.target.index for m in want.maps]
        for mine, theirs in zip(got.maps, want.maps, strict=True):
            np.testing.assert_allclose(mine.heatmap, theirs.heatmap, atol=1e-5)
            np.testing.assert_allclose(mine.cam, theirs.cam, rtol=1e-4, atol=1e-6)


# ----- regions -------------------------------------------------------------------


def test_a_region_is_fed_at_the_resolution_of_the_maps(tmp_path):
    inside = np.zeros((32, 32), np.uint8)
    inside[:, :16] = 7
    save_image(np.repeat(inside[:, :, None], 3, axis=2), tmp_path / "left.png")
    half = np.zeros((1, 8, 8), np.float32)
    half[:, :, :4] = 1
    for region in (inside, inside > 0, tmp_path / "left.png"):
        explainer = Explainer(
            segmenter(), preprocess=PREPROCESS, task="segmentation", mask="input", region=region, threads=1
        )
        got = explainer(image(), 2)
        tensor, _ = prepare(image(), explainer.preprocessing)
        proto = attach(segmenter(), task="segmentation", mask="input").to_proto()
        want = run(proto, x=tensor[None], target_class=np.array([2]), target_mask=half)
        np.testing.assert_allclose(got.heatmap, want["heatmap"][0], atol=1e-6)
        np.testing.assert_allclose(got.scores, want["target_scores"][0], rtol=1e-5)


def test_regions_that_cannot_be_used():
    choices = {"preprocess": PREPROCESS, "task": "segmentation", "threads": 1}
    with pytest.raises(TargetError, match="give a --region"):
        Explainer(segmenter(), mask="input", **choices)
    with pytest.raises(TargetError, match="takes no region"):
        Explainer(segmenter(), region=np.ones((8, 8)), **choices)
    with pytest.raises(InputError, match=r"shape \(2, 2, 2\)"):
        Explainer(segmenter(), mask="input", region=np.ones((2, 2, 2)), **choices)
    with pytest.raises(InputError):
        Explainer(segmenter(), mask="input", region="nowhere.png", **choices)
    with pytest.raises(ModelError, match="size of its maps open"):
        Explainer(segmenter("h,w"), mask="input", region=np.ones((8, 8)), **choices)
    with pytest.raises(UnsupportedError, match="cannot pass a region to it"):
        Explainer(segmenter(), mask="input", region=np.ones((8, 8)), method="rise", **choices)
    with pytest.raises(TargetError, match="mirroring"):
        Explainer(segmenter(), mask="input", region=np.ones((8, 8)), augment=True, **choices)


# ----- references and classes to compare with --------------------------------------


def test_a_image_is_the_reference_of_a_similarity(tmp_path):
    other = image(5)
    save_image(other, tmp_path / "other.png")
    plain = Explainer(pooled(), preprocess=PREPROCESS, threads=1)
    embedding = plain(other).scores
    np.save(tmp_path / "embedding.npy", embedding)
    want = None
    for reference in (embedding, other, tmp_path / "other.png", str(tmp_path / "embedding.npy")):
        explainer = Explainer(pooled(), preprocess=PREPROCESS, task="embedding", reference=reference, threads=1)
        assert explainer(other).target.score == pytest.approx(1, abs=1e-5)
        got = explainer(image())
        mine = plain(image()).scores
        cosine = mine @ embedding / np.linalg.norm(mine) / np.linalg.norm(embedding)
        assert got.target.score == pytest.approx(cosine, abs=1e-5)
        want = got.heatmap if want is None else want
        np.testing.assert_allclose(got.heatmap, want, atol=1e-4)


def test_references_that_cannot_be_used(tmp_path):
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name in ("broken.npy", "words.npy", "missing.npy"):
        with pytest.raises(TargetError, match="holds no embedding"):
            Explainer(pooled(), preprocess=PREPROCESS, task="embedding", reference=tmp_path / name)
    with pytest.raises(InputError, match="preprocessing for the reference image"):
        Explainer(pooled(), task="embedding", reference=image())
    two = pooled("z = Neg(y)", "float[N,4] y, float[N,4] z")
    with pytest.raises(TargetError, match="several outputs could hold the embedding"):
        Explainer(two, preprocess=PREPROCESS, task="embedding", reference=image())
    with pytest.raises(TargetError, match="no output 'zz'"):
        Explainer(two, preprocess=PREPROCESS, task="embedding", reference=image(), output="zz")
    explainer = Explainer(two, preprocess=PREPROCESS, task="embedding", reference=image(), output="z")
    assert explainer(image()).target.score == pytest.approx(1, abs=1e-5)


def test_the_class_to_compare_with_may_be_a_name():
    names = ["cat", "dog", "bird", "fish"]
    by_name = Explainer(pooled(), preprocess=PREPROCESS, labels=names, against="bird", threads=1)(image(), "dog")
    by_number = Explainer(pooled(), preprocess=PREPROCESS, against=2, threads=1)(image(), 1)
    np.testing.assert_array_equal(by_name.cam, by_number.cam)
    carried = attach(pooled(), labels=names)
    props = [p for p in carried.to_proto().metadata_props if p.key == "onnx_gradcam.labels"]
    source = pooled()
    source.metadata_props.extend(props)
    from_model = Explainer(source, preprocess=PREPROCESS, against="bird", threads=1)(image(), 1)
    np.testing.assert_array_equal(from_model.cam, by_number.cam)
    with pytest.raises(TargetError, match=r"no class is called 'birt'.*bird"):
        Explainer(pooled(), preprocess=PREPROCESS, labels=names, against="birt")
    with pytest.raises(TargetError, match="without class names"):
        Explainer(pooled(), preprocess=PREPROCESS, against="bird")
    with pytest.raises(TargetError, match="cannot be looked up without class names"):
        attach(pooled(), against="bird")


# ----- outputs without an axis of classes ----------------------------------------


def heads(tail: str, outputs: str, **constants) -> onnx.ModelProto:
    return graph(f"{POOLED} {tail}", outputs=outputs, K=weight("K", 6, 3, 3, 3) * 5, W=(6, 4), **constants)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("squeezed", [True, False], ids=["squeezed", "one column"])
def test_one_value_per_sample_is_explained_as_a_single_column_is(sigmoid, squeezed):
    after = "t = Sigmoid(s)" if sigmoid else "t = Identity(s)"
    one = {"column": [0], "last": [1], "index": 0}
    column = f"s = Gather<axis=1>(y, column) {after}"
    flat = f"{column} v = Squeeze(t, last)" if squeezed else f"s = Gather<axis=1>(y, index) {after} v = Identity(t)"
    rows = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    wide = Explainer(heads(column, "float[N,1] t", **one), preprocess=PREPROCESS)
    narrow = Explainer(heads(flat, "float[N] v", **one), preprocess=PREPROCESS)
    for target in (-1, 0, 1):
        expected, found = wide.run(rows, [target] * 2), narrow.run(rows, [target] * 2)
        for name in ("heatmap", "cam", "heatmap_class"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    assert narrow.metadata.single_logit
    assert narrow(image()).scores.tolist() == pytest.approx(wide(image()).scores.tolist())


def test_one_value_per_sample_is_explained_as_a_regression_too():
    model = heads("s = Gather<axis=1>(y, index) v = Identity(s)", "float[N] v", index=2)
    explainer = Explainer(model, task="regression", preprocess=PREPROCESS)
    rows = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    found = explainer.run(rows, [0, -1])
    np.testing.assert_allclose(
        found["cam"], run(attach(pooled()).to_proto(), x=rows, target_class=np.array([2, 2], np.int64))["cam"]
    )
    np.testing.assert_array_equal(found["heatmap_class"], [0, 0])
    with pytest.raises(TargetError, match="class 1 is out of range; the model has class 0 alone"):
        explainer(image(), target=1)


@pytest.mark.parametrize(
    ("tail", "outputs", "named"),
    [
        ("q = Softmax(y) best, ids = TopK(q, three)", "float[N,3] best, int64[N,3] ids", None),
        ("q = Softmax(y) best, ids = TopK(q, three)", "float[N,3] best, int64[N,3] ids", "best"),
        ("ids = ArgMax<axis=1, keepdims=0>(y)", "int64[N] ids", None),
        ("q = Softmax(y) i = ArgMax<axis=-1, keepdims=1>(q) ids = Cast<to=6>(i)", "int32[N,1] ids", None),
        ("top = ReduceMax<keepdims=0>(y, one) ids = ArgMax<axis=1>(y)", "float[N] top, int64[N,1] ids", None),
    ],
)
def test_ranked_classes_are_explained_by_the_scores_of_all_classes(tail, outputs, named):
    model = heads(tail, outputs, three=[3], one=[1])
    names = ["cat", "dog", "fox", "cow"]
    explainer = Explainer(model, labels=names, preprocess=PREPROCESS, output=named)
    plain = Explainer(pooled(), labels=names, preprocess=PREPROCESS)
    expected, found = plain(image()), explainer(image())
    assert found.target.label == expected.target.label
    order = [target.label for target in expected.top(4)]
    assert [target.label for target in found.top(4)] == order
    np.testing.assert_allclose(found.cam, expected.cam, atol=1e-6)
    np.testing.assert_allclose(explainer(image(), "fox").cam, plain(image(), "fox").cam, atol=1e-6)
    if "Softmax" in tail:
        assert explainer.metadata.activation == "softmax"
        assert found.scores.sum() == pytest.approx(1)


def test_ranked_classes_beside_the_scores_of_all_leave_these_the_output():
    model = heads("ids = ArgMax<axis=1>(y)", "int64[N,1] ids, float[N,4] y")
    assert attach(model).metadata.scores_output == "y"
    # The output that holds the scores is used, not added again.
    assert attach(model, output="ids").metadata.scores_output == "y"


def test_ranks_of_different_tensors_are_not_one_score():
    model = heads("z = Neg(y) i = ArgMax<axis=1>(y) j = ArgMax<axis=1>(z)", "int64[N,1] i, int64[N,1] j")
    with pytest.raises(TargetError, match="no output looks like class scores"):
        attach(model)
    assert attach(model, output="j").metadata.scores_output == "target_scores"


def test_a_softmax_over_one_class_has_no_second_class():
    model = heads("s = Gather<axis=1>(y, column) v = Softmax<axis=1>(s)", "float[N,1] v", column=[0])
    explanation = Explainer(model, preprocess=PREPROCESS)(image())
    assert explanation.scores.tolist() == [1.0]
    assert (explanation.target.index, explanation.target.score) == (0, 1.0)
    logit = heads("v = Gather<axis=1>(y, column)", "float[N,1] v", column=[0])
    expected = Explainer(logit, preprocess=PREPROCESS)(image(), 1)
    np.testing.assert_allclose(explanation.cam, expected.cam, atol=1e-6)
    with pytest.raises(TargetError, match="class 1 is out of range; the model has class 0 alone"):
        Explainer(model, preprocess=PREPROCESS)(image(), 1)


def test_a_detector_of_one_class_has_no_second_class():
    model = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) s = Conv(a, M) r = Reshape(s, flat) y = Transpose<perm=[0,2,1]>(r)",
        inputs="float[1,3,8,8] x",
        outputs="float[1,36,1] y",
        K=weight("K", 6, 3, 3, 3) * 5,
        M=(1, 6, 3, 3),
        flat=[0, 1, 36],
    )
    explainer = Explainer(model, task="detection", preprocess=PREPROCESS)
    assert explainer(image(), 0).target.index == 0
    with pytest.raises(TargetError, match="class 1 is out of range; the model has class 0 alone"):
        explainer(image(), 1)
    with pytest.raises(TargetError, match="class 1 is out of range; the model has class 0 alone"):
        attach(model, task="detection", class_input="none", target=1)


def test_a_reference_image_for_a_model_with_weights_in_another_file(tmp_path):
    model = graph(POOLED, outputs="float[N,4] y", K=weight("K", 6, 3, 3, 3) * 5, W=(6, 4))
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    onnx.save(model, inside)
    onnx.save(model, outside, save_as_external_data=True, location="outside.data", size_threshold=0)
    save_image(image(), tmp_path / "reference.png")
    choices = {"task": "embedding", "reference": tmp_path / "reference.png", "preprocess": PREPROCESS}
    expected, found = (Explainer(path, **choices)(image(5)) for path in (inside, outside))
    np.testing.assert_array_equal(found.cam, expected.cam)
    assert found.target.score == expected.target.score
    assert Explainer(outside, **choices)(image()).target.score == pytest.approx(1)
