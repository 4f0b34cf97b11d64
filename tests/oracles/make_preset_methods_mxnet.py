"""Writes `preset_methods_mxnet.npz`: the panels of MXNet's Grad-CAM tutorial that multiply by the guided gradient.

Needs mxnet 1.9.1: `python tests/oracles/make_preset_methods_mxnet.py`. The tutorial is no package, so its steps
(docs/tutorial_utils/vision/cnn_visualization/gradcam.py: get_guided_grad_cam, grad_to_image, to_grayscale) are done
here in its own words, on the heatmap of `presets_mxnet.npz`. What is kept for each case:

| name | what |
| --- | --- |
| `attribution` | the guided gradient times the integers of the heatmap, `[3, H, W]` |
| `panel` | that product as an image, `uint8 [H, W, 3]` |
| `gray` | the tutorial's saliency, `[H, W]` |
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

np.bool = bool  # the name that mxnet uses was taken out of NumPy 1.24

import mxnet as mx  # noqa: E402
from mxnet import autograd, nd  # noqa: E402
from preset_network import CASES, HEIGHT, inputs, weights  # noqa: E402


def guided_gradient(x, numbers, index):
    """The gradient of a logit with respect to the image; the one ReLU passes positive values on only."""
    x = nd.array(x)
    x.attach_grad()
    with autograd.record(train_mode=False):
        first = nd.Convolution(x, numbers["first"], numbers["first_bias"], kernel=(3, 3), stride=(2, 2), num_filter=8)
    positive = nd.relu(first)
    positive.attach_grad()
    with autograd.record(train_mode=False):
        maps = nd.Convolution(positive, numbers["second"], numbers["second_bias"], kernel=(3, 3), num_filter=12)
        gate = nd.sigmoid(maps)
        third = nd.Convolution(gate, numbers["third"], numbers["third_bias"], kernel=(3, 3), num_filter=16)
        pooled = nd.mean(nd.sigmoid(third), axis=(2, 3))
        scores = nd.FullyConnected(pooled, numbers["last"], numbers["last_bias"], num_hidden=5)
    scores.backward(nd.one_hot(nd.array([index]), 5), train_mode=False)
    first.backward(nd.relu(positive.grad) * (first > 0), train_mode=False)
    return x.grad[0].asnumpy()


def main():
    numbers = {name: nd.array(value) for name, value in weights().items()}
    heatmaps = np.load(Path(__file__).with_name("presets_mxnet.npz"))
    facts = {}
    for case, (sample, index) in CASES.items():
        gradient = guided_gradient(inputs()[sample : sample + 1, ..., :HEIGHT], numbers, index)
        product = np.multiply(heatmaps[f"{case}/heatmap"], gradient)
        lifted = product - product.min()
        lifted /= lifted.max()
        magnitudes = np.sum(np.abs(product), axis=0)
        most, least = np.percentile(magnitudes, 99), np.min(magnitudes)
        facts[f"{case}/attribution"] = product.astype(np.float32)
        facts[f"{case}/panel"] = np.uint8(lifted * 255).transpose(1, 2, 0)[..., ::-1]
        facts[f"{case}/gray"] = np.clip((magnitudes - least) / (most - least), 0, 1).astype(np.float32)
    versions = {"mxnet": mx.__version__, "network": "preset_network.py"}
    path = Path(__file__).with_name("preset_methods_mxnet.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
