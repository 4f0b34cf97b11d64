"""Rollout, relevance and LeGrad, against PyTorch in float64 (`tests/oracles/make_attention.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import graph, images, run, vit
from typer.testing import CliRunner

from onnx_gradcam.cli import app
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.editor.methods.catalogue import methods
from onnx_gradcam.editor.methods.transformers import Attention, rolled_out
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load

STORED = np.load(Path(__file__).parents[2] / "oracles" / "attention.npz")
KINDS = ("class", "fused", "mean", "map")
FOLLOWING = ("rollout", "rollout-max", "chefer", "chefer-last")
EVERY = [name for name, method in methods().items() if method.of_attention]


def explained(source, x, index, **choices):
    return run(attach(source, **choices).to_proto(), x=x, target_class=np.array(index, np.int64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FOLLOWING)
def test_maps_are_those_of_pytorch(kind, name):
    """A class token behind registers, an `Attention` operator, a mean over tokens, and an attention that pools them."""
    source = onnx.load_from_string(STORED[f"{kind}/model"].tobytes())
    results = explained(source, STORED["x"], [int(STORED[f"{kind}/class"])], method=name)
    expected = STORED[f"{kind}/{name}"] - STORED[f"{kind}/{name}"].min()
    np.testing.assert_allclose(results["cam"][0], expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("kind", KINDS)
def test_legrad_is_that_of_pytorch(kind):
    """A pooling attention is differentiated for the tokens behind each block, in place of the block's own."""
    source = onnx.load_from_string(STORED[f"{kind}/model"].tobytes())
    expected = STORED[f"{kind}/legrad"]
    results = explained(source, STORED["x"], [int(STORED[f"{kind}/class"])], method="legrad")
    np.testing.assert_allclose(results["cam"][0], expected, atol=1e-5 * expected.max())


def test_a_bias_that_is_cut_out_of_another_weight_is_no_residual():
    """PyTorch's `MultiheadAttention` keeps the biases of queries, keys and values in one weight."""
    source = onnx.load_from_string(STORED["map/model"].tobytes())
    biases = {i.name for i in source.graph.initializer if len(i.dims) == 1}
    added = [
        (node, i) for node in source.graph.node if node.op_type == "Add" for i in (0, 1) if node.input[i] in biases
    ]
    assert added
    for node, i in added:
        cut = onnx.helper.make_node("Split", [node.input[i]], [f"{node.name}_bias"], axis=0, num_outputs=1)
        node.input[i] = cut.output[0]
        source.graph.node.insert(0, cut)
    results = explained(source, STORED["x"], [int(STORED["map/class"])], method="legrad")
    np.testing.assert_allclose(results["cam"][0], STORED["map/legrad"], atol=1e-5 * STORED["map/legrad"].max())


def test_the_last_block_comes_first_in_the_product():
    # Two blocks that do not commute: the answer reads a, the last block a from b, the first block b from c.
    first, last = np.eye(4), np.eye(4)
    last[0], first[2] = [0, 0, 1, 0], [0, 0, 0, 1]
    t = Builder(load(graph("y = Concat<axis=1>(p, q)", inputs="float[1,1,4,4] p, float[1,1,4,4] q")))
    maps = [t.find(name) for name in "pq"]
    attention = Attention(maps, None, (0, 0), np.eye(1, 4, dtype=np.float32)[0], 1, 3)
    grid = t.const(np.zeros((1, 1, 1, 3), np.float32))
    t.output(rolled_out(t, grid, attention, lambda one: t.mean(one, [1], keepdims=False)), "map")
    t.finish()
    found = run(t.model.to_proto(), p=first[None, None].astype(np.float32), q=last[None, None].astype(np.float32))
    # (q + 1) / 2 then (p + 1) / 2: half stays at a, of the half at b another half goes on to c.
    np.testing.assert_allclose(found["map"], [[[0, 0.25, 0.25]]])


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_two_is_two_singles(name):
    x, source = images(2), vit(registers=2)
    both = explained(source, x, [1, 3], method=name)
    assert both["cam"].shape == (2, 4, 4)
    assert 0 <= both["heatmap"].min() < both["heatmap"].max() <= 1
    np.testing.assert_allclose(both["y"], run(source, x=x)["y"], rtol=1e-4)
    for i, index in enumerate([1, 3]):
        single = explained(source, x[i : i + 1], [index], method=name)
        np.testing.assert_allclose(both["heatmap"][i], single["heatmap"][0], rtol=1e-4, atol=1e-5)


def test_rollout_has_no_class_and_relevance_has():
    x, source = images(1), vit()
    for name, differs in {"rollout": False, "rollout-max": False, "chefer": True, "chefer-last": True}.items():
        one, other = (explained(source, x, [index], method=name)["heatmap"] for index in (0, 3))
        assert np.array_equal(one, other) != differs


WINDOWS = graph(
    "a = Conv<strides=[2, 2]>(x, K) m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m) w = Reshape(k, windows) "
    "q = MatMul(w, Q) h = Reshape(q, heads) l = Transpose<perm=[0, 2, 1, 3]>(h) r = Transpose<perm=[0, 2, 3, 1]>(h) "
    "s = MatMul(l, r) p = Softmax(s) o = MatMul(p, l) u = Transpose<perm=[0, 2, 1, 3]>(o) j = Reshape(u, tokens) "
    "f = Add(j, k) g = ReduceMean<keepdims=0>(f, one) y = Gemm(g, W)",
    K=(6, 3, 2, 2),
    Q=(6, 6),
    W=(6, 4),
    merged=[0, 6, 16],
    windows=[-1, 4, 6],
    heads=[0, 4, 2, 3],
    tokens=[-1, 16, 6],
    one=[1],
)
PARALLEL = graph(
    "a = Conv<strides=[2, 2]>(x, K) m = Reshape(a, merged) k = Transpose<perm=[0, 2, 1]>(m) "
    "s1 = MatMul(k, m) p1 = Softmax(s1) o1 = MatMul(p1, k) c = Tanh(m) "
    "s2 = MatMul(k, c) p2 = Softmax(s2) o2 = MatMul(p2, k) o = Add(o1, o2) "
    "g = ReduceMean<keepdims=0>(o, one) y = Gemm(g, W)",
    K=(6, 3, 2, 2),
    W=(6, 4),
    merged=[0, 6, 16],
    one=[1],
)
CONVOLUTIONAL = graph("c = Conv(x, K) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4))


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("chefer", WINDOWS, "needs attention over all tokens, and the map 'p' attends inside windows of 4 positions"),
        ("rollout", WINDOWS, "the map 'p' attends inside windows of 4 positions; choose another method"),
        ("rollout", PARALLEL, "'p1' and 'p2' are side by side"),
        ("rollout", CONVOLUTIONAL, "the model has none"),
    ],
)
def test_other_attention_is_refused(name, source, sentence, tmp_path):
    with pytest.raises(UnsupportedError, match=sentence):
        attach(source, method=name)
    file, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(source, file)
    result = CliRunner().invoke(app, ["attach", str(file), "--method", name, "-o", str(out)])
    assert result.exit_code == 1
    assert sentence in " ".join(result.stderr.split())
    assert not out.exists()


def test_relevance_is_explained_through_the_command_line(tmp_path):
    file, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(vit(), file)
    result = CliRunner().invoke(app, ["attach", str(file), "--method", "chefer", "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    x = images(1)
    expected = explained(vit(), x, [2], method="chefer")["heatmap"]
    found = run(onnx.load(out), x=x, target_class=np.array([2], np.int64))["heatmap"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
