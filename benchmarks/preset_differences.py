"""How far the heatmaps of presets lie apart on photographs: one model, the same class, everything else the preset's.

    python benchmarks/preset_differences.py MODEL PHOTO [PHOTO ...] --preprocess JSON

For each preset: the largest difference from pytorch-grad-cam's heatmap, mean and worst over the photographs, and the
mean correlation with it.
"""

from __future__ import annotations

import argparse

import numpy as np

from onnx_gradcam.editor.presets import PRESETS
from onnx_gradcam.runtime.explainer import Explainer

REFERENCE = "pytorch-grad-cam"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--preprocess", required=True)
    parser.add_argument("--method", default="gradcam")
    asked = parser.parse_args()
    maps = {}
    for preset in PRESETS:
        explainer = Explainer(asked.model, preset=preset, preprocess=asked.preprocess, method=asked.method, threads=1)
        maps[preset] = [explainer(photo).heatmap for photo in asked.photos]
    print("| preset | largest difference, mean (worst) | correlation |")
    print("| --- | --- | --- |")
    for preset, mine in maps.items():
        apart = [np.abs(a - b).max() for a, b in zip(mine, maps[REFERENCE], strict=True)]
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(mine, maps[REFERENCE], strict=True)]
        print(f"| {preset} | {np.mean(apart):.3f} ({np.max(apart):.2f}) | {np.mean(alike):.3f} |")


if __name__ == "__main__":
    main()
