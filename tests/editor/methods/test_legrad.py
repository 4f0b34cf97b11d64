"""LeGrad against a transformer written out in PyTorch, differentiated by its attention maps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support.graphs import HEADS, SIDE, WIDTH, graph, images, run, vit

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import UnsupportedError


@pytest.mark.torch
@pytest.mark.parametrize("head", ["class", "mean"])
@pytest.mark.parametrize("registers", [0, 2])
def test_positive_derivatives_by_the_attention_of_every_block(head, registers):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    source = vit(head=head, registers=registers, blocks=3)
    w = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in source.graph.initializer}
    x, index, prefix = images(2), 2, 1 + registers

    def norm(v):
        return torch.nn.functional.layer_norm(v, (WIDTH,), w["gamma"], w["beta"])

    def answer(tokens):
        z = norm(tokens)
        return ((z[:, 0] if head == "class" else z.mean(1)) @ w["V"])[:, index].sum()

    patches = torch.nn.functional.conv2d(torch.from_numpy(x), w["K"], stride=2).flatten(2).transpose(1, 2)
    tokens = torch.cat([w["prefix_tokens"].expand(2, -1, -1), patches], 1) + w["position"]
    expected = 0
    for _ in range(3):
        n = norm(tokens)
        q, k, v = ((n @ w[name]).reshape(2, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for name in ("Wq", "Wk", "Wv"))
        attention = torch.softmax(q @ k.transpose(2, 3) * w["scale"], -1).detach().requires_grad_()
        mixed = (attention @ v).transpose(1, 2).reshape(2, -1, WIDTH) @ w["Wo"]
        middle = tokens + mixed
        after = middle + torch.tanh(norm(middle) @ w["Wu"]) @ w["Wd"]
        (gradient,) = torch.autograd.grad(answer(after), attention)
        expected = expected + gradient.clamp(min=0).mean((1, 2))[:, prefix:]
        tokens = after.detach()
    results = run(attach(source, method="legrad").to_proto(), x=x, target_class=np.array([index], np.int64))
    expected = expected.numpy().reshape(2, SIDE, SIDE)
    assert expected.max() > 0
    np.testing.assert_allclose(results["cam"], expected, atol=1e-5 * expected.max())


def test_a_batch_of_two_is_two_singles():
    proto = attach(vit(), method="legrad").to_proto()
    x = images(2)
    both = run(proto, x=x, target_class=np.array([1, 3], np.int64))
    for i, index in enumerate([1, 3]):
        single = run(proto, x=x[i : i + 1], target_class=np.array([index], np.int64))
        np.testing.assert_allclose(both["heatmap"][i], single["heatmap"][0], rtol=1e-4, atol=1e-5)


def test_a_head_may_read_what_the_batch_determines():
    """Exporters expand queries of a pooling attention to the batch, and copy equal weights."""
    plain, changed = vit(), vit()
    for node in changed.graph.node:
        node.input[:] = ["V_" if name == "V" else name for name in node.input]
    nodes = (
        ["Shape", ["x"], ["v1"]],
        ["ReduceProd", ["v1"], ["v2"]],
        ["Cast", ["v2"], ["v3"]],
        ["Mul", ["V", "v3"], ["v4"]],
    )
    for i, (kind, read, written) in enumerate([*nodes, ["Div", ["v4", "v3"], ["V_"]]]):
        extra = {"keepdims": 0} if kind == "ReduceProd" else {"to": 1} if kind == "Cast" else {}
        changed.graph.node.insert(i, onnx.helper.make_node(kind, read, written, **extra))
    x, index = images(2), np.array([1, 3], np.int64)
    expected, found = (run(attach(m, method="legrad").to_proto(), x=x, target_class=index) for m in (plain, changed))
    np.testing.assert_allclose(found["cam"], expected["cam"], atol=1e-5 * expected["cam"].max())


def test_a_model_without_attention_is_refused():
    source = graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)", K=(6, 3, 3, 3), W=(6, 4)
    )
    with pytest.raises(UnsupportedError, match="attention maps of a vision transformer"):
        attach(source, method="legrad")
