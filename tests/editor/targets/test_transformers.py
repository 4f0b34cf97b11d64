"""Grad-CAM of transformers against PyTorch's own gradients, with the reshaping that users write there by hand."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from autodiff.pytorch_models import randomised, vision
from exporters.pytorch.zoo import needs

from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.exporters.pytorch import export_pytorch
from onnx_gradcam.runtime.session import Session

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]

SIZE = 64
CLASSES = 5
SMALL = {"image_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


@dataclass(frozen=True)
class Network:
    """One network and what a user of PyTorch would write for it.

    Attributes:
        library: it comes from.
        name: the library's.
        module: whose output `auto` has to choose.
        prefix: how many class, distillation and register tokens stand before the patches.
        tokens: `NTC`, `NHWC` or `NCHW`: how the output of the module lies.
        sizes: arguments.
        exporter: that exports it.
    """

    library: str
    name: str
    module: str
    prefix: int = 0
    tokens: str = "NTC"
    sizes: tuple[tuple[str, Any], ...] = ()
    exporter: str = "dynamo"

    def make(self) -> Any:
        """The network."""
        sizes = dict(self.sizes)
        vision()
        if self.library == "timm":
            return importlib.import_module("timm").create_model(self.name, num_classes=CLASSES, **sizes)
        transformers = importlib.import_module("transformers")
        kind = self.name.removesuffix("WithTeacher")
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **sizes)
        config._attn_implementation = "eager"
        suffix = "WithTeacher" if self.name.endswith("WithTeacher") else ""
        return getattr(transformers, f"{kind}ForImageClassification{suffix}")(config)


def hf(name: str, module: str, prefix: int = 0, tokens: str = "NTC", exporter: str = "dynamo", **sizes: Any) -> Network:
    return Network("transformers", name, module, prefix, tokens, tuple(sizes.items()), exporter)


def timm_(
    name: str, module: str, prefix: int = 0, tokens: str = "NTC", exporter: str = "dynamo", **sizes: Any
) -> Network:
    return Network("timm", name, module, prefix, tokens, tuple(sizes.items()), exporter)


WINDOWS = {"image_size": SIZE, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
NETWORKS = {
    "ViT": hf("ViT", "vit.layers.1.layernorm_before", 1, **SMALL, intermediate_size=64),
    "DeiT, distilled": hf("DeiTWithTeacher", "deit.layers.1.layernorm_before", 2, **SMALL, intermediate_size=64),
    "DINOv2 with registers": hf(
        "Dinov2WithRegisters", "dinov2_with_registers.layernorm", 5, **SMALL, patch_size=16, num_register_tokens=4
    ),
    "Swin": hf("Swin", "swin.layernorm", **WINDOWS),
    "Swin v2": hf("Swinv2", "swinv2.layernorm", **WINDOWS, exporter="torchscript"),
    "Swin v2, behind shifted windows": hf(
        "Swinv2", "swinv2.encoder.layers.1.blocks.1.layernorm_before",
        image_size=SIZE, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, patch_size=4,
    ),
    "timm ViT with registers": timm_(
        "vit_small_patch14_reg4_dinov2", "blocks.1.norm1", 5, img_size=56, depth=2, exporter="torchscript"
    ),
    "timm DeiT, distilled": timm_("deit_tiny_distilled_patch16_224", "blocks.1.norm1", 2, img_size=SIZE, depth=2),
    "timm Swin, channels last": timm_(
        "swin_tiny_patch4_window7_224", "norm", tokens="NHWC", img_size=SIZE, window_size=2
    ),
    "timm MaxViT (hybrid)": timm_("maxvit_pico_rw_256", "norm", tokens="NCHW", img_size=SIZE),
    "timm CoAtNet (hybrid)": timm_("coatnet_nano_rw_224", "norm", tokens="NCHW", img_size=SIZE),
}  # fmt: skip


def reshaped(values: Any, network: Network) -> Any:
    """`reshape_transform`: `[N, C, h, w]` of what the module gives."""
    if network.tokens == "NCHW":
        return values
    if network.tokens == "NHWC":
        return values.permute(0, 3, 1, 2)
    values = values[:, network.prefix :]
    side = round(values.shape[1] ** 0.5)
    return values.reshape(len(values), side, side, -1).permute(0, 3, 1, 2)


def by_pytorch(torch: Any, model: Any, network: Network, x: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """The raw Grad-CAM and HiResCAM maps by automatic differentiation."""
    kept: list[Any] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> Any:
        kept.append(output)
        return output

    hook = model.get_submodule(network.module).register_forward_hook(keep)
    answer = model(torch.from_numpy(x))
    scores = answer if isinstance(answer, torch.Tensor) else answer.logits
    (gradient,) = torch.autograd.grad(scores[torch.arange(len(x)), torch.from_numpy(classes)].sum(), kept[-1])
    hook.remove()
    maps, slopes = reshaped(kept[-1], network), reshaped(gradient, network)
    return {
        "gradcam": (slopes.mean((2, 3), keepdim=True) * maps).sum(1).detach().numpy(),
        "hirescam": (slopes * maps).sum(1).detach().numpy(),
    }


@pytest.fixture(scope="module")
def torch() -> Any:
    package = pytest.importorskip("torch", reason="PyTorch is not installed")
    needs("onnxscript", "torchvision", "timm", "transformers")
    threads = package.get_num_threads()
    package.set_num_threads(1)
    yield package
    package.set_num_threads(threads)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_grid_that_auto_chooses_and_its_maps(torch, name):
    network = NETWORKS[name]
    size = dict(network.sizes).get("img_size", SIZE)
    torch.manual_seed(0)
    model = randomised(network.make(), size)
    layer = network.module if "behind" in name else None
    product = export_pytorch(model, size=size, exporter=network.exporter, layer=layer)
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    classes = np.array([1, 4])
    wanted = by_pytorch(torch, model, network, x, classes)
    for method in ("gradcam", "hirescam"):
        tensor = "auto" if layer is None else product.layers[layer].tensor
        explained = attach(product.model.to_proto(), method=method, layer=tensor)
        image = explained.metadata.image_input
        found = Session(explained.to_proto().SerializeToString(), threads=1).run({image: x, "target_class": classes})
        assert found["cam"].shape == wanted[method].shape, explained.reason
        biggest = np.abs(wanted[method]).max()
        assert biggest > 0
        np.testing.assert_allclose(found["cam"], wanted[method], rtol=0, atol=1e-4 * biggest)
