"""What methods ask for: the image's cotangent, several layers, modifiers; on models whose numbers are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError

SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}
DEEP = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"


def deep(**kwargs) -> onnx.ModelProto:
    return graph(DEEP, **SIZES, **kwargs)


def explained(x, classes, **choices):
    source = choices.pop("source", None) or deep()
    return run(attach(source, **choices).to_proto(), x=x, target_class=np.array(classes, np.int64))


def slope(x: np.ndarray, direction: np.ndarray, index: int, step: float = 1e-3) -> float:
    up, down = (run(deep(), x=x + s * step * direction)["y"][0, index] for s in (1, -1))
    return float(up - down) / (2 * step)


def test_the_gradient_of_the_image_is_the_derivative():
    x, direction = images(1, 3, 8, 8), images(1, 3, 8, 8, seed=5)
    results = explained(x, [2], method="gradient")
    assert results["attribution"].shape == x.shape
    assert np.vdot(results["attribution"], direction) == pytest.approx(slope(x, direction, 2), rel=2e-2)
    np.testing.assert_allclose(results["cam"], results["attribution"].sum(1), rtol=1e-5, atol=1e-7)


def test_saliency_is_the_absolute_gradient_and_its_map_the_largest_channel():
    x = images(2, 3, 8, 8)
    signed = explained(x, [1], method="gradient")["attribution"]
    results = explained(x, [1], method="saliency")
    np.testing.assert_array_equal(results["attribution"], np.abs(signed))
    np.testing.assert_array_equal(results["cam"], np.abs(signed).max(1))
    np.testing.assert_allclose(results["heatmap"].max((1, 2)), 1, rtol=1e-6)
    summed = explained(x, [1], method="saliency", channels="sum")
    np.testing.assert_allclose(summed["cam"], np.abs(signed).sum(1), rtol=1e-5)


def test_an_attribution_has_the_axes_of_the_input():
    source = graph(f"n = Transpose<perm=[0,3,1,2]>(x) {DEEP.replace('(x,', '(n,')}", inputs="float[N,8,8,3] x", **SIZES)
    x = images(1, 3, 8, 8)
    expected = explained(x, [0], method="gradient")
    results = explained(x.transpose(0, 2, 3, 1), [0], method="gradient", source=source)
    np.testing.assert_allclose(results["attribution"], expected["attribution"].transpose(0, 2, 3, 1), rtol=1e-5)
    np.testing.assert_allclose(results["heatmap"], expected["heatmap"], rtol=1e-5, atol=1e-6)


def test_several_layers_are_averaged_and_scaled_again():
    x = images(2, 3, 8, 8)
    single = [explained(x, [1], layer=name)["heatmap"] for name in ("a", "b")]
    results = explained(x, [1], layer=["a", "b"])
    mean = np.mean(single, axis=0)
    np.testing.assert_allclose(results["heatmap"], mean / mean.max((1, 2), keepdims=True), rtol=1e-4, atol=1e-6)
    assert attach(deep(), layer=["a", "b"]).metadata.target_tensors == ["a", "b"]


def test_the_same_layer_twice_counts_once():
    assert attach(deep(), layer=["auto", "b"]).metadata.target_tensors == ["b"]


def test_modifiers_change_the_gradient():
    x = images(1, 3, 8, 8)
    plain, guided, deconvnet = (
        explained(x, [1], method="gradient", modifier=modifier)["attribution"]
        for modifier in (None, "guided", "deconvnet")
    )
    assert not np.allclose(plain, guided)
    assert not np.allclose(guided, deconvnet)
    b = explained(x, [1], layer="a", modifier="guided")["cam"]
    assert not np.allclose(b, explained(x, [1], layer="a")["cam"])


def test_refusals():
    with pytest.raises(UnsupportedError, match="no rectifier to change"):
        attach(deep(), weights="linear", modifier="guided")
    with pytest.raises(InputError, match="layer is empty; name at least one"):
        attach(deep(), layer=[])
    with pytest.raises(TargetError, match="there is no preset 'keras'"):
        attach(deep(), preset="keras")


def test_the_difference_of_two_classes_is_the_difference_of_their_maps():
    x = images(2)
    for weights in ("linear", "gradient"):
        one, other = (explained(x, [index], weights=weights)["cam"] for index in (1, 3))
        cam = explained(x, [1], against=3, weights=weights)["cam"]
        np.testing.assert_allclose(cam, one - other, rtol=1e-4, atol=1e-6)


def test_the_runner_up_is_the_best_other_class():
    x = images(3)
    results = explained(x, [-1], against="runner-up")
    order = np.argsort(-results["y"], axis=1)
    np.testing.assert_array_equal(results["heatmap_class"], order[:, 0])
    both = [explained(x, order[:, i])["cam"] for i in (0, 1)]
    np.testing.assert_allclose(results["cam"], both[0] - both[1], rtol=1e-4, atol=1e-6)


def test_comparisons_that_make_no_sense():
    with pytest.raises(TargetError, match=r"class 4 is out of range.*0 to 3"):
        attach(deep(), against=4)
    single = graph(DEEP.replace("Gemm(f, W)", "Gemm(f, S)"), **SIZES, S=(5, 1), outputs="float[N,1] y")
    with pytest.raises(TargetError, match="each class is the other's opposite"):
        attach(single, against=0)


BIASED = DEEP.replace("(x, K)", "(x, K, k)").replace("(a, L)", "(a, L, l)")


def full_grad(body: str, **constants) -> np.ndarray:
    source = graph(body, inputs="float[1,3,8,8] x", outputs="float[1,4] y", **SIZES, **constants)
    return explained(images(1, 3, 8, 8), [1], source=source, method="fullgrad")["heatmap"]


def test_full_grad_counts_biases_that_are_quantised():
    scale = np.float32(2**-20)
    integers = np.round(weight("l", 5) / scale).astype(np.int32)
    plain = full_grad(BIASED, k=(6,), l=(integers * scale).astype(np.float32))
    body = BIASED.replace("d = Conv(a, L, l)", "q = DequantizeLinear(l, s) d = Conv(a, L, q)")
    np.testing.assert_allclose(full_grad(body, k=(6,), l=integers, s=scale), plain, atol=1e-6)
    without = full_grad(BIASED.replace("(a, L, l)", "(a, L)"), k=(6,))
    assert np.abs(plain - without).max() > 0.05


def test_full_grad_leaves_out_what_the_image_decides():
    """The same sum, once as the bias of the convolution and once added to what it computes."""
    mean = "m = ReduceMean<keepdims=0>(a, axes) n = Expand(m, five) "
    sums = {
        "as its bias": "d = Conv(a, L, n)",
        "behind it": "e = Conv(a, L) o = Unsqueeze(n, sides) d = Add(e, o)",
    }
    bodies = {how: BIASED.replace("d = Conv(a, L, l)", mean + nodes) for how, nodes in sums.items()}
    sizes = {"axes": [0, 1, 2, 3], "five": [5]}
    first = full_grad(bodies["as its bias"], k=(6,), **sizes)
    np.testing.assert_allclose(first, full_grad(bodies["behind it"], k=(6,), sides=[1, 2], **sizes), atol=1e-6)


def test_full_grad_leaves_out_normalizations_behind_the_pooling():
    """They have no map; `y` and `z` are the same scores, normalized and scaled by hand."""
    gain, shift, mean, variance = weight("gain", 4), weight("shift", 4), weight("mean", 4), np.abs(weight("var", 4)) + 1
    scale = gain / np.sqrt(variance + 1e-5)
    normalized = BIASED.replace("y = Gemm", "z = Gemm") + " y = BatchNormalization(z, gain, shift, mean, variance)"
    by_hand = BIASED.replace("y = Gemm", "z = Gemm") + " s = Mul(z, scale) y = Add(s, offset)"
    biases = {"k": (6,), "l": (5,)}
    head = full_grad(normalized, **biases, gain=gain, shift=shift, mean=mean, variance=variance)
    plain = full_grad(by_hand, **biases, scale=scale, offset=shift - mean * scale)
    np.testing.assert_allclose(head, plain, atol=1e-5)
