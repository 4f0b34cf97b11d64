"""The network that the oracles of the presets were computed with, and what the libraries made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from oracles.preset_network import CASES, HEIGHT, WIDTH, inputs, weights
from support.graphs import graph, run

from onnx_gradcam.editor.attachment import attach

FOLDER = Path(__file__).parents[1] / "oracles"
ORACLE = {
    name: value
    for source in ("torch", "tensorflow", "formula", "mxnet", "saliency")
    for name, value in dict(np.load(FOLDER / f"presets_{source}.npz")).items()
    if name != "provenance"
} | {f"mxnet/{name}": value for name, value in dict(np.load(FOLDER / "presets_mxnet.npz")).items()}
OPENVINO = dict(np.load(FOLDER / "presets_openvino.npz"))


def network(height: int | str = HEIGHT, width: int | str = WIDTH, numbers=None, kind="float"):
    numbers = numbers or weights()
    return graph(
        "b = Conv<strides=[2,2]>(x, first, first_bias) c = Relu(b) a = Conv(c, second, second_bias) d = Sigmoid(a) "
        "e = Conv(d, third, third_bias) f = Sigmoid(e) g = GlobalAveragePool(f) h = Flatten(g) "
        "z = Gemm<transB=1>(h, last, last_bias) p = Softmax(z)",
        inputs=f"{kind}[N,3,{height},{width}] x",
        outputs=f"{kind}[N,5] p",
        **numbers,
    )


def explained(preset: str, case: str, *, width: int = WIDTH, layer="a", **choices):
    sample, index = CASES[case]
    proto = attach(network(width=width), layer=layer, preset=preset, **choices).to_proto()
    x = inputs()[sample : sample + 1, ..., :width]
    return {k: v[0] for k, v in run(proto, x=x, target_class=np.array([index], np.int64)).items()}
