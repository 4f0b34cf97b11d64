"""Inference with two probes finds dimensions behind shape arithmetic: numbers, or the symbols of the inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from onnx_gradcam.errors import ModelError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.decompose import decompose
from onnx_gradcam.graph.hazards import guard_padded_pools
from onnx_gradcam.graph.inline import inline_known_branches
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import normalise
from onnx_gradcam.graph.shapes import TensorInfo, infer_shapes


def inferred(text, opset=18):
    return infer_shapes(parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}'))


def shapes(text, opset=18):
    return {name: info.shape for name, info in inferred(text, opset).items()}


FLATTEN = """g (float[N,3,4,4] x) => (float[A,B] y)
<int64[1] zero = {0}, int64[1] minus = {-1}, int64[1] axes = {0}, int64 first = {0}> {
    shape = Shape(x)
    n = Gather(shape, first)
    n1 = Unsqueeze(n, axes)
    target = Concat<axis = 0>(n1, minus)
    y = Reshape(x, target)
}"""


def test_a_reshape_by_arithmetic_keeps_the_batch_symbol_and_finds_the_rest():
    assert shapes(FLATTEN)["y"] == ("N", 48)


def test_a_batch_without_a_name_has_a_symbol_of_its_own():
    tensors = shapes(FLATTEN.replace("float[N,3,4,4]", "float[?,3,4,4]"))
    assert tensors["y"][1] == 48
    assert isinstance(tensors["y"][0], str)
    assert tensors["y"][0] == tensors["x"][0]


@pytest.mark.parametrize("size", [0, -1])
def test_zero_and_minus_one_in_an_input_mean_any(size):
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{FLATTEN}')
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = size
    batch, width = infer_shapes(model)["y"].shape
    assert width == 48
    assert isinstance(batch, str)


def test_static_models_are_inferred_in_one_run():
    tensors = shapes(
        "g (float[2,3] x) => (float[2,4] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul(x, w) }"
    )
    assert tensors == {"x": (2, 3), "y": (2, 4), "w": (3, 4)}


def test_strides_and_sizes_in_a_fully_convolutional_model():
    text = "g (float[N,1,H,W] x, float[4,1,3,3] w) => (float[A,B,C,D] y) {{ y = Conv<{}>(x, w) }}"
    same = shapes(text.format("pads = [1,1,1,1]"))["y"]
    assert same == ("N", 4, "H", "W")
    strided = shapes(text.format("pads = [1,1,1,1], strides = [2,2]"))["y"]
    assert strided[:2] == ("N", 4)
    assert isinstance(strided[2], str)
    assert strided[2] != "H"
    assert strided[2] != strided[3]


def test_equal_symbols_of_several_inputs_are_bound_together():
    tensors = shapes("g (float[N,3] a, float[N,3] b) => (float[A,B] y) { y = Concat<axis = 1>(a, b) }")
    assert tensors["y"] == ("N", 6)
    apart = shapes("g (float[N,3] a, float[M,3] b) => (float[A,B] y) { y = Concat<axis = 0>(a, b) }")
    assert apart["y"][1] == 3
    assert apart["y"][0] not in {"N", "M"}


def test_a_dimension_that_depends_on_data_is_not_a_number():
    tensors = shapes("g (float[N] x) => (int64[A,B] y) { y = NonZero(x) }")
    assert tensors["y"][0] == 1
    assert not isinstance(tensors["y"][1], int)


def test_an_unknown_rank_is_no_shape():
    tensors = shapes("g (float[N] x, int64[K] s) => (float y) { r = Reshape(x, s)\n y = ReduceSum<keepdims = 0>(r) }")
    assert tensors["r"] is None
    assert tensors["y"] == ()


def test_wrong_shapes_that_a_model_states_do_not_win_over_what_follows_from_its_inputs():
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{FLATTEN}')
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("target", onnx.TensorProto.INT64, [2]))
    assert infer_shapes(model)["y"].shape == ("N", 48)


def test_probe_shapes_hold_numbers_only():
    tensors = inferred(FLATTEN)
    n = tensors["x"].probe_shape[0]
    assert tensors["x"].probe_shape == (n, 3, 4, 4)
    assert tensors["y"].probe_shape == (n, 48)


def test_more_free_dimensions_than_probes_still_infer():
    inputs = ", ".join(f"float[N{i},3] x{i}" for i in range(9))
    tensors = shapes(f"g ({inputs}) => (float[A,B] y) {{ y = Identity(x0) }}")
    assert tensors["y"][1] == 3


def test_types_of_weights_and_of_what_follows_are_known():
    weight = np.ones((3, 200), np.float32)
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]>\n'
        "g (float[N,3] x) => (bool[N,200] y) { a = MatMul(x, w)\n h = Cast<to = 10>(a)\n y = IsNaN(h) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    prepared = load(model)
    kinds = onnx.TensorProto
    expected = {"x": kinds.FLOAT, "w": kinds.FLOAT, "a": kinds.FLOAT, "h": kinds.FLOAT16, "y": kinds.BOOL}
    assert {name: prepared.info(name).elem_type for name in expected} == expected
    assert prepared.shape("a") == ("N", 200)
    assert [prepared.info(name).dtype for name in ("w", "h", "y")] == [np.float32, np.float16, np.bool_]


def test_what_is_known_is_kept_on_the_tensor_under_every_name_and_never_written():
    model = load(parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{FLATTEN}'))
    before = model.to_proto().SerializeToString()
    assert not model.infer()
    assert model.to_proto().SerializeToString() == before
    t = Builder(model)
    batch = t.find("n")
    info = TensorInfo.of(batch.core)
    assert (info.elem_type, info.shape, info.probe_shape) == (onnx.TensorProto.INT64, (), ())
    t.rename(batch, "batch")
    assert model.info("batch") is info
    with pytest.raises(ModelError, match=r"has no tensor 'n'"):
        model.info("n")
    t.take_over(batch.core, t.const(2, np.int64))
    assert model.info("batch") == info


def test_a_rank_that_is_needed_and_unknown_is_said():
    text = "g (float[N] x, int64[K] s) => (float y) { r = Reshape(x, s)\n y = ReduceSum<keepdims = 0>(r) }"
    model = load(parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{text}'))
    assert model.shape("y") == ()
    with pytest.raises(ModelError, match=r"the rank of tensor 'r' is unknown; export the model with fixed sizes"):
        model.shape("r")


def test_inference_says_whether_it_found_anything_new():
    model = load(parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{FLATTEN}'))
    model.core.graph.inputs[0].shape = ir.Shape(["N", 3, 2, 2])
    assert model.infer()
    assert model.shape("y") == ("N", 12)
    assert not model.infer()


def test_passes_say_whether_they_changed_the_model():
    text = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]> g (float[N,1,4,4] x) => (float[N,1,4,4] y)
    <bool yes = {1}> {
        a = com.microsoft.Gelu(x)
        b = Pad<mode = "constant">(a, pads)
        m = MaxPool<kernel_shape = [3,3]>(b)
        y = If (yes) <then_branch = t () => (float[N,1,4,4] u) { u = Exp(m) },
                      else_branch = e () => (float[N,1,4,4] v) { v = Neg(m) }>
    }"""
    proto = parser.parse_model(text)
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(pads, "pads"))
    small, _ = normalise(proto)
    model = Model(ir.from_proto(small), None, "m")
    assert model.infer()
    passes = (
        lambda: inline_known_branches(model),
        lambda: decompose(model),
        lambda: guard_padded_pools(Builder(model)),
    )
    assert [run() for run in passes] == [True] * 3
    assert [run() for run in passes] == [False] * 3
    t = Builder(model)
    t.op("Exp", t.find("m"))
    assert t.finish()
    assert not Builder(model).finish()
    assert [n.op_type for n in model.core.graph if n.op_type in {"If", "Gelu"}] == []
