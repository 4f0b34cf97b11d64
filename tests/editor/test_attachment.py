"""The contract of an explained model, on small models whose maps are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.cam_oracle import numeric_grad_cam
from support.graphs import graph, images, run, vit, weight
from support.helpers import needs_opset

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import ModelError, TargetError, UnsupportedError
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.session import Session

BODY = "c = Conv(x, K) a = Relu(c)"
POOLED = f"{BODY} p = GlobalAveragePool(a) f = Flatten(p)"
SIZES = {"K": (6, 3, 3, 3), "W": (6, 4), "V": (4, 6), "B": (4,)}


def model(tail: str = "y = Gemm(f, W)", body: str = POOLED, **kwargs) -> onnx.ModelProto:
    return graph(f"{body} {tail}", **{**SIZES, **kwargs})


def explained(source: onnx.ModelProto, **choices) -> onnx.ModelProto:
    return attach(source, **choices).to_proto()


def explain(source: onnx.ModelProto, x: np.ndarray, classes: list[int] | None = None, **choices):
    feeds = {"x": x}
    if classes is not None:
        feeds["target_class"] = np.array(classes, np.int64)
    return run(explained(source, **choices), **feeds)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


# ----- names, types, shapes --------------------------------------------------


def test_outputs_and_inputs():
    session = Session(explained(model()).SerializeToString())
    assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", "float32", ("N", 3, 8, 8))]
    assert [(o.name, o.dtype, o.shape) for o in session.outputs] == [
        ("y", "float32", ("N", 4)),
        ("heatmap", "float32", ("N", 8, 8)),
        ("cam", "float32", ("N", 6, 6)),
        ("heatmap_class", "int64", ("N",)),
    ]


def test_the_optional_class_is_an_input_that_is_an_initializer_too():
    proto = explained(model())
    (listed,) = (i for i in proto.graph.input if i.name == "target_class")
    (content,) = (numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "target_class")
    assert listed.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert content.tolist() == [-1]


def test_taken_names_get_a_prefix():
    source = model("y = Gemm(f, W) heatmap = Relu(y) cam = Neg(y) gradcam_cam = Abs(y)", outputs="float[N,4] y")
    metadata = attach(source).metadata
    assert (metadata.heatmap, metadata.cam, metadata.heatmap_class, metadata.class_input) == (
        "gradcam_heatmap",
        "gradcam_gradcam_cam",
        "heatmap_class",
        "target_class",
    )
    assert explain(source, images())["gradcam_heatmap"].shape == (2, 8, 8)


def test_the_explained_model_is_valid_and_has_all_its_nodes_before_the_appended_ones():
    source = model()
    proto = explained(source)
    onnx.checker.check_model(proto, full_check=True)
    assert [n.op_type for n in proto.graph.node[: len(source.graph.node)]] == [n.op_type for n in source.graph.node]


# ----- the maps --------------------------------------------------------------


@pytest.mark.parametrize("weights", ["auto", "linear", "gradient", "finite"])
def test_closed_form(weights):
    """Behind pooling and a linear layer, the map is sum_k W_kc A_k / HW."""
    source, x = model("y = Gemm<alpha=0.5, transB=1>(f, V, B)"), images(3)
    got = explain(source, x, [2, 0, 3], weights=weights, expose_activation=True)
    rows = 0.5 * weight("V", 4, 6)[[2, 0, 3]]
    cam = np.einsum("nk,nkhw->nhw", rows, got["a"]) / 36
    tolerance = 1e-3 if weights == "finite" else 1e-6
    np.testing.assert_allclose(got["cam"], cam, rtol=tolerance, atol=tolerance * np.abs(cam).max())
    top = relu(cam).max(axis=(1, 2))
    assert got["heatmap"].max() == pytest.approx(1, abs=0.2)
    assert (top > 0).all()
    assert got["heatmap_class"].tolist() == [2, 0, 3]


CURVED = {
    "tanh": "t = Tanh(f) y = Gemm(t, W)",
    "softmax of the output": "l = Gemm(f, W) y = Softmax(l)",
    "two layers": "h = Gemm(f, W6) r = Sigmoid(h) y = Gemm(r, W)",
    "normalised": "n = LayerNormalization(f, g, g) y = Gemm(n, W)",
}


@pytest.mark.parametrize("tail", CURVED.values(), ids=CURVED)
def test_gradient_and_finite_differences_agree_behind_a_curved_head(tail):
    source = model(tail, W6=(6, 6), g=np.ones(6, np.float32))
    x, classes = 2 * images(3), [1, 3, 0]
    exact = explain(source, x, classes, weights="gradient", score="output")["cam"]
    finite = explain(source, x, classes, weights="finite", score="output")["cam"]
    np.testing.assert_allclose(exact, numeric_grad_cam(source, x, classes, score="output"), rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(finite, exact, atol=5e-3 * np.abs(exact).max())


EXCITED = "g = GlobalAveragePool(a) e = Conv(g, L) i = Sigmoid(e) m = Mul(a, i)"
NUMERIC = {
    "flatten and dense": "q = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(a) f = Flatten(q) y = Gemm(f, W54)",
    "squeeze and excite": f"{EXCITED} p = GlobalAveragePool(m) f = Flatten(p) y = Gemm(f, W)",
    "spatial attention": "l = Conv(a, L1) i = Sigmoid(l) m = Mul(a, i) f = ReduceMax<keepdims=0>(m, hw) y = Gemm(f, W)",
}


@pytest.mark.parametrize("tail", NUMERIC.values(), ids=NUMERIC)
def test_the_map_is_what_moving_the_activations_does(tail):
    source = model(tail, BODY, W54=(54, 4), L=(6, 6, 1, 1), L1=(1, 6, 1, 1), hw=[2, 3])
    x, classes = images(2), [1, 2]
    for layer in ("auto", "a"):
        got = explain(source, x, classes, layer=layer)["cam"]
        want = numeric_grad_cam(source, x, classes, layer=layer, step=1e-3)
        np.testing.assert_allclose(got, want, rtol=5e-3, atol=2e-3 * np.abs(want).max())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"registers": 2},
        {"fused": True, "decomposed": True},
        {"head": "slice", "batch": "2"},
        {"head": "mean"},
        {"head": "both", "registers": 1},
        {"head": "patches"},
    ],
    ids=str,
)
def test_vision_transformers(options):
    source, x, classes = vit(**options), images(2), [1, 3]
    got = explain(source, x, classes)
    want = numeric_grad_cam(source, x, classes)
    assert got["cam"].shape == (2, 4, 4)
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got["cam"], want, rtol=1e-2, atol=5e-3 * np.abs(want).max())


def test_a_mean_over_all_tokens_counts_the_class_token():
    source, x = vit(head="mean", registers=2), images(2)
    got = {w: explain(source, x, [1, 3], weights=w)["cam"] for w in ("linear", "gradient", "finite")}
    np.testing.assert_allclose(got["linear"], got["gradient"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(got["finite"], got["gradient"], atol=1e-2 * np.abs(got["gradient"]).max())


def test_a_zero_map_stays_zero():
    """All weights of class 1 are negative on activations that are positive, so there is nothing to show."""
    negative = np.array([[1, -1, 1, 1]] * 6, np.float32)
    x = images(2)
    got = explain(model(W=negative), x, [1, 1])
    assert (got["cam"] < 0).any()
    assert (got["cam"] <= 0).all()
    np.testing.assert_array_equal(got["heatmap"], np.zeros((2, 8, 8), np.float32))
    silent = explain(model(K=np.zeros((6, 3, 3, 3), np.float32)), x)
    np.testing.assert_array_equal(silent["heatmap"], np.zeros((2, 8, 8), np.float32))
    np.testing.assert_array_equal(silent["cam"], np.zeros((2, 6, 6), np.float32))


# ----- the class -------------------------------------------------------------


def test_the_class_left_out_one_for_all_or_one_a_row():
    source, x = model(), images(3)
    best = explain(source, x)
    assert best["heatmap_class"].tolist() == best["y"].argmax(axis=1).tolist()
    one = explain(source, x, [2])
    assert one["heatmap_class"].tolist() == [2, 2, 2]
    each = explain(source, x, [2, -1, 0])
    assert each["heatmap_class"].tolist() == [2, best["heatmap_class"][1], 0]
    np.testing.assert_array_equal(each["cam"][0], one["cam"][0])
    np.testing.assert_array_equal(each["cam"][1], best["cam"][1])


@pytest.mark.parametrize("weights", ["linear", "gradient", "finite"])
@pytest.mark.parametrize("wrong", [[4], [0, 4], [99, 99]])
def test_a_class_out_of_range_is_an_error_and_no_empty_map(wrong, weights):
    with pytest.raises(ModelError, match="cannot run the model"):
        explain(model(), images(2), wrong, weights=weights)


def test_a_class_out_of_range_where_the_model_does_not_say_how_many_there_are():
    source = model("y = MatMul(f, U)", inputs="float[N,3,8,8] x, float[6,K] U", outputs="float[N,K] y")
    assert make_plan(source).score.classes is None
    proto, x, u = explained(source), images(2), weight("W", 6, 4)
    got = run(proto, x=x, U=u, target_class=np.array([1, 3]))
    np.testing.assert_allclose(got["cam"], explain(model(), x, [1, 3])["cam"], rtol=1e-5, atol=1e-7)
    with pytest.raises(ModelError, match="cannot run the model"):
        run(proto, x=x, U=u, target_class=np.array([4]))


@pytest.mark.parametrize("wrong", [[1, 2], [1, 2, 3, 0]])
def test_neither_one_class_nor_one_a_row(wrong):
    with pytest.raises(ModelError, match="cannot run the model"):
        explain(model(), images(3), wrong)
    with pytest.raises(ModelError, match="cannot run the model"):
        explain(model(), images(1), wrong)


def test_a_required_class():
    proto = explained(model(), class_input="required")
    session = Session(proto.SerializeToString())
    assert [(i.name, i.dtype, i.shape) for i in session.inputs][1] == ("target_class", "int64", ("N",))
    got = session.run({"x": images(2), "target_class": np.array([3, -1])})
    assert got["heatmap_class"].tolist() == [3, got["y"][1].argmax()]
    with pytest.raises(ModelError, match="target_class"):
        session.run({"x": images(2)})


def test_no_class_input():
    source, x = model(), images(3)
    fixed = attach(source, class_input="none", target=2)
    assert fixed.metadata.class_input == ""
    got = run(fixed.to_proto(), x=x)
    np.testing.assert_array_equal(got["cam"], explain(source, x, [2])["cam"])
    assert got["heatmap_class"].tolist() == [2, 2, 2]
    best = explain(source, x, class_input="none")
    assert best["heatmap_class"].tolist() == best["y"].argmax(axis=1).tolist()
    for wrong in (4, -1):
        with pytest.raises(TargetError, match=f"class {wrong} is out of range; the model has classes 0 to 3"):
            attach(source, class_input="none", target=wrong)


@pytest.mark.parametrize("weights", ["linear", "gradient", "finite"])
@pytest.mark.parametrize("tail", ["y = Gemm(f, W1)", "l = Gemm(f, W1) y = Sigmoid(l)"])
def test_a_single_logit_and_its_complement(tail, weights):
    source, x = model(tail, W1=(6, 1), outputs="float[N,1] y"), images(3)
    one = explain(source, x, [1], weights=weights)
    zero = explain(source, x, [0], weights=weights)
    np.testing.assert_array_equal(zero["cam"], -one["cam"])
    want = numeric_grad_cam(source, x, [1, 1, 1])
    np.testing.assert_allclose(one["cam"], want, rtol=1e-2, atol=1e-3 * np.abs(want).max())
    best = explain(source, x, weights=weights)
    positive = best["y"][:, 0] > (0.5 if "Sigmoid" in tail else 0)
    assert best["heatmap_class"].tolist() == positive.astype(int).tolist()
    with pytest.raises(ModelError, match="cannot run the model"):
        explain(source, x, [2], weights=weights)


@pytest.mark.parametrize("tail", ["y = Sigmoid(l)", "s = Sigmoid(l) y = Reshape(s, minus)"])
def test_a_single_probability_has_its_threshold_at_a_half(tail):
    signs = np.array([[1], [-1]] * 3, np.float32)
    source = model(f"l = Gemm(f, W1) {tail}", W1=signs, outputs="float[N,1] y", minus=[-1, 1])
    best = explain(source, images(8), score="output")
    assert best["heatmap_class"].tolist() == (best["y"][:, 0] > 0.5).astype(int).tolist()
    assert 0 < best["heatmap_class"].sum() < 8


# ----- what stays as it was --------------------------------------------------


@pytest.mark.parametrize("weights", ["linear", "gradient", "finite"])
def test_original_outputs_are_bit_identical(weights):
    source, x = model("l = Gemm(f, W) y = Softmax(l)"), images(4)
    np.testing.assert_array_equal(explain(source, x, weights=weights)["y"], run(source, x=x)["y"])


def test_a_batch_is_its_samples():
    for source in (model(), model(CURVED["tanh"]), vit()):
        x = images(3)
        together = explain(source, x, [0, 1, 2])
        for i in range(3):
            alone = explain(source, x[i : i + 1], [i])
            for name in ("cam", "heatmap"):
                np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-4, atol=1e-6)


def test_the_activation_maps_on_request():
    got = explain(model(), images(2), expose_activation=True)
    assert got["a"].shape == (2, 6, 6, 6)
    assert "a" not in explain(model(), images(2))
    listed = model(outputs="float[N,4] y, float[N,6,6,6] a")
    proto = explained(listed, expose_activation=True)
    assert [o.name for o in proto.graph.output].count("a") == 1


def test_options_say_the_same_as_choices():
    source = model()
    first = attach(source, Options(layer="c", weights="gradient")).to_proto()
    assert first == attach(source, layer="c", weights="gradient").to_proto()
    assert source == model()


# ----- other kinds of model --------------------------------------------------


def test_dynamic_height_and_width():
    source = model(inputs="float[N,3,H,W] x")
    for height, width in ((8, 8), (12, 9)):
        x = images(2, 3, height, width)
        got = explain(source, x, [1, 2], expose_activation=True)
        assert got["heatmap"].shape == (2, height, width)
        cam = np.einsum("nk,nkhw->nhw", weight("W", 6, 4).T[[1, 2]], got["a"]) / ((height - 2) * (width - 2))
        np.testing.assert_allclose(got["cam"], cam, rtol=1e-5, atol=1e-7)


def test_a_token_grid_that_depends_on_the_image_is_refused():
    """Sixteen tokens may be 4x4 as well as 2x8: only a fixed size tells."""
    source = graph(
        "a = Conv<strides=[2, 2]>(x, K) m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m)"
        " z = Gelu(k) f = ReduceMean<keepdims=0>(z, ones) y = Gemm(f, W)",
        inputs="float[N,3,H,W] x",
        opset=20,
        merged=[0, 6, -1],
        ones=[1],
        **{**SIZES, "K": (6, 3, 2, 2)},
    )
    with pytest.raises(TargetError, match="fixed size"):
        attach(source)


def test_float16():
    dtype = np.float16
    source = graph(
        f"{POOLED} l = Gemm(f, W) y = Softmax(l)",
        inputs="float16[N,3,8,8] x",
        outputs="float16[N,4] y",
        dtype=dtype,
        **SIZES,
    )
    x = images(2, dtype=dtype)
    for weights in ("linear", "gradient"):
        got = explain(source, x, [1, 2], weights=weights, expose_activation=True)
        assert (got["heatmap"].dtype, got["cam"].dtype, got["y"].dtype) == (np.float32, np.float32, dtype)
        rows = weight("W", 6, 4, dtype=dtype).T[[1, 2]].astype(np.float32)
        cam = np.einsum("nk,nkhw->nhw", rows, got["a"].astype(np.float32)) / 36
        np.testing.assert_allclose(got["cam"], cam, atol=3e-3 * np.abs(cam).max())


def test_channels_last_input():
    last = graph(
        f"n = Transpose<perm=[0, 3, 1, 2]>(i) x = Identity(n) {POOLED} y = Gemm(f, W)",
        inputs="float[N,8,8,3] i",
        **SIZES,
    )
    x = images(2)
    proto = attach(last)
    assert proto.metadata.layout == "NHWC"
    got = run(proto.to_proto(), i=np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(got["heatmap"], explain(model(), x)["heatmap"], rtol=1e-5, atol=1e-6)


def test_uint8_input():
    source = graph(
        f"d = Cast<to=1>(i) x = Mul(d, scale) {POOLED} y = Gemm(f, W)",
        inputs="uint8[N,3,8,8] i",
        scale=np.float32(1 / 255),
        **SIZES,
    )
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    want = explain(model(), x.astype(np.float32) / 255)
    np.testing.assert_allclose(run(explained(source), i=x)["cam"], want["cam"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "opset",
    [7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 20, 21, 23, *(pytest.param(n, marks=needs_opset(n)) for n in (25, 26))],
)
def test_operator_sets(opset):
    source = model("l = Gemm(f, W, B) y = Softmax<axis=1>(l)", opset=opset)
    source.ir_version = 13 if opset > 25 else 10
    x = images(2)
    for weights in ("linear", "gradient"):
        got = explain(source, x, [1, 2], weights=weights, expose_activation=True)
        cam = np.einsum("nk,nkhw->nhw", weight("W", 6, 4).T[[1, 2]], got["a"]) / 36
        np.testing.assert_allclose(got["cam"], cam, rtol=1e-5, atol=1e-7)


def test_initializers_listed_as_inputs():
    source = model(inputs="float[2,3,8,8] x", outputs="float[2,4] y")
    source.ir_version = 3
    for tensor in source.graph.initializer:
        source.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    proto = explained(source)
    assert [i.name for i in proto.graph.input] == ["x", "target_class"]
    np.testing.assert_array_equal(run(proto, x=images(2))["cam"], explain(model(), images(2))["cam"])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch(batch):
    source = model(inputs=f"float[{batch},3,8,8] x", outputs=f"float[{batch},4] y")
    x = images(batch)
    got = explain(source, x, [1] * batch)
    np.testing.assert_allclose(got["cam"], explain(model(), x, [1])["cam"], rtol=1e-6)
    assert [tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in explained(source).graph.output[1:]] == [
        (batch, 8, 8),
        (batch, 6, 6),
        (batch,),
    ]


# ----- hazards and refusals --------------------------------------------------

PADDED = "d = Pad(a, pads) q = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(d) e = Conv(q, L) r = Relu(e)"
HAZARD = {
    "body": f"c = Conv(x, K) a = Neg(c) {PADDED}",
    "tail": "p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, W)",
    "pads": [0, 0, 1, 1, 0, 0, 1, 1],
    "L": (6, 6, 1, 1),
}


def test_zero_padding_before_a_max_pool_is_computed_right_and_warned_of():
    """ONNX Runtime folds the zeros into the pool, which pads with minus infinity."""
    source = model(**HAZARD, K=np.abs(weight("K", 6, 3, 3, 3)))
    x = np.abs(images(2))
    right = run(source, disabled=["Pad_Fusion"], x=x)["y"]
    assert np.abs(run(source, x=x)["y"] - right).max() > 1e-3, "this ONNX Runtime is right by itself: drop the guard"
    result = attach(source)
    assert result.metadata.disabled_optimizers == ["Pad_Fusion"]
    assert len(result.warnings) == 1
    assert "Pad_Fusion" in result.warnings[0]
    got = run(result.to_proto(), disabled=result.metadata.disabled_optimizers, x=x)
    np.testing.assert_allclose(got["y"], right, rtol=1e-6)


def test_a_negative_zero_is_not_folded_and_not_warned_of():
    fill = np.float32(-0.0)
    source = model(**{**HAZARD, "body": HAZARD["body"].replace("Pad(a, pads)", "Pad(a, pads, fill)")}, fill=fill)
    assert attach(source).warnings == []
    assert attach(model()).warnings == []


def test_linear_weights_are_refused_behind_a_curved_head():
    message = "--weights linear is not possible: Tanh behind the pooling is not linear; use --weights gradient"
    with pytest.raises(UnsupportedError, match=message):
        attach(model(CURVED["tanh"]), weights="linear")


@pytest.mark.parametrize("weights", ["linear", "finite"])
def test_weights_that_need_pooling_are_refused_without(weights):
    flat = model("f = Flatten(a) y = Gemm(f, W216)", BODY, W216=(216, 4))
    with pytest.raises(UnsupportedError, match=f"--weights {weights} needs global average pooling right behind"):
        attach(flat, weights=weights)


def test_automatic_weights():
    assert make_plan(model()).weights == "linear"
    assert make_plan(model(CURVED["tanh"])).weights == "gradient"
    without_rule = model("t = Det(u) y = Gemm(t, W)", f"{POOLED} u = Unsqueeze(f, one)", one=[1])
    assert make_plan(without_rule).refusal is not None or make_plan(without_rule).weights == "finite"


def test_an_operator_without_a_rule_is_refused_before_anything_is_written():
    body = f"{BODY} h = Hardmax(a) f = Flatten(h)"
    source = model("y = Gemm(f, W216)", body, W216=(216, 4))
    with pytest.raises((UnsupportedError, TargetError)):
        attach(source, layer="a")


def test_an_explained_model_is_not_explained_again():
    with pytest.raises(TargetError, match=r"explained already \(layer 'a', method gradcam\); start from the original"):
        attach(explained(model()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            graph("y = Gemm(x, W)", inputs="float[N,6] x", W=(6, 4)),
            "no input of rank 4 that could take an image",
        ),
        (
            graph(
                "c = Conv(x, K) d = Add(c, z) p = GlobalAveragePool(d) y = Flatten(p)",
                inputs="float[N,3,8,8] x, float[N,4,6,6] z",
                K=(4, 3, 3, 3),
            ),
            "several inputs that could take an image.*--input",
        ),
        (graph("f = Flatten(x) y = Gemm(f, W)", W=(192, 4)), "no tensor with spatial positions|cannot be told"),
    ],
)
def test_models_that_take_no_image(source, message):
    with pytest.raises(TargetError, match=message):
        attach(source)


def test_the_image_can_be_named():
    source = graph(
        "c = Conv(x, K) d = Add(c, z) p = GlobalAveragePool(d) y = Flatten(p)",
        inputs="float[N,3,8,8] x, float[N,4,6,6] z",
        K=(4, 3, 3, 3),
    )
    assert attach(source, image="x").metadata.image_input == "x"
    with pytest.raises(TargetError, match=r"no image input 'xx'; did you mean 'x'|no image input 'xx'"):
        attach(source, image="xx")


def test_an_unknown_method():
    with pytest.raises(TargetError, match=r"no method 'gradcan'; did you mean 'gradcam'"):
        attach(model(), method="gradcan")
