"""Writes `saliency.npz`: Blur IG of the `saliency` library for a small network.

Needs torch 2.13 and saliency 0.2.1: `python tests/oracles/make_saliency.py`.
"""

from __future__ import annotations

import numpy as np
import saliency.core as saliency
import torch
from rectified import CLASSES, network, store


def main():
    made, x, facts = network()
    rows = []
    for image, index in zip(x, CLASSES, strict=True):

        def gradients(images, index=index, **_):
            batch = torch.tensor(np.asarray(images, np.float32).transpose(0, 3, 1, 2)).requires_grad_()
            (gradient,) = torch.autograd.grad(made(batch)[:, index].sum(), [batch])
            return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.numpy().transpose(0, 2, 3, 1)}

        mask = saliency.BlurIG().GetMask(image.numpy().transpose(1, 2, 0), gradients, batch_size=1)
        rows.append(mask.transpose(2, 0, 1))
    facts["attribution/blur-ig"] = np.stack(rows).astype(np.float32)
    store("saliency.npz", facts, "saliency 0.2.1")


if __name__ == "__main__":
    main()
