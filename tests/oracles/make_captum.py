"""Writes `captum.npz`: what captum makes of a small network, method by method.

Needs torch 2.13 and captum 0.9.0: `python tests/oracles/make_captum.py`.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from captum import attr
from rectified import CLASSES, SEED, network, store

SAMPLES, NOISE = 50, 0.15
WINDOW, STEP = 7, 3
"""Of an occlusion whose last windows reach beyond the image."""


class Tunnel(attr.NoiseTunnel):
    """With NumPy's random numbers, from the same seed for every image."""

    @staticmethod
    def _add_noise_to_input(input, stdev, nt_samples_partition):  # noqa: A002 - the library's own name
        noise = stdev * np.random.default_rng(SEED).standard_normal((nt_samples_partition, *input.shape[1:]))
        return input + torch.from_numpy(noise.astype(np.float32))


def main():
    made, x, facts = network()
    gradient = attr.Saliency(made)
    kinds = {
        "gradient": lambda x, c: gradient.attribute(x, target=c, abs=False),
        "saliency": lambda x, c: gradient.attribute(x, target=c),
        "input-x-gradient": lambda x, c: attr.InputXGradient(made).attribute(x, target=c),
        "guided-backprop": lambda x, c: attr.GuidedBackprop(made).attribute(x, target=c),
        "deconvnet": lambda x, c: attr.Deconvolution(made).attribute(x, target=c),
        "guided-gradcam": lambda x, c: attr.GuidedGradCam(made, made.second).attribute(
            x, target=c, interpolate_mode="bilinear"
        ),
        "integrated-gradients": lambda x, c: attr.IntegratedGradients(made).attribute(x, target=c),
        "occlusion": lambda x, c: attr.Occlusion(made).attribute(x, (3, WINDOW, WINDOW), (3, STEP, STEP), target=c),
    }
    for name, kind in (("smoothgrad", "smoothgrad"), ("smoothgrad-squared", "smoothgrad_sq"), ("vargrad", "vargrad")):
        kinds[name] = lambda x, c, kind=kind: Tunnel(gradient).attribute(
            x, nt_type=kind, nt_samples=SAMPLES, stdevs=NOISE * float(np.ptp(x.detach().numpy())), target=c, abs=False
        )
    for name, explain in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            rows = [explain(x[i : i + 1].clone().requires_grad_(), c) for i, c in enumerate(CLASSES)]
        facts[f"attribution/{name}"] = torch.cat(rows).detach().numpy().astype(np.float32)
    store("captum.npz", facts, "captum 0.9.0")


if __name__ == "__main__":
    main()
