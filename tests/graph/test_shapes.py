"""Inference with several probes finds dimensions behind shape arithmetic: numbers, or the symbols of the inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from onnx_gradcam.errors import ModelError
from onnx_gradcam.graph import shapes as inference
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.decompose import decompose
from onnx_gradcam.graph.hazards import guard_padded_pools
from onnx_gradcam.graph.inline import inline_known_branches
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.model import Model
from onnx_gradcam.graph.read import normalise
from onnx_gradcam.graph.shapes import TensorInfo, Unnamed, infer_shapes, named


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


# ----- free sizes ------------------------------------------------------------


def sized(nodes: str, outputs: str = "float[A,B,C,D] y") -> dict:
    weights = "float[4,3,3,3] w, float[4,4,3,3] v, float[4,3,64,64] u"
    return shapes(f"g (float[N,3,H,W] x, {weights}) => ({outputs}) {{ {nodes} }}")


def test_rounding_up_is_not_rounding_down():
    found = sized(
        "a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w) y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)"
        " b = Conv<pads = [1,1,1,1], strides = [2,2]>(a, v) c = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)"
        " d = MaxPool<kernel_shape = [2,2], strides = [2,2]>(y) e = Conv<pads = [1,1,1,1], strides = [2,2]>(y, w)"
    )
    assert len({found[name][2] for name in "aybcde"}) == 6
    assert found["a"][2] != found["a"][3]


def test_two_convolutions_of_one_geometry_give_equal_sizes():
    found = sized("a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w) y = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w)")
    assert found["a"] == found["y"]
    assert all(isinstance(size, Unnamed) for size in found["y"][2:])


@pytest.mark.parametrize("stride", [32, 64, 128])
def test_no_map_is_as_small_as_a_batch(stride):
    found = sized(f"y = Conv<strides = [{stride},{stride}]>(x, u)")["y"]
    assert found[:2] == ("N", 4)
    assert len({*found}) == 4
    assert not {"N", "H", "W"} & {*found[2:]}


def test_a_crop_that_small_images_do_not_fill_has_no_fixed_size():
    crop = "<int64[2] zero = {0, 0}, int64[2] end = {224, 224}, int64[2] axes = {2, 3}>"
    text = f"g (float[N,3,H,W] x) => (float[A,B,C,D] y) {crop} {{ y = Slice(x, zero, end, axes) }}"
    assert not any(isinstance(size, int) for size in shapes(text)["y"][2:])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_sizes_that_a_model_needs_to_be_multiples_are(depth):
    """Upsampled maps are added to those from before the stride, which odd sizes do not fit."""
    down = "".join(f"m{i + 1} = MaxPool<kernel_shape = [2,2], strides = [2,2]>(m{i})\n" for i in range(depth))
    twice = "<float[4] twice = {1, 1, 2, 2}>"
    up = "".join(
        f"s{i} = Add(u{i}, m{i})\n" if half else f'u{i} = Resize<mode = "nearest">(s{i + 1}, , twice)\n'
        for i in reversed(range(depth))
        for half in (False, True)
    )
    nodes = f"m0 = Identity(x) {down} s{depth} = Identity(m{depth}) {up} y = Identity(s0)"
    found = shapes(f"g (float[N,3,H,W] x) => (float[A,B,C,D] y) {twice} {{ {nodes} }}")
    assert found["y"] == ("N", 3, "H", "W")
    assert all(found[f"u{i}"] == found[f"m{i}"] for i in range(depth))
    assert len({found[f"m{i}"][2] for i in range(depth + 1)}) == depth + 1


def test_a_contradiction_behind_computed_shapes_is_seen():
    """A window of 7 positions at stride 32, counted by arithmetic with Shape."""
    text = """g (float[N,3,H,W] x, float[4,3,32,32] w) => (float[A,B,C,D,E,F] y)
    <int64[1] two = {2}, int64[1] three = {3}, int64[1] four = {4}, int64[1] seven = {7}, int64[1] zero = {0}> {
        c = Conv<strides = [32,32]>(x, w)
        n = Shape<start = 0, end = 1>(c)
        h = Shape<start = 2, end = 3>(c)
        v = Shape<start = 3, end = 4>(c)
        p = Div(h, seven)
        q = Div(v, seven)
        s = Concat<axis = 0>(n, four, p, seven, q, seven)
        y = Reshape(c, s)
    }"""
    found = shapes(text)["y"]
    assert (*found[:2], found[3], found[5]) == ("N", 4, 7, 7)


def test_a_model_that_fits_no_size_tried_keeps_what_holds_for_all():
    text = "g (float[N,3,H,W] x, float[147,5] w) => (float y) { f = Flatten(x) y = MatMul(f, w) }"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{text}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    found = {name: info.shape for name, info in infer_shapes(model).items()}
    assert found["f"][0] == "N"
    assert found["y"] == ("N", 5)


def test_symbols_of_our_own_look_alike_and_are_never_written():
    model = load(
        parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]>\n'
            "g (float[?,3,H,W] x) => (float[A,B,C,D] y) { a = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)"
            " y = Relu(a) }"
        )
    )
    t = Builder(model)
    shape = t.find("a").shape
    assert f"{list(shape)}" == "[?, 3, ?, ?]"
    assert [str(size) for size in shape] == ["?", "3", "?", "?"]
    assert named(shape) == (None, 3, None, None)
    assert len({*shape}) == 4
    t.expose(t.op("Neg", t.find("a")))
    appended = t.appended[-1].outputs[0]
    assert TensorInfo.of(appended).shape == shape
    proto = model.to_proto()
    assert b"onnx_gradcam/size" not in proto.SerializeToString()
    dims = proto.graph.output[-1].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == [0, 3, 0, 0]


def test_a_range_over_the_rows_is_not_written_out_for_a_million_of_them():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]>
        g (float[N,768] x) => (float[N,768] y) <int64 zero={0}, int64 one={1}, int64[1] zeros={0}> {
            s = Shape<start=0, end=1>(x)
            n = Squeeze(s)
            rows = Range(zero, n, one)
            column = Unsqueeze(rows, zeros)
            twice = Add(rows, rows)
            half = Sub(twice, rows)
            y = Gather(x, half)
        }"""
    )
    found = infer_shapes(model)
    assert found["y"].shape == ("N", 768)
    assert found["rows"].probe_shape[0] < 1000


@pytest.mark.parametrize("where", ["initializer", "node"])
def test_a_range_that_would_fill_the_memory_is_refused(where):
    limit = "" if where == "initializer" else "far = Constant<value=int64 {2000000000}>()"
    stated = ", int64 far={2000000000}" if where == "initializer" else ""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[1,3] x) => (float[1,3] y) <int64 zero={{0}}, int64 one={{1}}{stated}> {{
            {limit}
            many = Range(zero, far, one)
            size = Size(many)
            number = Cast<to=1>(size)
            y = Add(x, number)
        }}"""
    )
    with pytest.raises(ModelError, match=r"Range .* more than 10,000,000 numbers"):
        load(model)


@pytest.mark.parametrize("step", [1, *inference._STEPS, *inference._LARGEST_STEPS])
def test_two_sides_have_other_sizes_in_every_run_and_take_turns_at_being_the_shorter(step):
    sides = [[inference._multiple(number, step) for number in column] for column in inference._SIZE_PROBES[:2]]
    assert all(len(set(side)) == 3 for side in sides)
    if step < 64:
        assert {high < wide for high, wide in zip(*sides, strict=True)} == {True, False}
