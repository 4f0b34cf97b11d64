"""Writes `presets_mxnet.npz`: what MXNet's Grad-CAM tutorial computes, on the left of the images.

Needs mxnet 1.9.1 and OpenCV: `python tests/oracles/make_presets_mxnet.py`. The tutorial is no package, so its steps
(docs/tutorial_utils/vision/cnn_visualization/gradcam.py: get_cam, visualize, get_img_heatmap) are done here in its own
words. It mixes up height and width, so images are square.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

np.bool = bool  # the name that mxnet uses was taken out of NumPy 1.24

import mxnet as mx  # noqa: E402
from mxnet import autograd, nd  # noqa: E402
from preset_network import CASES, HEIGHT, images, inputs, weights  # noqa: E402


def behind(maps, numbers):
    """Logits of the maps of the layer."""
    x = nd.Convolution(nd.sigmoid(maps), numbers["third"], numbers["third_bias"], kernel=(3, 3), num_filter=16)
    x = nd.mean(nd.sigmoid(x), axis=(2, 3))
    return nd.FullyConnected(x, numbers["last"], numbers["last_bias"], num_hidden=5)


def main():
    numbers = {name: nd.array(value) for name, value in weights().items()}
    facts = {}
    for case, (sample, index) in CASES.items():
        x, image = inputs()[sample : sample + 1, ..., :HEIGHT], images()[sample][:, :HEIGHT]
        first = nd.Convolution(
            nd.array(x), numbers["first"], numbers["first_bias"], kernel=(3, 3), stride=(2, 2), num_filter=8
        )
        maps = nd.Convolution(nd.relu(first), numbers["second"], numbers["second_bias"], kernel=(3, 3), num_filter=12)
        maps.attach_grad()
        with autograd.record(train_mode=False):
            scores = behind(maps, numbers)
        scores.backward(nd.one_hot(nd.array([index]), 5), train_mode=False)
        weighed = np.mean(maps.grad[0].asnumpy(), axis=(1, 2))
        cam = np.ones(maps.shape[2:], dtype=np.float32)
        for channel, weight in zip(maps[0].asnumpy(), weighed, strict=True):
            cam += weight * channel
        raw = cam - 1
        cam = np.maximum(cam, 0)
        cam = np.uint8((cam - np.min(cam)) / (np.max(cam) - np.min(cam)) * 255)
        cam = cv2.resize(cam, (HEIGHT, HEIGHT))
        heat = cv2.cvtColor(cv2.applyColorMap(cam, cv2.COLORMAP_COOL), cv2.COLOR_BGR2RGB)
        both = np.float32(heat) + np.float32(image)
        both = both / np.max(both) * 255
        found = {"cam": raw, "heatmap": cam, "overlay": both.astype(int).astype(np.uint8)}
        facts.update({f"{case}/{name}": value for name, value in found.items()})
    versions = {"mxnet": mx.__version__, "opencv": cv2.__version__, "network": "preset_network.py"}
    path = Path(__file__).with_name("presets_mxnet.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
