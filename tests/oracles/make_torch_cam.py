"""Writes `torch_cam.npz`: what torch-cam makes of a small network, method by method.

Needs torch 2.13 and torchcam 0.5.0: `python tests/oracles/make_torch_cam.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from rectified import CLASSES, SEED, network, store
from torchcam import methods


class Noise:
    """In place of a distribution of torch: NumPy's random numbers."""

    def __init__(self, deviation):
        self.deviation, self.rng = deviation, np.random.default_rng(SEED)

    def sample(self, size):
        return torch.from_numpy((self.deviation * self.rng.standard_normal(tuple(size))).astype(np.float32))


def main():
    made, x, facts = network()
    kinds = {
        "scorecam-torch-cam": methods.ScoreCAM,
        "sscam": methods.SSCAM,
        "iscam": methods.ISCAM,
        "smooth-gradcam++-torch-cam": methods.SmoothGradCAMpp,
    }
    for name, kind in kinds.items():
        rows = []
        for i, index in enumerate(CLASSES):
            with kind(made, "second", input_shape=(3, 15, 15)) as extractor:
                if hasattr(extractor, "_distrib"):
                    extractor._distrib = Noise(extractor.std)
                extractor._relu = False
                scores = made(x[i : i + 1].clone().requires_grad_())
                rows.append(extractor(index, scores, normalized=False)[0].detach().numpy())
        facts[f"cam/{name}"] = np.concatenate(rows)
    store("torch_cam.npz", facts, "torchcam 0.5.0")


if __name__ == "__main__":
    main()
