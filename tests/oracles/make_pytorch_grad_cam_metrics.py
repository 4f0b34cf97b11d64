"""Make pytorch_grad_cam_metrics.npz: what pytorch-grad-cam's metrics say of two images and two heatmaps.

Run by hand, with torch and grad-cam installed::

    python tests/oracles/make_pytorch_grad_cam_metrics.py

ROAD is made without its noise, which no two programs draw alike. The heatmaps hold no equal values: that library takes
all pixels of one value away at once.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

# The library imports torchvision, which needs its compiled operators to be declared; none is used here.
declared = torch.library.Library("torchvision", "DEF")
declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from pytorch_grad_cam.metrics import road  # noqa: E402 - after the declarations
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget  # noqa: E402


def main() -> None:
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6 * 11 * 9, 4)
    ).eval()
    with torch.no_grad():
        network[3].weight *= 8
    x = rng.standard_normal((3, 3, 24, 20)).astype(np.float32)
    heatmaps = rng.permutation(3 * 24 * 20).reshape(3, 24, 20).astype(np.float32) / (3 * 24 * 20)
    classes = [0, 3, 1]
    start = road.NoisyLinearImputer.__init__
    start.__defaults__ = (0.0, *start.__defaults__[1:])
    asked = torch.from_numpy(x), heatmaps, [ClassifierOutputSoftmaxTarget(c) for c in classes], network
    kept = [np.float32(h < np.percentile(h, 60)) for h in heatmaps]
    fill = road.NoisyLinearImputer()
    with torch.no_grad():
        found = {
            "x": x,
            "heatmap": heatmaps,
            "classes": np.array(classes),
            "scores": torch.softmax(network(asked[0]), 1).numpy(),
            "road": road.ROADCombined()(*asked),
            "most_relevant_first": road.ROADMostRelevantFirstAverage()(*asked),
            "least_relevant_first": road.ROADLeastRelevantFirstAverage()(*asked),
            "imputed": np.stack(
                [fill(torch.from_numpy(a), torch.from_numpy(k)).numpy() for a, k in zip(x, kept, strict=True)]
            ),
            "drop": DropInConfidence()(*asked),
            "increase": IncreaseInConfidence()(*asked),
            **{f"weight/{name}": value.numpy() for name, value in network.state_dict().items()},
        }
    found["provenance"] = np.array(f"grad-cam {version('grad-cam')}, torch {torch.__version__}, seed 3")
    np.savez_compressed(Path(__file__).with_name("pytorch_grad_cam_metrics.npz"), **found)


if __name__ == "__main__":
    main()
