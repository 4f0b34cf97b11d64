"""Deformable convolution against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node

CASES = {
    "plain": ((1, 2, 4, 5), (3, 2, 2, 2), {}),
    "pads, strides, dilations": (
        (1, 2, 6, 5),
        (2, 2, 2, 3),
        {"pads": [1, 0, 1, 1], "strides": [2, 1], "dilations": [2, 1]},
    ),
    "groups": ((2, 4, 4, 4), (4, 2, 2, 2), {"group": 2, "offset_group": 2}),
    "offset groups": ((1, 4, 4, 4), (2, 4, 2, 2), {"offset_group": 4, "kernel_shape": [2, 2]}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_deform_conv(case, masked):
    """Offsets that leave every position well between two elements, also outside of the image.

    The evaluator takes positions in float32, but between two elements the output is quadratic in them, so that
    central differences of a large step are exact.
    """
    image, weight, attributes = CASES[case]
    rng = np.random.default_rng(0)
    pads, ones = attributes.get("pads", [0] * 4), [1, 1]
    steps, gaps = attributes.get("strides", ones), attributes.get("dilations", ones)
    out = [(image[2 + i] + pads[i] + pads[2 + i] - (weight[2 + i] - 1) * gaps[i] - 1) // steps[i] + 1 for i in range(2)]
    taps = attributes.get("offset_group", 1) * weight[2] * weight[3]
    offsets = rng.integers(-2, 2, (image[0], taps * 2, *out)) + rng.uniform(0.3, 0.7, (image[0], taps * 2, *out))
    inputs = {
        "x": rng.standard_normal(image).astype(np.float32),
        "w": rng.standard_normal(weight).astype(np.float32),
        "offset": offsets.astype(np.float32),
        "b": rng.standard_normal(weight[0]).astype(np.float32),
        "mask": rng.uniform(0, 1, (image[0], taps, *out)).astype(np.float32) if masked else None,
    }
    options = {"opset": 19, "step": 0.02, "tolerance": 1e-4}
    check_node("DeformConv", inputs, dynamic=False, **options, **attributes)
    check_node("DeformConv", inputs, wrt=["x", "offset"], dynamic=True, constants=["w", "b"], **options, **attributes)
