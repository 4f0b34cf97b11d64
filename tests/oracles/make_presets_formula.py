"""Writes `presets_formula.npz`: heatmaps and overlays of what cannot be installed any more or is no package.

Needs scipy, Pillow, OpenCV and matplotlib, and `presets_torch.npz` for the maps of the layer and their cotangents:
`python tests/oracles/make_presets_formula.py`. Each follows its source step by step:

| name | source |
| --- | --- |
| `keras-vis` | vis/visualization/saliency.py of the repository: `scipy.ndimage.zoom` |
| `keras-vis-0.4.1` | the same file of the last release: `scipy.misc.imresize`, which is Pillow's bicubic |
| `chollet-1e`, `chollet-2e` | notebooks of the book, 5.4 and chapter09_part03 |
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import PIL
import scipy
from PIL import Image
from preset_network import CASES, HEIGHT, WIDTH, images

JET = mpl.colormaps["jet"]


def keras_vis(maps, cotangent, resize):
    cotangent = cotangent / (np.max(cotangent) + 1e-7)
    heatmap = np.zeros(maps.shape[1:], np.float32)
    for weight, channel in zip(np.mean(cotangent, axis=(1, 2)), maps, strict=True):
        heatmap += weight * channel
    cam = heatmap.copy()
    heatmap = resize(np.maximum(heatmap, 0))
    low, high = np.min(heatmap), np.max(heatmap)
    return cam, (heatmap - low) / (high - low + 1e-7)


def zoomed(cells):
    return scipy.ndimage.zoom(cells, [HEIGHT / cells.shape[0], WIDTH / cells.shape[1]])


def imresized(cells):
    return np.array(Image.fromarray(cells, mode="F").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def keras_vis_overlay(heatmap, image):
    colours = np.uint8(JET(heatmap)[..., :3] * 255)
    return (colours * 0.5 + image * (1.0 - 0.5)).astype(np.uint8)


def chollet(maps, cotangent):
    """The map at the layer's size."""
    weighed = np.stack([channel * np.mean(g) for channel, g in zip(maps, cotangent, strict=True)])
    heatmap = np.maximum(np.mean(weighed, axis=0), 0)
    return heatmap / np.max(heatmap)


def chollet_first_overlay(cells, image):
    blue_first = image[..., ::-1]
    heatmap = np.uint8(255 * cv2.resize(cells, image.shape[1::-1]))
    both = cv2.applyColorMap(heatmap, cv2.COLORMAP_JET) * 0.4 + blue_first
    return cv2.imdecode(cv2.imencode(".png", both)[1], cv2.IMREAD_COLOR)[..., ::-1]


def main():
    layer = np.load(Path(__file__).with_name("presets_torch.npz"))
    facts = {}
    for case, (sample, _) in CASES.items():
        maps, output = (layer[f"{case}/{name}"][0] for name in ("A", "output"))
        image = images()[sample]
        large = image.repeat(3, axis=0).repeat(3, axis=1)
        found = {}
        for name, resize in (("keras-vis", zoomed), ("keras-vis-0.4.1", imresized)):
            found[f"cam/{name}"], heatmap = keras_vis(maps, output, resize)
            found[f"heatmap/{name}"] = heatmap
            found[f"overlay/{name}"] = keras_vis_overlay(heatmap, image)
        cells = chollet(maps, output)
        found["cells/chollet"] = cells
        found["heatmap/chollet-1e"] = cv2.resize(cells, (WIDTH, HEIGHT))
        found["overlay/chollet-1e"] = chollet_first_overlay(cells, image)
        found["overlay/chollet-1e/large"] = chollet_first_overlay(cells, large)
        facts |= {f"{case}/{name}": value for name, value in found.items()}
    versions = {"scipy": scipy.__version__, "pillow": PIL.__version__, "opencv": cv2.__version__}
    versions |= {"matplotlib": mpl.__version__, "network": "preset_network.py"}
    path = Path(__file__).with_name("presets_formula.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
