"""Writes `presets_torch.npz`: heatmaps and overlays of pytorch-grad-cam, torch-cam and captum.

Needs torch 2.13, grad-cam 1.5.7, torchcam 0.5.0, captum 0.9.0, Pillow and matplotlib:
`python tests/oracles/make_presets_torch.py`. What is kept for each case:

| name | what |
| --- | --- |
| `A`, `logit`, `output` | the maps of the layer, and the cotangents of logit and probability |
| `heatmap/LIBRARY` | `[H, W]` for pytorch-grad-cam and captum, at the layer's size for torch-cam |
| `overlay/LIBRARY` | `uint8 [H, W, 3]`, the library's own; torch-cam also draws on an image of three times the size |
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from captum.attr import visualization as captum_visualization
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from preset_network import CASES, HEIGHT, WIDTH, images, inputs, weights
from torch import nn
from torchcam.methods import GradCAM as TorchCam
from torchcam.utils import overlay_mask

# pytorch-grad-cam imports torchvision, which needs its compiled operators to be declared; none is used here.
declared = torch.library.Library("torchvision", "DEF")
declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from pytorch_grad_cam import GradCAM  # noqa: E402 - after the declarations
from pytorch_grad_cam.utils.image import show_cam_on_image  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402
from torchvision.transforms.functional import to_pil_image  # noqa: E402


class Network(nn.Module):
    """Logits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 12, 3)
        self.third, self.last = nn.Conv2d(12, 16, 3), nn.Linear(16, 5)
        numbers = {name: torch.from_numpy(value) for name, value in weights().items()}
        for name in ("first", "second", "third", "last"):
            getattr(self, name).load_state_dict({"weight": numbers[name], "bias": numbers[f"{name}_bias"]})

    def behind(self, maps):
        return self.last(torch.sigmoid(self.third(torch.sigmoid(maps))).mean((2, 3)))

    def forward(self, x):
        return self.behind(self.second(torch.relu(self.first(x))))


def drawn(draw):
    """What `draw(axes)` puts on axes that have a pixel for each of the image: `uint8 [H, W, 3]`."""
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), dpi=10)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw(figure, axes)
    axes.set_axis_off()
    axes.set_position((0, 0, 1, 1))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def blended(attribution, image):
    def draw(figure, axes):
        captum_visualization.visualize_image_attr(
            attribution[..., None], image, "blended_heat_map", "all", plt_fig_axis=(figure, axes), use_pyplot=False
        )

    return drawn(draw)


def main():
    network = Network().eval()
    facts = {}
    for case, (sample, index) in CASES.items():
        x, image = torch.from_numpy(inputs()[sample : sample + 1]), images()[sample]
        found = {}
        maps = network.second(torch.relu(network.first(x))).detach().requires_grad_()
        logits = network.behind(maps)
        (found["logit"],) = torch.autograd.grad(logits[0, index], maps, retain_graph=True)
        (found["output"],) = torch.autograd.grad(logits.softmax(1)[0, index], maps)
        found |= {"A": maps.detach(), "scores": logits.detach().softmax(1)}

        mask = GradCAM(network, [network.second])(x, [ClassifierOutputTarget(index)])[0]
        found["heatmap/pytorch-grad-cam"] = mask
        found["heatmap/pytorch-grad-cam/both"] = GradCAM(network, [network.first, network.second])(
            x, [ClassifierOutputTarget(index)]
        )[0]
        found["overlay/pytorch-grad-cam"] = show_cam_on_image(np.float32(image) / 255, mask, use_rgb=True)

        with TorchCam(network, "second", input_shape=(3, HEIGHT, WIDTH)) as extractor:
            (cam,) = extractor(index, network(x))
            found["heatmap/torch-cam"] = cam[0]
        mask = to_pil_image(cam, mode="F")
        found["overlay/torch-cam"] = np.asarray(overlay_mask(Image.fromarray(image), mask))
        large = Image.fromarray(image.repeat(3, axis=0).repeat(3, axis=1))
        found["overlay/torch-cam/large"] = np.asarray(overlay_mask(large, mask))
        with TorchCam(network, ["first", "second"], input_shape=(3, HEIGHT, WIDTH)) as extractor:
            found["heatmap/torch-cam/both"] = extractor.fuse_cams(extractor(index, network(x)), (HEIGHT, WIDTH))[0]

        attribution = LayerGradCam(network, network.second).attribute(x, index)
        found["raw/captum"] = attribution.detach()[0, 0]
        attribution = LayerAttribution.interpolate(attribution, (HEIGHT, WIDTH)).detach()[0, 0].numpy()
        found["heatmap/captum"] = attribution
        found["overlay/captum"] = blended(attribution, image)
        facts |= {f"{case}/{name}": np.asarray(value) for name, value in found.items()}
    versions = {"torch": torch.__version__, "grad-cam": "1.5.7", "torchcam": "0.5.0", "captum": "0.9.0"}
    versions |= {"matplotlib": mpl.__version__, "network": "preset_network.py"}
    np.savez_compressed(
        Path(__file__).with_name("presets_torch.npz"), provenance=np.array(json.dumps(versions)), **facts
    )


if __name__ == "__main__":
    main()
