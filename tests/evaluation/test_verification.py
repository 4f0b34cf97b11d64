"""The check of a whole explanation against finite differences of the model's head."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_gradcam.autodiff.registry import RULES, Rule, rules
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.evaluation.verification import _random_image, check_explanation
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.options import Options

RNG = np.random.default_rng(4)

HEADS = {
    "pooled": "p = GlobalAveragePool(a)\n f = Flatten(p)\n y = Gemm(f, fc)",
    "flattened": "p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)\n"
    " f = Flatten(p)\n h = MatMul(f, fc)\n y = Tanh(h)",
    "single": "p = GlobalAveragePool(a)\n f = Flatten(p)\n h = Gemm(f, fc)\n y = Sigmoid(h)",
    "channels last": "l = Transpose<perm = [0,2,3,1]>(a)\n"
    " p = ReduceMean(l, axes)\n h = MatMul(p, fc)\n y = Softmax(h)",
}


def model(head, classes=3):
    width = 4 * 3 * 3 if "MaxPool" in HEADS[head] else 4
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,3,6,6] x) => (float[N,{classes}] y) <int64[2] axes = {{1, 2}}> {{
      c = Conv<pads = [1,1,1,1]>(x, w)
      a = Relu(c)
      {HEADS[head]}
    }}"""
    proto = parser.parse_model(text)
    weights = {"w": RNG.standard_normal((4, 3, 3, 3)), "fc": RNG.standard_normal((width, classes)) / 20}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return proto


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", [0, 1])
def test_right_gradients_agree(head, target):
    proto = model(head, 1 if head == "single" else 3)
    check = check_explanation(proto, options=Options(class_input="none", target=target))
    assert check.relative < 1e-4, str(check)
    assert abs(check.analytic) > 1e-4


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("given", [False, True])
def test_a_fixed_batch_is_judged_by_its_first_row(head, given):
    proto = model(head, 1 if head == "single" else 3)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    image = RNG.standard_normal((1, 3, 6, 6)).astype(np.float32) if given else None
    check = check_explanation(proto, image, Options(class_input="none", target=1))
    assert check.relative < 1e-4, str(check)
    assert abs(check.analytic) > 1e-4
    assert len(check.gradient) == 4


@pytest.mark.parametrize("head", HEADS)
def test_heads_in_half_precision(head):
    proto = model(head, 1 if head == "single" else 3)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
    check = check_explanation(proto, options=Options(class_input="none", target=1))
    assert check.relative < 1e-2, str(check)
    assert abs(check.analytic) > 1e-4


@pytest.mark.parametrize("name", ["float", "float16", "double", "bfloat16"])
def test_random_images_of_every_float_type(name):
    text = f'<ir_version: 8, opset_import: ["" : 18]> g ({name}[2,3,6,6] x) => ({name}[2,3,6,6] y) {{ y = Neg(x) }}'
    t = Builder(load(parser.parse_model(text)))
    image = _random_image(t.find("x"), np.random.default_rng(0))
    assert image.dtype == t.find("x").dtype
    assert 0.8 < image.astype(np.float32).std() < 1.2


def test_a_wrong_rule_is_found(monkeypatch):
    rules()
    right = RULES["", "Tanh"].function
    monkeypatch.setitem(RULES, ("", "Tanh"), Rule(lambda *given: [right(*given)[0] * 1.1]))
    assert check_explanation(model("flattened")).relative > 1e-2


def test_surrogates_are_refused():
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,6,6] x) => (float[N,4] y)
    <float s = {0.1}, uint8 z = {0}> {
      c = Conv(x, w)
      q = QuantizeLinear(c, s, z)
      d = DequantizeLinear(q, s, z)
      p = GlobalAveragePool(d)
      q2 = QuantizeLinear(p, s, z)
      d2 = DequantizeLinear(q2, s, z)
      t = Tanh(d2)
      y = Flatten(t)
    }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    with pytest.raises(UnsupportedError, match="surrogate"):
        check_explanation(proto)


@pytest.mark.real
def test_every_real_classifier(real_data):
    entries = json.loads((real_data / "MANIFEST.json").read_text())["models"]
    checked = {}
    for entry in entries:
        quantised = "QuantizeLinear" in entry.get("op_types", {})
        if entry["kind"] == "classifier" and entry["format"] == "onnx" and not quantised:
            checked[entry["name"]] = check_explanation(real_data / entry["file"])
    assert len(checked) >= 14
    wrong = {name: str(check) for name, check in checked.items() if check.relative > 1e-4}
    assert not wrong
