"""The straight-through estimator."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser
from support.helpers import quiet_session

from onnx_gradcam.autodiff.check import gradient_model

PAIR = """<ir_version: 8, opset_import: ["" : 18]> pair (float[{n},3] x) => (float[{n},3] y)
<float[{k}] scale = {scale}, {type}[{k}] zero = {zero}>
{{
  q = QuantizeLinear<axis = 1>(x, scale, zero)
  {middle}
  y = DequantizeLinear<axis = 1>({last}, scale, zero)
}}"""


def gradient(x, scale, zero, kind, *, n="2", middle="", last="q"):
    def braced(numbers):
        return "{" + ", ".join(map(str, numbers)) + "}"

    text = PAIR.format(n=n, k=len(scale), scale=braced(scale), zero=braced(zero), type=kind, middle=middle, last=last)
    model = gradient_model(parser.parse_model(text), ["x"]).to_proto()
    cotangent = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    (got,) = quiet_session(model).run(None, {"x": x, "cotangent": cotangent})
    return got, cotangent


@pytest.mark.parametrize("n", ["2", "N"])
def test_a_pair_passes_the_cotangent_where_nothing_is_cut_off(n):
    # uint8, zero point 10, step 0.5: the range is -5 to 122.5, and half a step beyond rounds into it.
    x = np.array([[-5.2, -5.4, 0.1], [122.6, 122.9, 3.0]], np.float32)
    got, cotangent = gradient(x, [0.5], [10], "uint8", n=n)
    np.testing.assert_array_equal(got, cotangent * [[1, 0, 1], [1, 0, 1]])


def test_scales_per_channel():
    x = np.array([[12.0, 12.0, 12.0], [-12.9, -12.9, -12.9]], np.float32)
    got, cotangent = gradient(x, [0.1, 0.05, 1.0], [0, 0, 0], "int8")
    np.testing.assert_allclose(got, cotangent * [[1, 0, 1], [0, 0, 1]], rtol=1e-6)


def test_the_gradient_crosses_operators_on_the_quantised_numbers():
    x = np.array([[1.0, 2.0, 200.0], [4.0, 5.0, 6.0]], np.float32)
    got, cotangent = gradient(x, [1.0], [0], "int8", middle="r = Identity(q)", last="r")
    np.testing.assert_array_equal(got, cotangent * [[1, 1, 0], [1, 1, 1]])


def test_dynamic_quantisation_is_the_identity_up_to_its_constant_scale():
    text = """<ir_version: 8, opset_import: ["" : 18]> dynamic (float[N,3] x) => (float[N,3] y) {
      q, scale, zero = DynamicQuantizeLinear(x)
      y = DequantizeLinear(q, scale, zero)
    }"""
    model = gradient_model(parser.parse_model(text), ["x"]).to_proto()
    x, cotangent = np.array([[-1.0, 0.3, 2.0]], np.float32), np.array([[1.0, -2.0, 3.0]], np.float32)
    (got,) = quiet_session(model).run(None, {"x": x, "cotangent": cotangent})
    np.testing.assert_allclose(got, cotangent, rtol=1e-6)
