"""Evidence that was planted in volumes and signals is where the heat is, for networks trained to see it.

The networks are those of `tests/oracles/make_planted.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.graphs import graph
from support.helpers import quiet_session
from support.planted import LENGTH, SIDE, beats, lesions

from onnx_gradcam import attach

WEIGHTS = Path(__file__).parents[1] / "oracles" / "planted.npz"
KINDS = {"lesion": (lesions, 3, f"float[N,1,{SIDE},{SIDE},{SIDE}] x"), "beat": (beats, 1, f"float[N,12,{LENGTH}] x")}


def network(name: str) -> onnx.ModelProto:
    """Three convolutions, the first one pooled, and a linear layer behind global average pooling."""
    _, dimensions, inputs = KINDS[name]
    pads = f"pads=[{','.join('1' * 2 * dimensions)}]"
    window = ",".join("2" * dimensions)
    with np.load(WEIGHTS) as stored:
        weights = {key.removeprefix(f"{name}_"): stored[key] for key in stored if key.startswith(name)}
    return graph(
        f"a = Conv<{pads}>(x, Kweight, Kbias) b = Relu(a) "
        f"c = MaxPool<kernel_shape=[{window}], strides=[{window}]>(b) d = Conv<{pads}>(c, Lweight, Lbias) e = Relu(d) "
        f"f = Conv<{pads}>(e, Mweight, Mbias) g = Relu(f) h = GlobalAveragePool(g) i = Flatten(h) "
        "y = Gemm<transB=1>(i, Wweight, Wbias)",
        inputs=inputs,
        outputs="float[N,2] y",
        **weights,
    )


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam"])
@pytest.mark.parametrize("name", KINDS)
def test_the_maximum_is_inside_what_was_planted(name, method):
    """In at least 95 % of 200 volumes or signals that the network never saw."""
    x, labels, inside = KINDS[name][0](400, 7)
    x, inside = x[labels == 1], inside[labels == 1]
    session = quiet_session(attach(network(name), method=method).to_proto())
    scores, heatmaps = session.run(["y", "heatmap"], {"x": x, "target_class": np.array([1])})
    assert (scores.argmax(1) == 1).mean() >= 0.95
    best = heatmaps.reshape(len(x), -1).argmax(1)
    hits = inside.reshape(len(x), -1)[np.arange(len(x)), best]
    assert len(hits) == 200
    assert hits.mean() >= 0.95
    # A map without the evidence is not as good: chance is the share of positions that were planted.
    assert inside.mean() < 0.15
