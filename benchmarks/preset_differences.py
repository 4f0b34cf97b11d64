"""Compare the heatmaps of all presets on images, for one model and its top-1 class.

    python benchmarks/preset_differences.py MODEL IMAGE [IMAGE ...] --preprocess JSON

For each preset that serves the method it prints the largest difference from pytorch-grad-cam's heatmap (mean and
maximum over the images), and the mean correlation with it.
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
    parser.add_argument("images", nargs="+")
    parser.add_argument("--preprocess", required=True)
    parser.add_argument("--method", default="gradcam")
    options = parser.parse_args()
    maps = {}
    serving = [name for name, p in PRESETS.items() if p.methods is None or options.method in p.methods]
    for preset in serving:
        explainer = Explainer(
            options.model, preset=preset, preprocess=options.preprocess, method=options.method, threads=1
        )
        maps[preset] = [explainer(image).heatmap for image in options.images]
    print("| preset | largest difference, mean (worst) | correlation |")
    print("| --- | --- | --- |")
    for preset, heatmaps in maps.items():
        differences = [np.abs(a - b).max() for a, b in zip(heatmaps, maps[REFERENCE], strict=True)]
        correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(heatmaps, maps[REFERENCE], strict=True)]
        print(f"| {preset} | {np.mean(differences):.3f} ({np.max(differences):.2f}) | {np.mean(correlations):.3f} |")


if __name__ == "__main__":
    main()
