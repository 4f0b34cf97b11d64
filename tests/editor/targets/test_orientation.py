"""Views that permute what they show: nothing is explained for the wrong class, or turned on its side."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import graph, run, weight

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import TargetError
from onnx_gradcam.options import Options

POOLED = "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p)"
SHUFFLE = "s = Reshape({x}, {split}) u = Transpose<perm=[0, 2, 1]>(s) {y} = Reshape(u, flat)"
CONSTANTS = {"K": (6, 3, 3, 3), "W": (6, 4), "split6": [0, 2, 3], "split4": [0, 2, 2], "flat": [0, -1]}
X = np.random.default_rng(5).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "tail",
    [
        f"{SHUFFLE.format(x='f', split='split6', y='g')} y = MatMul(g, W)",
        f"m = MatMul(f, W) {SHUFFLE.format(x='m', split='split4', y='y')}",
    ],
    ids=["channels", "classes"],
)
def test_a_shuffle_behind_the_pooling_is_no_view(tail):
    source = graph(f"{POOLED} {tail}", **CONSTANTS)
    assert make_plan(source).weights == "gradient"
    got = run(attach(source).to_proto(), x=X)["cam"]
    finite = run(attach(source, weights="finite").to_proto(), x=X)["cam"]
    np.testing.assert_allclose(got, finite, atol=1e-3 * np.abs(got).max())


def test_classes_permuted_behind_a_softmax_keep_their_numbers():
    tail = f"m = MatMul(f, W) z = Softmax(m) {SHUFFLE.format(x='z', split='split4', y='y')}"
    got = run(attach(graph(f"{POOLED} {tail}", **CONSTANTS)).to_proto(), x=X)
    np.testing.assert_array_equal(got["heatmap_class"], got["y"].argmax(1))


def spot(explained, shape, *where):
    """Where the heatmap of a black image with one bright spot is largest."""
    x = np.zeros(shape, np.float32)
    x[where] = 1
    heatmap = run(explained.to_proto(), x=x)["heatmap"][0]
    return np.unravel_index(heatmap.argmax(), heatmap.shape)


def centre(channels_out: int, channels_in: int) -> np.ndarray:
    """A convolution that leaves every place where it is."""
    kernel = np.zeros((channels_out, channels_in, 3, 3), np.float32)
    kernel[:, :, 1, 1] = 1
    return kernel


def test_height_and_width_that_change_places_inside_change_back():
    body = """c = Conv<pads=[1,1,1,1]>(x, K1) s = Transpose<perm=[0, 1, 3, 2]>(c) d = Conv<pads=[1,1,1,1]>(s, K2)
    a = Relu(d) p = GlobalAveragePool(a) f = Flatten(p) y = MatMul(f, ones)"""
    source = graph(
        body, inputs="float[N,3,12,10] x", K1=centre(6, 3), K2=centre(6, 6), ones=np.ones((6, 4), np.float32)
    )
    explained = attach(source)
    assert explained.metadata.target_tensor == "a"
    assert spot(explained, (1, 3, 12, 10), 0, slice(None), 2, 9) == (2, 9)


def test_a_image_lying_on_its_side_is_refused():
    body = f"t = Transpose<perm=[0, 3, 2, 1]>(x) {POOLED.replace('(x,', '(t,')} y = MatMul(f, W)"
    with pytest.raises(TargetError, match=r"axes of the input 'x' are NWHC.*NCHW or NHWC"):
        attach(graph(body, inputs="float[N,10,12,3] x", **CONSTANTS))


def test_a_score_with_its_classes_first_is_refused():
    body = f"{POOLED} m = MatMul(f, W) y = Transpose<perm=[1, 0]>(m)"
    with pytest.raises(TargetError, match="is not the batch of the input 'x'"):
        attach(graph(body, outputs="float[4,N] y", **CONSTANTS))


def test_pooling_in_two_steps_is_pooling():
    body = """c = Conv(x, K) a = Relu(c) r = ReduceMean<keepdims=0>(a, three) f = ReduceMean<keepdims=0>(r, two)
    y = MatMul(f, W)"""
    source = graph(body, **CONSTANTS, three=[3], two=[2])
    assert make_plan(source, Options()).layer.chosen.tensor.name == "a"
    got = run(attach(source).to_proto(), x=X)
    rows = weight("W", 6, 4).T[got["heatmap_class"]] / 36
    exposed = run(attach(source, expose_activation=True).to_proto(), x=X)["a"]
    np.testing.assert_allclose(got["cam"], np.einsum("nk,nkhw->nhw", rows, exposed), atol=1e-5)
