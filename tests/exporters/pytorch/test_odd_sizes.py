"""Convolutional architectures exported with open sizes, explained at odd ones.

The oracle is the same file with the sizes written into its input: nothing of it has to be guessed.
"""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from exporters.pytorch.zoo import DYNAMO, ZOO, made, needs
from support.graphs import freed, run

from onnx_gradcam.editor.attachment import attach

SIZES = ((1, 225, 223), (2, 97, 101), (5, 97, 101))
FIXED = ("vit", "swin", "mixer", "dinov2", "beit", "cvt", "vgg11")
"""Parts of the names of architectures that take one size only: tokens with learned positions, or a flattened grid."""

CONVOLUTIONAL = {
    name: entry for name, entry in ZOO.items() if not any(part in name.lower() for part in (*FIXED, "second call"))
}

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's own
]


def exported(torch, name) -> onnx.ModelProto:
    """An architecture as its users export it, with open batch, height and width."""
    network, entry = made(name), CONVOLUTIONAL[name]
    x, file = torch.zeros(2, 3, 128, 160), io.BytesIO()
    if entry.exporter == DYNAMO:
        dims = {
            axis: torch.export.Dim(letter, min=low) for axis, letter, low in ((0, "N", 1), (2, "H", 33), (3, "W", 33))
        }
        program = torch.onnx.export(network, (x,), dynamo=True, dynamic_shapes=(dims,), verbose=False)
        return program.model_proto
    torch.onnx.export(
        network, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N", 2: "H", 3: "W"}}
    )
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_heatmaps_at_odd_sizes(name, torch):
    first = name.split()[0]
    needs("torchvision", *({first} & {"timm", "transformers"}))
    source = exported(torch, name)
    image = source.graph.input[0].name
    # At the smallest size, the last maps of some architectures have a single position.
    layer = attach(freed(source, (97, 101), 2), weights="gradient").metadata.target_tensor
    proto = attach(source, weights="gradient", layer=layer).to_proto()
    for rows, height, width in SIZES:
        pixels = np.random.default_rng(rows).standard_normal((rows, 3, height, width), np.float32)
        feeds = {image: pixels, "target_class": np.arange(rows)}
        explained, original = run(proto, **feeds), run(source, **{image: pixels})
        fixed = attach(freed(source, (height, width), rows), weights="gradient", layer=layer).to_proto()
        expected = run(fixed, **feeds)
        for output, values in original.items():
            np.testing.assert_allclose(explained[output], values, rtol=1e-4, atol=1e-5)
        assert explained["heatmap"].shape == (rows, height, width)
        scale = np.abs(expected["cam"]).max()
        assert scale > 0
        np.testing.assert_allclose(explained["cam"], expected["cam"], rtol=0, atol=1e-4 * scale)
