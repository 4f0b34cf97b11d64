"""What holds for every method that is written into a model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run, vit

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.metadata import Metadata

POOLED = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
FLAT = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) f = Flatten(b) g = Gemm(f, V) h = Relu(g) y = Gemm(h, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (7, 6, 3, 3), "W": (7, 4)}
WIDE = {**SIZES, "V": (7 * 4 * 4, 7)}
EVERY = {name: m for name, m in methods().items() if not (m.runs_often or m.of_attention)}
"""Those that serve convolutional networks; LeGrad has tests of its own."""

DIFFERENTIATING = [name for name, m in EVERY.items() if m.differentiates("layer") or m.differentiates("image")]
LINEAR = {name for name, method in EVERY.items() if method.linear_head}


def pooled(**kwargs) -> onnx.ModelProto:
    return graph(POOLED, **SIZES, **kwargs)


def flat(**kwargs) -> onnx.ModelProto:
    return graph(FLAT, **WIDE, **kwargs)


def sources(name):
    return [pooled()] if name in LINEAR else [pooled(), flat()]


def explained(source, x, classes, **choices):
    return run(attach(source, **choices).to_proto(), x=x, target_class=np.array(classes, np.int64))


@pytest.mark.parametrize("name", EVERY)
def test_shapes_range_and_the_models_own_outputs(name):
    x = images(2)
    for source in sources(name):
        results = explained(source, x, [2], method=name)
        assert results["heatmap"].shape == (2, 8, 8)
        assert all(np.isfinite(value).all() for value in results.values())
        assert results["heatmap"].min() >= 0
        assert 0 < results["heatmap"].max() <= 1 + 1e-6
        assert results["cam"].shape == (
            (2, 4, 4) if EVERY[name].needs_layer and EVERY[name].family == "cam" else (2, 8, 8)
        )
        assert ("attribution" in results) == (EVERY[name].family == "attribution")
        np.testing.assert_array_equal(results["y"], run(source, x=x)["y"])


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_two_is_two_singles(name):
    x = images(2)
    for source in sources(name):
        proto = attach(source, method=name).to_proto()
        both = run(proto, x=x, target_class=np.array([1, 3], np.int64))
        for i, index in enumerate([1, 3]):
            single = run(proto, x=x[i : i + 1], target_class=np.array([index], np.int64))
            for output in ("heatmap", "cam"):
                np.testing.assert_allclose(both[output][i], single[output][0], rtol=1e-4, atol=1e-5)


STRIDED = graph(
    "c = Conv(x, K) n = LayerNormalization<axis=1>(c, s) a = HardSwish(n) d = Conv<strides=[2,2]>(a, L) "
    "b = Relu(d) m = MaxPool<kernel_shape=[2,2]>(b) p = ReduceMean<keepdims=0>(m, hw) t = Tanh(p) y = Gemm(t, W)",
    **SIZES,
    s=np.ones((6, 6, 6), np.float32),
    hw=[2, 3],
)
CHANNELS_LAST = graph(
    "k = Transpose<perm=[0,3,1,2]>(x) c = Conv(k, K) a = Relu(c) d = Conv(a, L) b = Transpose<perm=[0,2,3,1]>(d) "
    "e = Relu(b) p = ReduceMean<keepdims=0>(e, hw) g = Gemm(p, V) h = Sigmoid(g) y = Gemm(h, W)",
    inputs="float[N,8,8,3] x",
    **SIZES,
    V=(7, 7),
    hw=[1, 2],
)
WITHOUT_IMAGES = {"pooled": pooled(), "flat": flat(), "strided": STRIDED, "channels last": CHANNELS_LAST, "vit": vit()}
FEW_IMAGES = np.zeros((0, 3, 8, 8), np.float32)


@pytest.mark.parametrize("kind", WITHOUT_IMAGES)
@pytest.mark.parametrize("name", [name for name, m in methods().items() if not m.runs_often])
def test_an_empty_batch_has_no_heatmaps(name, kind):
    source, method = WITHOUT_IMAGES[kind], methods()[name]
    x = FEW_IMAGES.transpose(0, 2, 3, 1) if kind == "channels last" else FEW_IMAGES
    try:
        proto = attach(source, method=name).to_proto()
    except UnsupportedError:
        assert (name in LINEAR and kind != "pooled") or method.of_attention != (kind == "vit")
        return
    results = run(proto, x=x)
    assert results["heatmap"].shape == (0, 8, 8)
    assert results["cam"].shape[0] == 0
    assert all(len(value) == 0 for value in results.values())
    assert {name: value.shape for name, value in run(source, x=x).items()}.items() <= {
        name: value.shape for name, value in results.items()
    }.items()


@pytest.mark.parametrize("name", PRESETS)
def test_an_empty_batch_of_a_preset(name):
    for method in ("gradcam", "layercam", "saliency"):
        try:
            proto = attach(pooled(), method=method, preset=name).to_proto()
        except UnsupportedError:
            continue
        assert run(proto, x=FEW_IMAGES)["heatmap"].shape == (0, 8, 8)


@pytest.mark.parametrize("name", EVERY)
def test_metadata(name):
    explained_model = attach(pooled(), method=name)
    assert explained_model.metadata.method == name
    props = {p.key: p.value for p in explained_model.to_proto().metadata_props}
    assert Metadata.from_props(props) == explained_model.metadata


@pytest.mark.parametrize("name", [name for name in EVERY if name not in LINEAR])
def test_height_and_width_may_be_free(name):
    source = graph(
        "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) "
        "g = Gemm(f, V) h = Relu(g) y = Gemm(h, W)",
        inputs="float[N,3,height,width] x",
        **SIZES,
        V=(7, 7),
    )
    if EVERY[name].reruns_head:
        with pytest.raises(UnsupportedError, match="fixed"):
            attach(source, method=name)
        return
    proto = attach(source, method=name).to_proto()
    for shape in ((1, 3, 8, 8), (2, 3, 12, 10)):
        results = run(proto, x=images(*shape), target_class=np.array([1], np.int64))
        assert results["heatmap"].shape == (shape[0], *shape[2:])
        assert np.isfinite(results["heatmap"]).all()
        assert results["heatmap"].max() > 0


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_gives_nearly_the_same(name):
    x = images(1)
    exact = explained(pooled(), x, [1], method=name)
    half = explained(
        pooled(inputs="float16[N,3,8,8] x", outputs="float16[N,4] y", dtype=np.float16),
        x.astype(np.float16),
        [1],
        method=name,
    )
    assert half["heatmap"].dtype == np.float32
    np.testing.assert_allclose(half["heatmap"], exact["heatmap"], atol=3e-2)


@pytest.mark.parametrize(
    "name", [name for name, m in EVERY.items() if m.differentiates("layer") or m.differentiates("image")]
)
def test_an_operator_that_no_gradient_crosses_is_refused(name):
    source = graph(
        "c = Conv(x, K) a = Relu(c) p = MaxPool<kernel_shape=[6,6]>(a) s = SequenceConstruct(p) "
        "q = SequenceAt(s, zero) r = Reshape(q, shape) y = Gemm(r, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
        zero=np.array(0),
        shape=np.array([-1, 6]),
    )
    with pytest.raises(UnsupportedError, match=r"Sequence|linear layer"):
        attach(source, method=name)


def test_recipro_cam_is_the_score_of_what_is_left():
    x = images(2)
    source = flat()
    maps = run(attach(source, expose_activation=True).to_proto(), x=x)["b"]
    cam = explained(source, x, [3, 1], method="reciprocam")["cam"]
    V, W = (next(weight for weight in source.graph.initializer if weight.name == name) for name in "VW")
    V, W = onnx.numpy_helper.to_array(V), onnx.numpy_helper.to_array(W)
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    for sample, index in enumerate([3, 1]):
        expected = np.zeros((4, 4))
        for row in range(4):
            for column in range(4):
                mask = np.zeros((6, 6))
                mask[row : row + 3, column : column + 3] = kernel
                left = (maps[sample] * mask[1:-1, 1:-1]).reshape(-1)
                expected[row, column] = (np.maximum(left @ V, 0) @ W)[index]
        np.testing.assert_allclose(cam[sample], expected - expected.min(), rtol=1e-3, atol=1e-5)
