"""Writes `pytorch_grad_cam.npz`: what pytorch-grad-cam makes of a small network, method by method.

Needs torch 2.13, grad-cam 1.5.7 and scikit-learn: `python tests/oracles/make_pytorch_grad_cam.py`. The network has two
convolutions without a last ReLU, so that raw maps are of mixed sign, and a head with a ReLU, so that cotangents differ
from place to place.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

# The library imports torchvision, which needs its compiled operators to be declared; none is used here.
declared = torch.library.Library("torchvision", "DEF")
declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import pytorch_grad_cam as library  # noqa: E402 - after the declarations
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

METHODS = {
    "gradcam": library.GradCAM,
    "hirescam": library.HiResCAM,
    "gradcam-elementwise": library.GradCAMElementWise,
    "layercam": library.LayerCAM,
    "xgradcam": library.XGradCAM,
    "gradcam++": library.GradCAMPlusPlus,
    "shapleycam": library.ShapleyCAM,
    "eigencam": library.EigenCAM,
    "eigengradcam": library.EigenGradCAM,
    "segeigencam": library.SegEigenCAM,
    "kpcacam": library.KPCA_CAM,
    "fem": library.FEM,
}
CLASSES = [1, 4]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 12, 3)
        self.hidden = nn.Linear(12 * 5 * 5, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.second(torch.relu(self.first(x)))
        return self.last(nn.functional.silu(self.hidden(torch.relu(x).flatten(1))))


def explained(kind, network, x, targets):
    """Heatmap, and the map of the one layer before the ReLU, `[N, h, w]`."""

    class Recorder(kind):
        def get_cam_image(self, *arguments, **options):
            self.raw = super().get_cam_image(*arguments, **options)
            return self.raw

    recorder = Recorder(network, [network.second])
    return recorder(x, targets), recorder.raw


def main():
    torch.manual_seed(3)
    network = Network().eval()
    x = torch.randn(2, 3, 15, 15)
    targets = [ClassifierOutputTarget(c) for c in CLASSES]
    facts = {"x": x.numpy(), "classes": np.array(CLASSES), "scores": network(x).detach().numpy()}
    facts |= {f"weight/{name}": value.detach().numpy() for name, value in network.named_parameters()}
    for name, kind in METHODS.items():
        facts[f"heatmap/{name}"], facts[f"cam/{name}"] = explained(kind, network, x, targets)
    both = [network.first, network.second]
    facts["heatmap/gradcam/both"] = library.GradCAM(network, both)(x, targets)
    facts["heatmap/refinecam/both"] = library.RefineCAM(network, both)(x, targets)
    facts["heatmap/fullgrad"] = library.FullGrad(network, [])(x, targets)
    facts["heatmap/finercam"] = library.FinerCAM(network, [network.second])(x)
    facts["provenance"] = np.array(
        json.dumps({"library": "grad-cam 1.5.7", "torch": torch.__version__, "network": "random weights, seed 3"})
    )
    np.savez_compressed(Path(__file__).with_name("pytorch_grad_cam.npz"), **facts)


if __name__ == "__main__":
    main()
