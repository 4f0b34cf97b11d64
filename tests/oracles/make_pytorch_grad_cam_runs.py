"""Writes `pytorch_grad_cam_runs.npz`: methods that run the model many times, and smoothing, as pytorch-grad-cam has it.

Needs torch 2.13, grad-cam 1.5.7 and scikit-learn: `python tests/oracles/make_pytorch_grad_cam_runs.py`.
"""

from __future__ import annotations

import torch
from rectified import CLASSES, network, store

# The library imports torchvision, which needs its compiled operators to be declared; none is used here.
declared = torch.library.Library("torchvision", "DEF")
declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import pytorch_grad_cam as library  # noqa: E402 - after the declarations
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

RUNS = {"scorecam": library.ScoreCAM, "ablationcam": library.AblationCAM}
SMOOTHED = {
    **RUNS,
    "gradcam": library.GradCAM,
    "gradcam++": library.GradCAMPlusPlus,
    "xgradcam": library.XGradCAM,
    "hirescam": library.HiResCAM,
    "gradcam-elementwise": library.GradCAMElementWise,
    "layercam": library.LayerCAM,
    "shapleycam": library.ShapleyCAM,
}


def explained(kind, made, x, targets, **options):
    """Heatmap, and the map of the one layer before the ReLU, `[N, h, w]`."""

    class Recorder(kind):
        def get_cam_image(self, *arguments, **options):
            self.raw = super().get_cam_image(*arguments, **options)
            return self.raw

    # Ablation-CAM sets channels to zero only where nothing is below it; elsewhere it takes -1e7, and adds another
    # -1e7 with every row of a batch.
    recorder = Recorder(made, [made.last_rectified if kind is library.AblationCAM else made.second])
    return recorder(x, targets, **options), recorder.raw


def main():
    made, x, facts = network()
    targets = [ClassifierOutputTarget(c) for c in CLASSES]
    for name, kind in RUNS.items():
        facts[f"heatmap/{name}"], facts[f"cam/{name}"] = explained(kind, made, x, targets)
    for name, kind in SMOOTHED.items():
        facts[f"eigen/{name}"] = explained(kind, made, x, targets, eigen_smooth=True)[1]
    for name in ("gradcam", "scorecam"):
        facts[f"augmented/{name}"] = explained(SMOOTHED[name], made, x, targets, aug_smooth=True)[0]
    store("pytorch_grad_cam_runs.npz", facts, "grad-cam 1.5.7")


if __name__ == "__main__":
    main()
