"""Which tensor is explained: the last with spatial positions, on every path to the score."""

from __future__ import annotations

import numpy as np
import pytest
from support.graphs import choose, graph, vit

from onnx_gradcam.errors import TargetError

HEAD = "h = GlobalAveragePool(z) f = Flatten(h) y = Gemm(f, W)"
SIZES = {
    "K": (6, 3, 3, 3),
    "L": (6, 6, 1, 1),
    "M": (6, 12, 1, 1),
    "s": np.ones(6, np.float32),
    "W": (6, 4),
    "places": [1, 2],
}


def chosen(body: str, layer: str = "auto", *, inputs: str = "float[N,3,8,8] x", **constants):
    return choose(graph(body, inputs=inputs, **{**SIZES, **constants}), layer).chosen


ARCHITECTURES = {
    "plain, after the activation": f"c = Conv(x, K) z = Relu(c) {HEAD}",
    "batch normalisation": f"c = Conv(x, K) n = BatchNormalization(c, s, s, s, s) z = Relu(n) {HEAD}",
    # The branch and its convolutions lie on one of two paths.
    "ResNet": f"c = Conv(x, K) a = Relu(c) b = Conv(a, L) d = Add(a, b) z = Relu(d) {HEAD}",
    "ResNetV2": (
        f"c = Conv(x, K) b = Conv(c, L) d = Add(c, b) n = BatchNormalization(d, s, s, s, s) z = Relu(n) {HEAD}"
    ),
    # A convolution inside a branch is by definition not the last one.
    "Inception": (
        "c = Conv(x, K) p = Conv(c, L) q = Relu(p) r = Conv(c, L) z = Concat<axis=1>(q, r)"
        " h = GlobalAveragePool(z) f = Flatten(h) y = Gemm(f, W12)"
    ),
    "Inception with a pooling branch": (
        "c = Conv(x, K) p = Conv(c, L) q = Relu(p) r = AveragePool<kernel_shape=[1, 1]>(c)"
        f" e = Concat<axis=1>(q, r) o = Conv(e, M) z = Relu(o) {HEAD}"
    ),
    # Neither the last pool nor the flattened vector.
    "VGG": (
        "c = Conv(x, K) z = Relu(c) p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(z) f = Flatten(p)"
        " g = Gemm(f, W54) r = Relu(g) y = Gemm(r, W)"
    ),
    "DenseNet": (
        "c = Conv(x, K) p = Conv(c, L) e = Concat<axis=1>(c, p) o = Conv(e, M) e2 = Concat<axis=1>(e, o)"
        " n = BatchNormalization(e2, s18, s18, s18, s18) z = Relu(n)"
        " h = GlobalAveragePool(z) f = Flatten(h) y = Gemm(f, W18)"
    ),
    # The gate has a single place, its product has all.
    "squeeze and excite": (
        f"c = Conv(x, K) r = Relu(c) g = GlobalAveragePool(r) e = Conv(g, L) i = Sigmoid(e) z = Mul(r, i) {HEAD}"
    ),
    "swish": f"c = Conv(x, K) i = Sigmoid(c) z = Mul(c, i) {HEAD}",
    # MobileNetV3 computes further at a single place.
    "a curved head": (
        "c = Conv(x, K) z = HardSwish(c) h = GlobalAveragePool(z) e = Conv(h, L) i = HardSwish(e) f = Flatten(i)"
        " y = Gemm(f, W)"
    ),
    "channels-last head": (
        "c = Conv(x, K) z = Relu(c) t = Transpose<perm=[0, 2, 3, 1]>(z) f = ReduceMean<keepdims=0>(t, places)"
        " y = MatMul(f, W)"
    ),
    # Views are named by what they are views of.
    "views": (
        "c = Conv(x, K) z = Relu(c) d = Dropout(z) i = Identity(d) t = Transpose<perm=[0, 2, 3, 1]>(i)"
        " f = Flatten(t) y = MatMul(f, W216)"
    ),
}


@pytest.mark.parametrize("body", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_automatic_choice_in_convolutional_networks(body):
    layer = choose(
        graph(body, **SIZES, W12=(12, 4), W18=(18, 4), W54=(54, 6), W216=(216, 4), s18=np.ones(18, np.float32))
    )
    assert (layer.chosen.tensor.name, layer.chosen.grid) == ("z", (6, 6))
    assert layer.chosen.describe() == "NCHW"
    assert layer.chosen.every_path
    assert "on every path" in layer.reason


def test_shape_arithmetic_of_a_dynamic_batch_hides_nothing():
    body = (
        "c = Conv(x, K) z = Relu(c) n = Shape(z) b = Gather<axis=0>(n, zero) u = Unsqueeze(b, zeros)"
        " o = Concat<axis=0>(u, minus) h = GlobalAveragePool(z) f = Reshape(h, o) y = Gemm(f, W)"
    )
    assert chosen(body, zero=0, zeros=[0], minus=[-1]).tensor.name == "z"


def test_paddings_computed_from_shapes_do_not_hide_the_sizes():
    """As TorchScript exports write `F.pad` with sizes of the running model."""
    body = (
        "n = Shape<start=2, end=3>(x) r = Mod(n, seven) e = ConstantOfShape(three) z4 = Cast<to=7>(e)"
        " q = Equal(r, one) w = Where(q, zeros, one) p = Concat<axis=0>(zeros, zeros, w, w, z4, r)"
        " q2 = Slice(p, zeros, eight, zeros) a = Pad(x, q2) c = Conv(a, K) z = Relu(c) " + HEAD
    )
    layer = chosen(body, seven=[7], three=[3], one=[1], zeros=[0], eight=[8])
    assert (layer.tensor.name, layer.grid) == ("z", (6, 7))
    assert layer.tensor.shape == ("N", 6, 6, 7)


def test_global_pooling_over_a_window_that_is_no_global_pool():
    body = "c = Conv(x, K) z = Relu(c) p = AveragePool<kernel_shape=[6, 6]>(z) f = Flatten(p) y = Gemm(f, W)"
    assert chosen(body).tensor.name == "z"


def test_quantised_pairs_count_as_one_tensor():
    body = (
        "c = Conv(x, K) z = Relu(c) q = QuantizeLinear(z, scale, zero) d = DequantizeLinear(q, scale, zero)"
        " h = GlobalAveragePool(d) f = Flatten(h) y = Gemm(f, W)"
    )
    layer = chosen(body, scale=np.float32(0.05), zero=np.uint8(0))
    assert layer.tensor.name in {"z", "d"}
    assert layer.grid == (6, 6)


def test_maps_whose_rows_are_no_images_are_passed_over():
    """Two crops an image: their convolution's batch is not the image's."""
    body = (
        "r = Reshape(x, crops) c = Conv(r, K) z = Relu(c) h = GlobalAveragePool(z) f = Flatten(h) l = Gemm(f, W)"
        " q = Reshape(l, back) y = ReduceMean<keepdims=0>(q, one)"
    )
    with pytest.raises(TargetError, match="no tensor with spatial positions"):
        chosen(body, inputs="float[N,6,8,8] x", crops=[-1, 3, 8, 8], back=[-1, 2, 4], one=[1])


def test_no_place_to_point_at():
    with pytest.raises(TargetError, match="no tensor with spatial positions is on every path to the score 'y'"):
        chosen("p = GlobalAveragePool(x) f = Flatten(p) y = Gemm(f, W3)", W3=(3, 4))


def test_a_score_that_does_not_depend_on_the_image():
    with pytest.raises(TargetError, match="the score 'y' does not depend on the input 'x'"):
        chosen(
            "c = Conv(x, K) b = Shape<start=0, end=1>(c) v = Concat<axis=0>(b, four) y = Expand(w, v)",
            four=[4],
            w=(1, 4),
        )


# ----- vision transformers ---------------------------------------------------


@pytest.mark.parametrize("batch", ["N", "1", "2"])
@pytest.mark.parametrize("head", ["class", "slice"])
@pytest.mark.parametrize(
    "options",
    [{}, {"registers": 3}, {"fused": True}, {"decomposed": True}, {"blocks": 1}, {"fused": True, "registers": 1}],
    ids=str,
)
def test_class_token_heads_get_the_tokens_that_feed_the_last_attention(head, batch, options):
    """Behind the last attention the gradient of the patch tokens is zero."""
    layer = choose(vit(head=head, batch=batch, **options))
    tokens = layer.chosen.tokens
    assert layer.chosen.tensor.name == f"n{options.get('blocks', 2) - 1}"
    assert tokens is not None
    assert (tokens.grid, tokens.before, tokens.after) == ((4, 4), 1 + options.get("registers", 0), 0)
    assert layer.chosen.describe() == "NTC"
    assert "class token only" in layer.reason


@pytest.mark.parametrize(
    ("head", "name", "before"), [("mean", "z", 1), ("both", "z", 1), ("patches", "f0", 0)], ids=str
)
def test_heads_that_read_the_patch_tokens_get_the_last_tokens(head, name, before):
    chosen = choose(vit(head=head)).chosen
    assert chosen.tensor.name == name
    assert chosen.tokens is not None
    assert (chosen.tokens.grid, chosen.tokens.before) == ((4, 4), before)


@pytest.mark.parametrize("layer", ["r1", "p1", "t2", "z"])
def test_tokens_behind_the_last_attention_are_refused_under_a_class_token_head(layer):
    """Their patches have no gradient: the map would be blank."""
    with pytest.raises(TargetError, match=f"patch tokens of '{layer}' have no gradient; choose a layer in front of it"):
        choose(vit(), layer)
    assert choose(vit(head="mean"), layer).chosen.tensor.name == layer


@pytest.mark.parametrize("layer", ["a", "k", "t0", "n0", "t1", "n1"])
def test_tokens_in_front_of_the_last_attention_may_be_named(layer):
    assert choose(vit(), layer).chosen.tensor.name == layer


def test_heads_of_an_attention_are_no_layer():
    with pytest.raises(TargetError, match=r"the spatial axes of layer 'b0_j' .* are unknown"):
        choose(vit(), "b0_j")


def test_a_class_token_that_no_attention_feeds_is_refused():
    body = (
        "a = Conv<strides=[2, 2]>(x, K2) m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m)"
        " b = Shape<start=0, end=1>(x) v = Concat<axis=0>(b, one, six) e = Expand(token, v) t = Concat<axis=1>(e, k)"
        " p = ReduceMean(t, one) u = Add(t, p) f = Gather<axis=1>(u, first) y = Gemm(f, W)"
    )
    with pytest.raises(TargetError, match=r"reads the class token of 'u' only.*name a layer in front of it"):
        chosen(body, K2=(6, 3, 2, 2), merged=[0, 6, 16], token=(1, 1, 6), one=[1], six=[6], first=0)


def test_channels_last_token_maps():
    """A Swin-like stage: `[N, H, W, C]`, normalised, averaged over both axes."""
    body = (
        "a = Conv<strides=[2, 2]>(x, K2) t = Transpose<perm=[0, 2, 3, 1]>(a) l = MatMul(t, W6) g = Gelu(l)"
        " r = Add(t, g) z = LayerNormalization(r, s, s) f = ReduceMean<keepdims=0>(z, places) y = Gemm(f, W)"
    )
    model = graph(body, opset=20, **SIZES, K2=(6, 3, 2, 2), W6=(6, 6))
    found = choose(model).chosen
    assert (found.tensor.name, found.describe(), found.grid) == ("z", "NHWC", (4, 4))


# ----- by name ---------------------------------------------------------------

NAMED = (
    f"c = Conv(x, K) a = Relu(c) b = Conv(a, L) d = Add(a, b) z = Relu(d) t = Transpose<perm=[0, 2, 3, 1]>(z) {HEAD}"
)


def named(layer: str, names: dict[str, str] | None = None):
    model = graph(NAMED, outputs="float[N,4] y, float[N,6,6,6] t", **SIZES)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return choose(model, layer, names)


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [("z", "z"), ("c", "c"), ("b", "b"), ("node_d", "d"), ("node_b", "b"), ("stage/relu", "a"), ("t", "z")],
)
def test_a_layer_by_the_name_of_a_tensor_a_node_or_a_framework_layer(layer, tensor):
    found = named(layer, {"stage/relu": "a"})
    assert found.chosen.tensor.name == tensor
    assert "as requested" in found.reason
    assert layer in found.reason


def test_a_layer_beside_other_paths_may_be_named():
    assert not named("b").chosen.every_path
    assert named("z").chosen.every_path


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("node_bb", r"no layer 'node_bb'; did you mean 'node_b'"),
        ("stage/rel", r"no layer 'stage/rel'; did you mean 'stage/relu'"),
        ("h", r"layer 'h' of shape \['N', 6, 1, 1\] has a single position"),
        ("y", r"layer 'y'"),
        ("K", r"does not depend on layer 'K'"),
    ],
)
def test_layers_that_cannot_be_explained(layer, message):
    with pytest.raises(TargetError, match=message):
        named(layer, {"stage/relu": "a"})


def test_a_layer_off_the_path_is_refused():
    model = graph(
        f"c = Conv(x, K) z = Relu(c) o = Conv(c, L) {HEAD}", outputs="float[N,4] y, float[N,6,6,6] o", **SIZES
    )
    with pytest.raises(TargetError, match="the score does not depend on layer 'o'"):
        choose(model, "o")


def test_candidates_are_listed_in_order_with_what_they_are():
    layer = named("auto")
    assert [c.tensor.name for c in layer.candidates] == ["c", "a", "b", "d", "z"]
    assert [c.every_path for c in layer.candidates] == [True, True, False, True, True]
    assert {c.channels for c in layer.candidates} == {6}
