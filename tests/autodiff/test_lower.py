"""Lowering of ONNX's Gradient operator, against the expected results that the onnx package ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import quiet_session
from onnx import numpy_helper, parser

from onnx_gradcam.autodiff.lower import lower_gradients
from onnx_gradcam.errors import UnsupportedError

SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data" / "simple"

TEXT = """<ir_version: 8, opset_import: ["" : 18, "ai.onnx.preview.training" : 1]>
g (float[N,3] x) => (float[N,3] y, float[N,3] {outputs}) {{
  y = Exp(x)
  {nodes}
}}"""


@pytest.mark.parametrize("name", ["test_gradient_of_add", "test_gradient_of_add_and_mul"])
def test_shipped_models(name):
    data = SHIPPED / name / "test_data_set_0"

    def tensors(kind):
        paths = sorted(data.glob(f"{kind}_*.pb"))
        return [numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())) for p in paths]

    session = quiet_session(lower_gradients(SHIPPED / name / "model.onnx").to_proto())
    feeds = dict(zip([i.name for i in session.get_inputs()], tensors("input"), strict=True))
    for actual, expected in zip(session.run(None, feeds), tensors("output"), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_gradient_of_a_gradient():
    nodes = """z = Mul(y, x)
      d = ai.onnx.preview.training.Gradient<xs = ["x"], y = "z">(x)
      dd = ai.onnx.preview.training.Gradient<xs = ["x"], y = "d">(x)"""
    model = parser.parse_model(TEXT.format(outputs="dd", nodes=nodes))
    x = np.array([[0.5, -1.0, 2.0]], np.float32)
    _, dd = quiet_session(lower_gradients(model).to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(dd, (x + 2) * np.exp(x), rtol=1e-5)


def test_another_point_is_refused():
    model = parser.parse_model(
        TEXT.format(outputs="d", nodes='d = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(y)')
    )
    with pytest.raises(UnsupportedError, match=r"at \['y'\]"):
        lower_gradients(model)
