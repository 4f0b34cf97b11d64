"""Grad-CAM and FullGrad inside the exported graph against PyTorch's own, by automatic differentiation with hooks."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import onnx
import pytest
from autodiff.pytorch_models import randomised, vision
from exporters.pytorch.zoo import needs
from typer.testing import CliRunner

from onnx_gradcam import Options, attach, export
from onnx_gradcam.cli import app
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import ExportError
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch
from onnx_gradcam.metadata import Carried, peek
from onnx_gradcam.runtime.session import Session

TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


def cam_of_pytorch(torch, network, layer, x, classes):
    """The raw signed map, Selvaraju et al. 2017, equations 1 and 2 without the ReLU: `[batch, h, w]`."""
    kept = []

    def keep(_module, _inputs, output):
        kept.append(output)
        return output.clone()

    hook = network.get_submodule(layer).register_forward_hook(keep)
    x = torch.from_numpy(x).to(next(network.parameters()).dtype).requires_grad_()
    scores = network(x)
    (gradient,) = torch.autograd.grad(scores[torch.arange(len(x)), torch.from_numpy(classes)].sum(), kept[0])
    hook.remove()
    return (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).detach().numpy()


def compare(torch, product, network, layer, x, classes, kinked=0):
    """Hold the raw maps to PyTorch's; those of `kinked` images may be off by a percent."""
    exported = finish_export(product, layer)
    explained = attach(exported.to_proto(), layer=layer)
    found = Session(explained.to_proto().SerializeToString(), threads=1).run({"input": x, "target_class": classes})
    wanted = cam_of_pytorch(torch, network, layer, x, classes)
    assert found["cam"].shape == wanted.shape
    assert np.abs(wanted).max() > 0
    gaps = np.sort(np.abs(found["cam"] - wanted).max((1, 2)) / np.abs(wanted).max())
    assert gaps[: len(gaps) - kinked].max() <= TOLERANCE, gaps
    assert gaps.max() <= (0.01 if kinked else TOLERANCE), gaps


@pytest.mark.parametrize("layer", ["layer4", "layer4.2.bn3", "layer3.5.conv2"])
def test_resnet50(torch, layer):
    needs("torchvision")
    torch.manual_seed(0)
    network = randomised(vision().resnet50(num_classes=10), 96)
    product = export_pytorch(network, layer=layer, size=96, exporter="dynamo" if layer == "layer4" else "torchscript")
    # With some images the input of a ReLU is so close to zero that rounding changes its sign, and the gradient: which
    # images these are depends on the processor, and a fault moves the maps of all.
    x = np.random.default_rng(3).standard_normal((3, 3, 96, 96), np.float32)
    # In float32 PyTorch's own gradient is off by up to 0.5 %, depending on the processor.
    compare(torch, product, copy.deepcopy(network).double(), layer, x, np.array([1, 7, 3]), kinked=1)


def test_the_demo(torch, repository):
    """The stored `.pt2` exports to what the stored `.onnx` computes, and explains itself as PyTorch would."""
    path = repository / "models" / "shapes.pt2"
    product = export_pytorch(path, layer="features")
    network = torch.export.unflatten(torch.export.load(path))
    x = np.random.default_rng(2).random((3, 3, 96, 96), np.float32)
    exported = Session(product.model.to_proto().SerializeToString()).run({"input": x})["output"]
    stored = Session(repository / "models" / "shapes.onnx").run({"image": x})["logits"]
    np.testing.assert_allclose(exported, stored, rtol=0, atol=1e-6 * np.abs(stored).max())
    compare(torch, product, network, "features", x, np.array([0, 3, 5]))


def normalized(torch, *, own: bool = True):
    """Convolutions with a bias of their `own` and a normalization, without a bias, and without a normalization."""
    nn = torch.nn
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, bias=own), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1, bias=own), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)),
    )
    return randomised(network, 16)


def full_grad_of_pytorch(torch, network, x, classes):
    """The map of Srinivas and Fleuret 2019, with the biases of convolutions and normalizations: `[N, H, W]`."""
    biases, kept = [], []

    def keep(module, _inputs, output):
        bias = module.bias
        if isinstance(module, torch.nn.BatchNorm2d):
            bias = bias - module.running_mean * module.weight / (module.running_var + module.eps).sqrt()
        if bias is not None:
            biases.append(bias)
            kept.append(output)

    modules = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d))]
    hooks = [module.register_forward_hook(keep) for module in modules]
    x = torch.from_numpy(x).to(next(network.parameters()).dtype).requires_grad_()
    scores = network(x)[torch.arange(len(x)), torch.from_numpy(classes)].sum()
    gradients = torch.autograd.grad(scores, [x, *kept])
    for hook in hooks:
        hook.remove()
    terms = [x * gradients[0]]
    terms += [bias[:, None, None] * gradient for bias, gradient in zip(biases, gradients[1:], strict=True)]
    total = 0
    for term in terms:
        magnitude = term.abs() - term.abs().amin((2, 3), keepdim=True)
        scaled = (magnitude / (magnitude.amax((2, 3), keepdim=True) + 1e-7)).sum(1, keepdim=True)
        total = total + torch.nn.functional.interpolate(scaled, x.shape[2:], mode="bilinear")[:, 0]
    return total.detach().numpy()


def full_grad(torch, network, proto):
    """The largest difference from PyTorch's map, as a share of it; and what is said of biases."""
    x, classes = np.random.default_rng(3).standard_normal((3, 3, 16, 16), np.float32), np.array([1, 0, 3])
    explained = attach(proto, method="fullgrad").to_proto()
    found = Session(explained.SerializeToString(), threads=1).run({"input": x, "target_class": classes})["cam"]
    wanted = full_grad_of_pytorch(torch, copy.deepcopy(network).double(), x, classes)
    warnings = [text for text in make_plan(proto, Options(method="fullgrad")).warnings if "biases" in text]
    return float(np.abs(found - wanted).max() / wanted.max()), warnings


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_full_grad_needs_the_normalizations(torch, exporter):
    """Merged with a bias it becomes one bias of two, and the map is another one; the file says so."""
    network = normalized(torch)
    kept = finish_export(export_pytorch(network, size=16, exporter=exporter, keep_normalization=True))
    assert [node.op_type for node in kept.to_proto().graph.node].count("BatchNormalization") == 4
    assert kept.carried.biases == "apart"
    gap, warnings = full_grad(torch, network, kept.to_proto())
    assert gap <= TOLERANCE, gap
    assert not warnings
    merged = finish_export(export_pytorch(network, size=16, exporter=exporter))
    assert merged.carried.biases == "merged"
    gap, warnings = full_grad(torch, network, merged.to_proto())
    assert gap > 0.1
    assert len(warnings) == 1
    assert warnings[0].startswith("the exporter merged biases of convolutions")


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_normalizations_of_convolutions_without_a_bias_may_be_merged(torch, exporter):
    network = normalized(torch, own=False)
    merged = finish_export(export_pytorch(network, size=16, exporter=exporter))
    kinds = [node.op_type for node in merged.to_proto().graph.node]
    assert kinds.count("BatchNormalization") == (0 if exporter == "dynamo" else 1)
    assert merged.carried.biases == "apart"
    gap, warnings = full_grad(torch, network, merged.to_proto())
    assert gap <= TOLERANCE, gap
    assert not warnings


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dynamo", [True, False])
def test_files_of_pytorchs_exporters_are_judged_by_their_names(torch, dynamo, own, tmp_path):
    """TorchScript's do not say whether a convolution had a bias before."""
    path, network, x = tmp_path / "m.onnx", normalized(torch, own=own), torch.zeros(2, 3, 16, 16)
    torch.onnx.export(network, (x,), path, dynamo=dynamo, input_names=["input"], verbose=False, opset_version=18)
    warnings = [text for text in make_plan(path, Options(method="fullgrad")).warnings if "biases" in text]
    verb = ("merged" if own else "") if dynamo else "may have merged"
    assert [text.partition(" biases")[0] for text in warnings] == [f"the exporter {verb}"] * bool(verb)


@pytest.mark.parametrize("ending", ["pt2", "pt"])
def test_programs_keep_their_normalizations(torch, ending, tmp_path):
    path, out, network = tmp_path / f"m.{ending}", tmp_path / "m.onnx", normalized(torch)
    x = torch.zeros(2, 3, 16, 16)
    if ending == "pt2":
        batch = {0: torch.export.Dim("batch")}
        torch.export.save(torch.export.export(network, (x,), dynamic_shapes=(batch,)), path)
    else:
        torch.jit.trace(network, x).save(path)
    command = ["export", "pytorch", str(path), "-o", str(out), "--trust", "--size", "16,16"]
    result = CliRunner().invoke(app, [*command, "--keep-normalization"])
    assert result.exit_code == 0, result.output
    assert Carried.from_props(peek(out)).biases == "apart"
    gap, warnings = full_grad(torch, network, onnx.load(out))
    assert gap <= TOLERANCE, gap
    assert not warnings
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert Carried.from_props(peek(out)).biases == "merged"
    assert export(path, size=(16, 16), trust=True, keep_normalization=True).carried.biases == "apart"


def test_normalizations_that_are_merged_all_the_same_are_refused(torch, monkeypatch, tmp_path):
    conversion = importlib.import_module("onnx_gradcam.exporters.pytorch.conversion")
    plain = dict(conversion._EXPORTERS)
    for name, function in plain.items():
        monkeypatch.setitem(conversion._EXPORTERS, name, lambda *a, f=function, **_: f(*a, keep=False))
    out = tmp_path / "m.onnx"
    with pytest.raises(ExportError, match="torchscript exporter merged batch normalizations that were to be kept"):
        export(normalized(torch), out, size=(16, 16), keep_normalization=True)
    assert not out.exists()
