"""Writes `paths.npz`: path methods and XRAI of the `saliency` library, for a network in NumPy.

Needs saliency 0.2.1 and scikit-image: `python tests/oracles/make_paths.py`. The network is S(x) = w tanh(V x) in
float64, of the image rounded to float32, as the tests repeat it.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import saliency.core as saliency
from saliency.core import xrai
from skimage import data, segmentation, transform

SIDE = 40


def main():
    if "interpolation" not in inspect.signature(np.quantile).parameters:  # removed from NumPy 2.4
        quantile = np.quantile
        np.quantile = lambda a, q, interpolation="linear": quantile(a, q, method=interpolation)
    rng = np.random.default_rng(0)
    image = transform.resize(data.astronaut()[:256, 96:352], (SIDE, SIDE), anti_aliasing=True)
    x = ((image - 0.5) / 0.25).astype(np.float32)
    weights = (rng.standard_normal((6, x.size)) / np.sqrt(x.size)).astype(np.float32)
    head = rng.standard_normal(6).astype(np.float32)

    def gradients(images, **_):
        rows = np.asarray(images, np.float32).reshape(len(images), -1).astype(np.float64)
        back = (1 - np.tanh(rows @ weights.T.astype(np.float64)) ** 2) * head
        return {saliency.INPUT_OUTPUT_GRADIENTS: (back @ weights).reshape(np.shape(images))}

    dark = np.full_like(x, x.min())
    guided, parameters = saliency.GuidedIG(), saliency.XRAIParameters
    segments = xrai._get_segments_felzenszwalb(x)
    lone = {"segments": segments, "extra_parameters": parameters(steps=20)}
    facts = {
        "x": x,
        "weights": weights,
        "head": head,
        "integrated": saliency.IntegratedGradients().GetMask(x, gradients, x_baseline=dark, x_steps=25),
        "guided": guided.GetMask(x, gradients, x_baseline=dark, x_steps=60, fraction=0.25, max_dist=0.02),
        "guided-free": guided.GetMask(x, gradients, x_baseline=dark, x_steps=20, fraction=0.25, max_dist=1.0),
        "segments": np.packbits(np.stack(segments), axis=-1),
        "xrai": saliency.XRAI().GetMask(x, gradients, **lone),
        "labels": segmentation.felzenszwalb(_scaled(x), scale=250, sigma=0.8, min_size=40).astype(np.int16),
        "version": np.array("saliency 0.2.1"),
    }
    for name, more in {"xrai-fast": {"algorithm": "fast"}, "xrai-part": {"area_threshold": 0.2}}.items():
        lone["extra_parameters"] = parameters(steps=20, **more)
        facts[name] = saliency.XRAI().GetMask(x, gradients, **lone)
    np.savez_compressed(Path(__file__).parent / "paths.npz", **facts)


def _scaled(x):
    return 2 * (x.astype(np.float64) - x.min()) / np.ptp(x) - 1


if __name__ == "__main__":
    main()
