"""Writes `presets_openvino.npz`: Recipro-CAM of OpenVINO XAI and its overlay.

Needs openvino 2024.6 and openvino-xai 1.1.0 with OpenCV: `python tests/oracles/make_presets_openvino.py`. What is kept
for each case: `saliency`, the output of the model, at the layer's size; `heatmap`, and `overlay`, which is drawn on a
image of three times the size too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino as ov
from openvino.runtime import opset10 as opset
from openvino_xai.common.parameters import Task
from openvino_xai.explainer.explanation import Explanation
from openvino_xai.explainer.visualizer import Visualizer
from openvino_xai.methods.white_box.recipro_cam import ReciproCAM
from preset_network import CASES, HEIGHT, WIDTH, images, inputs, weights


def network():
    """Probabilities."""
    numbers = weights()

    def convolved(x, name, stride=1):
        kernel = opset.constant(numbers[name])
        found = opset.convolution(x, kernel, [stride, stride], [0, 0], [0, 0], [1, 1])
        return opset.add(found, opset.constant(numbers[f"{name}_bias"].reshape(1, -1, 1, 1)))

    image = opset.parameter([-1, 3, HEIGHT, WIDTH], np.float32, "x")
    maps = convolved(opset.relu(convolved(image, "first", 2)), "second")
    maps.set_friendly_name("second")
    x = opset.sigmoid(convolved(opset.sigmoid(maps), "third"))
    x = opset.reduce_mean(x, opset.constant([2, 3]), keep_dims=False)
    x = opset.matmul(x, opset.constant(numbers["last"]), False, True)
    x = opset.add(x, opset.constant(numbers["last_bias"].reshape(1, -1)))
    return ov.Model([opset.softmax(x, 1)], [image], "network")


def main():
    facts = {}
    for case, (sample, index) in CASES.items():
        image, x = images()[sample], inputs()[sample : sample + 1]
        method = ReciproCAM(network(), target_layer="second", prepare_model=False)
        # A processor may compute in bfloat16 by default, in which most places have the same score.
        model = ov.Core().compile_model(
            method.prepare_model(load_model=False), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        saliency = model(x)["saliency_map"]
        found = {"saliency": saliency[0, index]}
        large = image.repeat(3, axis=0).repeat(3, axis=1)
        drawings = {"heatmap": (image, False), "overlay": (image, True), "overlay/large": (large, True)}
        for name, (shown, overlay) in drawings.items():
            explanation = Explanation(saliency, [index], Task.CLASSIFICATION)
            drawn = Visualizer()(explanation, shown, overlay=overlay, colormap=False, overlay_prediction=False)
            found[name] = np.asarray(drawn.saliency_map[index])
        facts |= {f"{case}/{name}": value for name, value in found.items()}
    versions = {"openvino": ov.__version__, "openvino-xai": "1.1.0", "network": "preset_network.py"}
    path = Path(__file__).with_name("presets_openvino.npz")
    np.savez_compressed(path, provenance=np.array(json.dumps(versions)), **facts)


if __name__ == "__main__":
    main()
