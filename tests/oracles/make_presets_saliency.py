"""Writes `presets_saliency.npz`: heatmaps of Grad-CAM in the `saliency` library.

Needs saliency 0.2.1, and `presets_torch.npz` for the maps of the layer and their gradients:
`python tests/oracles/make_presets_saliency.py`. `CASE/heatmap/pair-saliency` is `[H, W]`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import saliency.core as saliency
import skimage
from preset_network import CASES, HEIGHT, WIDTH

FOLDER = Path(__file__).parent


def main():
    torch, results = np.load(FOLDER / "presets_torch.npz"), {}
    for case in CASES:
        maps, gradient = (torch[f"{case}/{name}"].reshape(torch[f"{case}/A"].shape[-3:]) for name in ("A", "logit"))

        def values(*_, maps=maps, gradient=gradient, **__):
            return {
                saliency.CONVOLUTION_LAYER_VALUES: maps.transpose(1, 2, 0)[None],
                saliency.CONVOLUTION_OUTPUT_GRADIENTS: gradient.transpose(1, 2, 0)[None],
            }

        image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        results[f"{case}/heatmap/pair-saliency"] = saliency.GradCam().GetMask(image, values, three_dims=False)
    results["provenance"] = np.array(json.dumps({"library": "saliency 0.2.1", "scikit-image": skimage.__version__}))
    np.savez_compressed(FOLDER / "presets_saliency.npz", **results)


if __name__ == "__main__":
    main()
