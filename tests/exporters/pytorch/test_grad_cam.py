"""Grad-CAM inside the exported graph against PyTorch's own, by automatic differentiation with hooks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from autodiff.pytorch_models import randomised, vision
from exporters.pytorch.zoo import needs

from onnx_gradcam import attach
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.pytorch import export_pytorch
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


def compare(torch, product, network, layer, x, classes):
    exported = finish_export(product, layer)
    explained = attach(exported.to_proto(), layer=layer)
    found = Session(explained.to_proto().SerializeToString(), threads=1).run({"input": x, "target_class": classes})
    wanted = cam_of_pytorch(torch, network, layer, x, classes)
    assert found["cam"].shape == wanted.shape
    assert np.abs(wanted).max() > 0
    gap = float(np.abs(found["cam"] - wanted).max() / np.abs(wanted).max())
    assert gap <= TOLERANCE, gap


@pytest.mark.parametrize("layer", ["layer4", "layer4.2.bn3", "layer3.5.conv2"])
def test_resnet50(torch, layer):
    needs("torchvision")
    torch.manual_seed(0)
    network = randomised(vision().resnet50(num_classes=10), 96)
    product = export_pytorch(network, layer=layer, size=96, exporter="dynamo" if layer == "layer4" else "torchscript")
    # With some images a ReLU's input is so close to zero that rounding changes its sign, and with it the gradient.
    x = np.random.default_rng(3).standard_normal((3, 3, 96, 96), np.float32)
    # In float32 PyTorch's own gradient is off by up to 0.5 %, depending on the processor.
    compare(torch, product, copy.deepcopy(network).double(), layer, x, np.array([1, 7, 3]))


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
