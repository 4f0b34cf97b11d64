"""Which output is explained, which tensor before it is differentiated, and functions of several classes' scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.cam_oracle import numeric_map
from support.graphs import builder, graph, images, run

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.targets.score import find_score, image_inputs
from onnx_gradcam.errors import TargetError

BODY = "p = GlobalAveragePool(x) f = Flatten(p) l = Gemm(f, W)"
W = (3, 4)


def scored(tail: str, outputs: str = "float[N,4] y", opset: int = 18, **constants):
    return builder(graph(f"{BODY} {tail}", outputs=outputs, opset=opset, W=W, **constants))


@pytest.mark.parametrize(
    ("tail", "tensor", "activation"),
    [
        ("y = Identity(l)", "y", ""),
        ("y = Softmax(l)", "l", "softmax"),
        ("y = Softmax<axis=1>(l)", "l", "softmax"),
        ("y = LogSoftmax(l)", "l", "logsoftmax"),
        ("y = Sigmoid(l)", "l", "sigmoid"),
        ("s = Softmax(l) y = Identity(s)", "l", "softmax"),
        ("s = Softmax(l) y = Reshape(s, minus)", "l", "softmax"),
        ("r = Reshape(l, minus) y = Softmax(r)", "l", "softmax"),
        ("r = Unsqueeze(l, two) s = Softmax<axis=1>(r) y = Squeeze(s, two)", "l", "softmax"),
        ("y = Relu(l)", "y", ""),
        # Not the activation of the scores: it lies before the last linear layer.
        ("s = Sigmoid(l) y = MatMul(s, V)", "y", ""),
        # Softmax over something that is not the classes is no activation of the scores.
        ("y = Softmax<axis=0>(l)", "y", ""),
    ],
)
def test_the_tensor_before_a_trailing_activation(tail, tensor, activation):
    score = find_score(scored(tail, minus=[-1, 4], two=[2], V=(4, 4)))
    assert (score.tensor.name, score.activation) == (tensor, activation)
    assert (score.output.name, score.classes, score.class_axis, score.single_logit) == ("y", 4, 1, False)
    assert ("left out" in score.reason) == bool(activation)


def test_softmax_of_old_opsets_flattens_and_is_followed_all_the_same():
    model = graph(
        "p = GlobalAveragePool(c) f = Reshape(p, shape) l = MatMul(f, W) y = Softmax(l)",
        inputs="float[1,3,8,8] c",
        outputs="float[1,4] y",
        opset=9,
        shape=[1, 3],
        W=W,
    )
    score = find_score(builder(model))
    assert (score.tensor.name, score.activation) == ("l", "softmax")


def test_trailing_axes_of_size_one():
    model = graph(
        "c = Conv(x, K) p = GlobalAveragePool(c) y = Softmax<axis=1>(p)",
        outputs="float[N,4,1,1] y",
        K=(4, 3, 1, 1),
    )
    score = find_score(builder(model))
    assert (score.tensor.name, score.class_axis, score.classes) == ("p", 1, 4)


def test_channels_last_scores_with_leading_axes_of_size_one():
    t = scored("r = Reshape(l, shape) y = Softmax(r)", "float[N,1,1,4] y", shape=[-1, 1, 1, 4])
    score = find_score(t)
    assert (score.tensor.name, score.class_axis, score.classes) == ("l", 1, 4)


@pytest.mark.parametrize("tail", ["y = Sigmoid(l)", "y = Identity(l)", "r = Reshape(l, minus) y = Sigmoid(r)"])
def test_a_single_number_decides_between_two_classes(tail):
    t = builder(graph(f"{BODY} {tail}", outputs="float[N,1] y", W=(3, 1), minus=[-1, 1]))
    score = find_score(t)
    assert score.single_logit
    assert score.classes == 2
    assert score.activation == ("sigmoid" if "Sigmoid" in tail else "")
    assert "complement" in score.reason


def test_quantised_output():
    tail = "q = QuantizeLinear(l, scale, zero) y = Identity(q)"
    t = scored(tail, "uint8[N,4] y", scale=np.float32(0.1), zero=np.uint8(128))
    assert find_score(t).tensor.name == "l"
    with pytest.raises(TargetError, match=r"uint8, which has no gradient; use --score logit"):
        find_score(t, kind="output")


def test_quantised_output_behind_a_softmax():
    tail = "s = Softmax(l) y = QuantizeLinear(s, scale, zero)"
    score = find_score(scored(tail, "uint8[N,4] y", scale=np.float32(0.1), zero=np.uint8(0)))
    assert (score.tensor.name, score.activation) == ("l", "softmax")


def test_output_itself():
    score = find_score(scored("y = Softmax(l)"), kind="output")
    assert (score.tensor.name, score.activation) == ("y", "softmax")
    assert "as requested" in score.reason


def test_logits_and_probabilities_of_the_same_tensor_are_no_ambiguity():
    t = scored("y = Softmax(l) z = Identity(l)", "float[N,4] y, float[N,4] z")
    assert find_score(t).tensor.name == "l"
    t = scored("y = Softmax(l)", "float[N,4] y, float[N,4] l")
    assert find_score(t).tensor.name == "l"


def test_several_outputs_have_to_be_named():
    t = scored("y = Identity(l) z = MatMul(l, V)", "float[N,4] y, float[N,5] z", V=(4, 5))
    with pytest.raises(TargetError, match=r"'y' \[N, 4\], 'z' \[N, 5\].*--output"):
        find_score(t)
    score = find_score(t, "z")
    assert (score.tensor.name, score.classes) == ("z", 5)


def test_an_unknown_output_is_answered_with_near_matches():
    t = scored("y = Identity(l) logits = MatMul(l, V)", "float[N,4] y, float[N,5] logits", V=(4, 5))
    with pytest.raises(TargetError, match=r"no output 'logit'; did you mean 'logits'\?"):
        find_score(t, "logit")


def test_an_output_that_holds_no_scores():
    t = scored("m = Relu(x) y = Identity(l)", "float[N,3,8,8] m, float[N,4] y")
    assert find_score(t).output.name == "y"
    with pytest.raises(TargetError, match=r"'m' of shape \[N, 3, 8, 8\] does not hold one score per class"):
        find_score(t, "m")


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("y = Relu(x)", "float[N,3,8,8] y"),
        ("y = ArgMax(l)", "int64[N,1] y"),
        ("y = ReduceSum<keepdims=0>(l, both)", "float y"),
    ],
)
def test_no_scores_at_all(tail, outputs):
    with pytest.raises(TargetError, match="no output looks like class scores"):
        find_score(scored(tail, outputs, both=[0, 1]))


def test_one_value_per_sample():
    score = find_score(scored("s = ReduceSum<keepdims=0>(l, one) y = Sigmoid(s)", "float[N] y", one=[1]))
    assert (score.tensor.name, score.activation, score.classes, score.single_logit) == ("s", "sigmoid", 2, True)
    assert "holds one value per sample" in score.reason
    # An output with an axis of classes is the one to explain.
    beside = scored("y = Identity(l) s = ReduceSum<keepdims=0>(l, one)", "float[N] s, float[N,4] y", one=[1])
    assert find_score(beside).output.name == "y"


def test_class_labels_beside_scores_do_not_matter():
    t = scored("y = Identity(l) best = ArgMax<axis=1>(l)", "int64[N,1] best, float[N,4] y")
    assert find_score(t).output.name == "y"


def test_image_inputs_are_those_of_rank_four():
    model = graph("y = Identity(l) c = Relu(x) d = Relu(z)", inputs="float[N,4] l, float[N,3,8,8] x, float z")
    assert [v.name for v in image_inputs(builder(model))] == ["x"]


HEADS = {
    "pooling and one linear layer": "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
    "two layers": "p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(f, V) h = Tanh(g) y = Gemm(h, W)",
}
CLASS = 1


def source(head: str):
    return graph(f"c = Conv(x, K) a = Relu(c) {head}", K=(6, 3, 3, 3), V=(6, 6), W=(6, 4))


def against_third(y: np.ndarray) -> np.ndarray:
    return y[:, CLASS] - y[:, 3]


def ahead_of_the_best_other(y: np.ndarray) -> np.ndarray:
    return y[:, CLASS] - np.delete(y, CLASS, axis=1).max(1)


def ahead_of_the_similar(y: np.ndarray) -> np.ndarray:
    """Finer-CAM: of the three nearest, weighted by their probabilities; of four classes these are all others."""
    exponentials = np.exp(y - y.max(1, keepdims=True))
    weights = np.delete(exponentials / exponentials.sum(1, keepdims=True), CLASS, axis=1)
    lead = y[:, CLASS : CLASS + 1] - np.delete(y, CLASS, axis=1)
    return (weights * lead).sum(1) / (weights.sum(1) + 1e-9)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("choices", "score"),
    [
        ({"against": 3}, against_third),
        ({"against": "runner-up"}, ahead_of_the_best_other),
        ({"method": "finercam"}, ahead_of_the_similar),
    ],
)
def test_the_map_is_what_moving_the_activations_does(head, choices, score: Callable[[np.ndarray], np.ndarray]):
    x, model = images(2), source(HEADS[head])
    got = run(attach(model, **choices).to_proto(), x=x, target_class=np.array([CLASS]))["cam"]
    expected = numeric_map(model, "a", ["y"], lambda out: score(out["y"].astype(np.float64)), x, local=False, step=1e-2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=4e-3 * np.abs(expected).max())


def test_a_difference_is_the_difference_of_the_maps():
    x, model = images(2), source(HEADS["two layers"])
    plain = attach(model).to_proto()
    each = [run(plain, x=x, target_class=np.array([i]))["cam"] for i in (CLASS, 3)]
    got = run(attach(model, against=3).to_proto(), x=x, target_class=np.array([CLASS]))["cam"]
    np.testing.assert_allclose(got, each[0] - each[1], atol=1e-6)


@pytest.mark.parametrize("other", [4, -1, 99])
def test_a_class_that_is_not_there(other):
    with pytest.raises(TargetError, match=rf"class {other} is out of range.*0 to 3"):
        attach(source(HEADS["two layers"]), against=other)


def test_a_single_logit_has_its_opposite_already():
    model = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        outputs="float[N,1] y",
        K=(6, 3, 3, 3),
        W=(6, 1),
    )
    with pytest.raises(TargetError, match="the other's opposite"):
        attach(model, against=0)
