"""Convolution and transposed convolution against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import check_node, node_model, quiet_session

from onnx_gradcam.autodiff.reference import evaluate, evaluator

CONV = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "one by one": ((2, 3, 5, 4), (4, 3, 1, 1), {}),
    "one dimension": ((2, 3, 9), (4, 3, 3), {"strides": [2], "pads": [1, 0]}),
    "three dimensions": ((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"strides": [2, 1, 3], "pads": [0, 1, 1, 1, 0, 0]}),
    "stride drops rows": ((2, 3, 8, 9), (4, 3, 3, 2), {"strides": [2, 3]}),
    "stride drops rows despite pads": ((1, 2, 8, 10), (2, 2, 3, 3), {"strides": [2, 4], "pads": [1, 1, 1, 1]}),
    "stride beyond the kernel": ((1, 2, 11, 8), (2, 2, 2, 1), {"strides": [4, 3]}),
    "padding beyond the kernel": ((1, 1, 4, 4), (1, 1, 2, 2), {"pads": [2, 3, 4, 1]}),
    "asymmetric pads": ((1, 2, 7, 7), (2, 2, 3, 3), {"pads": [0, 2, 1, 0], "strides": [2, 2]}),
    "dilation": ((2, 2, 9, 8), (3, 2, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 2, 1]}),
    "dilation and stride": ((1, 2, 12, 11), (2, 2, 3, 3), {"dilations": [2, 3], "strides": [3, 2]}),
    "groups": ((2, 6, 6, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "depthwise": ((2, 3, 6, 6), (3, 1, 3, 3), {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise with multiplier": ((1, 3, 5, 6), (6, 1, 3, 2), {"group": 3, "dilations": [1, 2]}),
    "same upper, odd padding": ((1, 2, 7, 8), (2, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower, odd padding": ((1, 2, 7, 8), (2, 2, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same upper, stride one": ((1, 2, 5, 6), (2, 2, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "same lower, stride one": ((1, 2, 5, 6), (2, 2, 2, 4), {"auto_pad": "SAME_LOWER"}),
    "same, stride beyond the kernel": ((1, 2, 8, 9), (2, 2, 1, 2), {"auto_pad": "SAME_UPPER", "strides": [3, 4]}),
    "valid": ((1, 2, 8, 7), (2, 2, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "kernel shape stated": ((1, 2, 6, 6), (2, 2, 3, 2), {"kernel_shape": [3, 2], "strides": [2, 2]}),
}


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", CONV)
def test_conv(case):
    rng = np.random.default_rng(0)
    image, weight, attributes = CONV[case]
    inputs = {"x": floats(rng, *image), "w": floats(rng, *weight), "b": floats(rng, weight[0])}
    check_node("Conv", inputs, dynamic=False, **attributes)
    check_node("Conv", inputs, dynamic=True, **{"kernel_shape": weight[2:], **attributes})
    check_node("Conv", inputs, wrt=["x"], dynamic=True, constants=["w", "b"], **attributes)


def test_conv_without_bias():
    rng = np.random.default_rng(0)
    check_node("Conv", {"x": floats(rng, 1, 2, 5, 5), "w": floats(rng, 3, 2, 3, 3)}, opset=22, dynamic=False)


TRANSPOSED = {
    "plain": ((2, 3, 4, 5), (3, 2, 3, 3), {}),
    "one dimension": ((2, 3, 5), (3, 2, 4), {"strides": [2], "pads": [1, 1]}),
    "three dimensions": ((1, 2, 3, 2, 3), (2, 2, 2, 3, 2), {"strides": [2, 1, 2]}),
    "output padding": ((1, 2, 4, 3), (2, 3, 3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 2]}),
    "output padding of a stride": (
        (1, 2, 4, 3),
        (2, 2, 3, 2),
        {"strides": [1, 2], "dilations": [3, 4], "output_padding": [2, 3]},
    ),
    "groups": ((2, 4, 3, 4), (4, 3, 2, 3), {"group": 2, "strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "depthwise": ((1, 3, 4, 4), (3, 1, 3, 3), {"group": 3, "strides": [2, 2], "dilations": [2, 1]}),
    "output shape": ((1, 2, 4, 3), (2, 2, 3, 4), {"strides": [3, 2], "output_shape": [10, 7]}),
    "output shape, upper": (
        (1, 2, 4, 3),
        (2, 2, 4, 4),
        {"strides": [2, 2], "output_shape": [9, 5], "auto_pad": "SAME_UPPER"},
    ),
    "output shape beyond the reach": ((1, 2, 3, 3), (2, 2, 2, 2), {"strides": [2, 2], "output_shape": [7, 9]}),
    "same upper": ((1, 2, 4, 5), (2, 2, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 4, 5), (2, 2, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    "valid": ((1, 2, 4, 5), (2, 2, 3, 2), {"strides": [2, 2], "auto_pad": "VALID"}),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose(case):
    """The evaluator's ConvTranspose is this project's own, so it is held against ONNX Runtime first."""
    rng = np.random.default_rng(0)
    image, weight, attributes = TRANSPOSED[case]
    channels = weight[1] * attributes.get("group", 1)
    inputs = {"x": floats(rng, *image), "w": floats(rng, *weight), "b": floats(rng, channels)}
    # ONNX Runtime refuses more output padding than a stride and an output shape beyond the reach.
    runs = case not in {"output padding of a stride", "output shape beyond the reach"}
    if runs:
        model = node_model("ConvTranspose", inputs, **attributes)
        np.testing.assert_allclose(
            quiet_session(model).run(None, inputs)[0], evaluate(evaluator(model), inputs)[0], atol=1e-5
        )
    check_node("ConvTranspose", inputs, dynamic=False, **attributes)
    check_node("ConvTranspose", inputs, dynamic=True, **{"kernel_shape": weight[2:], **attributes})
    check_node("ConvTranspose", inputs, wrt=["x"], dynamic=True, constants=["w", "b"], **attributes)


COLUMNS = {
    "plain": ((2, 12, 12), (4, 5), (2, 2), {}),
    "strides and pads": ((1, 8, 9), (5, 6), (2, 2), {"strides": [2, 3], "pads": [1, 1, 0, 1]}),
    "dilations": ((1, 12, 8), (5, 6), (3, 2), {"dilations": [1, 2], "pads": [0, 0, 0, 0], "strides": [2, 1]}),
    "three dimensions": ((1, 8, 12), (3, 4, 3), (2, 2, 2), {}),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_col2im(case):
    shape, image, block, attributes = COLUMNS[case]
    inputs = {"x": floats(np.random.default_rng(0), *shape), "image": np.array(image), "block": np.array(block)}
    check_node("Col2Im", inputs, constants=["image", "block"], **attributes)
