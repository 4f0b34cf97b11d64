"""The modifier `libra` end to end: the output `completeness`, `inspect`, `verify`, refusals, FullGrad of the paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from support.graphs import freed, graph, images, run, vit
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, inspect, verify
from onnx_gradcam.cli import app
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.metadata import Metadata

ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "libra.npz")
CNN = "c = Conv(x, K, k) a = Relu(c) b = Add(a, s) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W, w)"
SIZES = {"K": (6, 3, 3, 3), "k": (6,), "s": (6, 1, 1), "W": (6, 4), "w": (4,)}


def complete(model, x, **choices):
    explained = attach(model, method="input-x-gradient", **choices)
    return explained, run(explained.to_proto(), x=x)


@pytest.mark.parametrize("choices", [{}, {"profile": "cpu"}, {"grad_dtype": "float32"}, {"profile": "tensorrt"}])
def test_the_image_times_its_gradient_and_the_biases_are_the_score(choices):
    model, x = vit(), images(2, 3, 8, 8)
    explained, results = complete(model, x, modifier="libra", **choices)
    assert explained.metadata.completeness == "completeness"
    assert results["completeness"].dtype == np.float32
    assert results["completeness"].shape == (2,)
    np.testing.assert_allclose(results["completeness"], 0, atol=1e-5)
    alone = [complete(model, one[None], modifier="libra", **choices)[1]["attribution"] for one in x]
    np.testing.assert_allclose(results["attribution"], np.concatenate(alone), rtol=1e-3, atol=1e-6)
    assert "completeness" not in complete(model, x)[1]


def test_every_row_has_its_own():
    """What is planted in the second image's share is missing there only."""
    source = graph(CNN.replace("a = Relu(c)", "e = Softplus(c) a = Mul(e, c)"), **SIZES)
    x = images(3, 3, 8, 8)
    _, results = complete(source, x, modifier="libra")
    np.testing.assert_allclose(results["completeness"], 0, atol=1e-5)
    assert verify(source, x[:1], modifier="libra").agrees
    assert not verify_plain(source, x[:1]).agrees


def verify_plain(source, x):
    from onnx_gradcam.evaluation.verification import check_completeness  # noqa: PLC0415

    return check_completeness(source, x)


def test_what_was_added_is_taken_at_its_place():
    """The paper's FullGrad of a network whose shares are known in closed form."""
    source = graph(CNN, **SIZES)
    x = images(1, 3, 8, 8)
    results = run(attach(source, method="fullgrad-paper").to_proto(), x=x, target_class=np.array([1]))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    patches = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), (1, 2))
    maps = np.einsum("chwij,kcij->khw", patches, weights["K"]) + weights["k"][:, None, None]
    slope = np.broadcast_to(weights["W"][:, 1, None, None] / maps[0].size, maps.shape)
    gated = slope * (maps > 0)
    image = np.zeros_like(x[0])
    for i, j in np.ndindex(3, 3):
        image[:, i : i + 6, j : j + 6] += np.einsum("khw,kc->chw", gated, weights["K"][:, :, i, j])

    def psi(term):
        lifted = np.abs(term) - np.abs(term).min()
        return (lifted / lifted.max()).sum(0)

    size = np.array([1, 8, 8], np.int64)
    bilinear = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[1,1,6,6] a, int64[4] s) => (float[1,1,8,8] b) '
        '{ b = Resize<mode="linear">(a, , , s) }'
    )
    total = psi(x[0] * image)
    for term in (gated * weights["k"][:, None, None], slope * weights["s"]):
        total = total + run(bilinear, a=psi(term)[None, None].astype(np.float32), s=np.array([1, *size]))["b"][0, 0]
    np.testing.assert_allclose(results["cam"][0], total, rtol=1e-4, atol=1e-5)


def test_full_grad_counts_a_bias_that_is_added_behind_the_convolution():
    x, own = images(1, 3, 8, 8), graph(CNN.replace("b = Add(a, s)", "b = Identity(a)"), **SIZES)
    apart = graph("z = Conv(x, K) c = Add(z, o) " + CNN.split(") ", 1)[1].replace("b = Add(a, s)", "b = Identity(a)"),
                  **{**SIZES, "o": (6, 1, 1)})  # fmt: skip
    weights = {t.name: t for t in own.graph.initializer}
    for tensor in apart.graph.initializer:
        value = onnx.numpy_helper.to_array(weights["k" if tensor.name == "o" else tensor.name])
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.reshape(tensor.dims), tensor.name))
    maps = [run(attach(m, method="fullgrad").to_proto(), x=x)["heatmap"] for m in (own, apart)]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-4, atol=1e-6)


def test_methods_of_layers_and_of_attention_take_it():
    x = images(1, 3, 8, 8)
    for method in ("gradcam", "hirescam", "legrad"):
        plain, changed = (run(attach(vit(), method=method, modifier=m).to_proto(), x=x)["cam"] for m in (None, "libra"))
        assert np.isfinite(changed).all()
        assert np.abs(plain - changed).max() > 1e-6 * np.abs(plain).max()


def test_free_sizes_and_windows():
    model, x = freed(vit()), images(2, 3, 8, 8)
    np.testing.assert_allclose(complete(model, x, modifier="libra")[1]["completeness"], 0, atol=1e-5)


WINDOWS = (
    "c = Conv<strides=[2, 2]>(x, K) r = Reshape(c, split) t = Transpose<perm=[0, 2, 4, 3, 5, 1]>(r) "
    "m = Reshape(t, windows) n = LayerNormalization(m, g, b) u = Reshape(n, back) "
)
TURNED = WINDOWS + "v = Transpose<perm=[1, 0, 2]>(u) a = Add(v, b) e = Tanh(a) p = ReduceMean<keepdims=0>(e, first) "


def test_windows_and_tokens_in_front_of_the_batch_belong_to_their_image():
    sizes = {"split": [0, 8, 2, 2, 2, 2], "windows": [-1, 4, 8], "back": [-1, 16, 8], "first": [0]}
    constants = {name: np.array(size, np.int64) for name, size in sizes.items()}
    source = graph(TURNED + "y = Gemm(p, W)", K=(8, 3, 2, 2), g=(8,), b=(8,), W=(8, 4), **constants)
    x = images(3, 3, 8, 8)
    _, results = complete(source, x, modifier="libra")
    np.testing.assert_allclose(results["completeness"], 0, atol=1e-5)
    alone = [complete(source, one[None], modifier="libra")[1]["attribution"].sum() for one in x]
    assert np.ptp(alone) > 1e-3


def test_refusals():
    source = graph(CNN.replace("Relu(c)", "Sin(c)"), **SIZES)
    with pytest.raises(UnsupportedError, match=r"libra has no rule for Sin \(node .* leave out --modifier libra"):
        attach(source, method="input-x-gradient", modifier="libra")
    ending = graph(CNN.replace("y = Gemm(f, W, w)", "l = Gemm(f, W, w) y = Softmax(l)"), **SIZES)
    with pytest.raises(UnsupportedError, match="explain the logit with --score logit"):
        attach(ending, method="input-x-gradient", modifier="libra", score="output")
    with pytest.raises(UnsupportedError, match=r"weighed by probabilities .* leave out --modifier libra"):
        attach(graph(CNN, **SIZES), method="input-x-gradient", modifier="libra", against="finer")
    with pytest.raises(UnsupportedError, match="takes derivatives of derivatives"):
        attach(vit(), method="shapleycam", modifier="libra")


def test_the_commands_tell_it(tmp_path):
    source, out = tmp_path / "vit.onnx", tmp_path / "explained.onnx"
    onnx.save(vit(), source)

    def call(*words):
        return CliRunner().invoke(app, [*map(str, words)])

    options = ("--method", "input-x-gradient", "--modifier", "libra")
    assert "completeness [" in call("attach", source, *options, "-o", out).stdout
    assert "output 'completeness'" in call("inspect", source, *options).stdout
    assert "output 'completeness'" in call("inspect", out).stdout
    assert Metadata.of(out).completeness == "completeness"
    assert inspect(out).explained.completeness == "completeness"
    explanation = Explainer(out, preprocess="none")(images(1, 3, 8, 8)[0])
    assert abs(explanation.maps[0].completeness) < 1e-5
    said = call("verify", source, "--modifier", "libra")
    assert said.exit_code == 0
    assert "the score:" in said.stdout
    assert json.loads(call("verify", source, "--modifier", "libra", "--json").stdout)["agrees"] is True
    sine = tmp_path / "sine.onnx"
    onnx.save(graph(CNN.replace("Relu(c)", "Sin(c)"), **SIZES), sine)
    refused = call("attach", sine, *options, "-o", tmp_path / "no.onnx")
    assert refused.exit_code != 0
    assert "libra has no rule for Sin" in refused.stderr
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize("name", ["class_gelu", "mean_swiglu"])
def test_the_gradient_is_that_of_a_network_that_cuts_its_own(name):
    """In PyTorch, module by module (`tests/oracles/make_libra.py`)."""
    model, x = onnx.load_model_from_string(ORACLE[f"{name}/model"].tobytes()), ORACLE[f"{name}/x"]
    _, results = complete(model, x, modifier="libra", class_input="none", target=1)
    expected = ORACLE[f"{name}/gradient"] * x
    np.testing.assert_allclose(results["attribution"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    checked = verify(model, x, modifier="libra", class_input="none", target=1)
    assert checked.numeric == pytest.approx(float(ORACLE[f"{name}/score"]), abs=1e-5) or checked.agrees
    assert results["attribution"].sum() == pytest.approx(ORACLE[f"{name}/shares"][0], abs=1e-5)


def test_real_networks_add_up(real_data):
    names = ("vit_pgd_2_3_16_cifar10", "nanodet_m_416_coco", "resnet_4b_cifar10")
    for name in names:
        assert verify(real_data / "models" / "onnx_native" / f"{name}.onnx", modifier="libra").agrees, name
