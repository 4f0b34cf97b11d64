"""Untrusted files are refused or normalised, and models are saved atomically."""

from __future__ import annotations

import os
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from support.helpers import needs_opset, quiet_session

from onnx_gradcam import attach
from onnx_gradcam.errors import InputError, ModelError, UnsupportedError
from onnx_gradcam.graph.builder import Builder
from onnx_gradcam.graph.load import load
from onnx_gradcam.runtime.session import Session

W = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)


def dense(opset=18, ir_version=8, *, weight_is_input=False):
    """A model with one weight above a kilobyte and one below."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    if weight_is_input:
        inputs.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 400]))
        inputs.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1]))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    weights = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(np.array([0.5], np.float32), "b")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 400])]
    graph = helper.make_graph(nodes, "dense", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def unnamed_sizes(size):
    """A fully convolutional classifier of opset 10 whose free dimensions are written as `size`, inner ones as -1."""
    inner = size if isinstance(size, str) else -1
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 3, size, size])
    maps = helper.make_tensor_value_info("a", TensorProto.FLOAT, [inner, 4, inner, inner])
    scores = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 4])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    kernel = np.random.default_rng(2).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(nodes, "g", [image], [scores], [numpy_helper.from_array(kernel, "w")])
    graph.value_info.append(maps)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5)


@pytest.fixture
def external(tmp_path):
    """A folder with `weights.bin`; the function writes a model whose weight is at a location in it or elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"\0" * 16 + W.tobytes())

    def write(location="weights.bin", offset=16, length=W.nbytes):
        proto = dense()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": location, "offset": offset, "length": length}
        for key, value in entries.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write


def refused(source):
    with pytest.raises(ModelError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# ----- files that are no models ----------------------------------------------


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "none.onnx").endswith("none.onnx'; check the path")


def test_a_folder(tmp_path):
    assert refused(tmp_path).endswith("is a folder; give the path of a file in it")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"this is a text file\n", b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + bytes(64), os.urandom(200)],
    ids=["empty", "zero", "text", "html", "image", "noise"],
)
def test_a_file_that_is_not_a_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "not an ONNX model" in refused(path)
    assert "not an ONNX model" in refused(content)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"\x20\0\0\0ORTM" + bytes(24), "an ONNX Runtime (.ort) model; use the .onnx model that it was converted from"),
        (b"\x1c\0\0\0TFL3" + bytes(24), "a TFLite model; convert it with 'onnx-gradcam export tflite'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(24), "an HDF5 file; convert a Keras model with 'onnx-gradcam export keras'"),
        (b"PK\x03\x04" + bytes(24), "a ZIP archive; convert a Keras or PyTorch model with"),
        (b"\x80\x02}q\x00." + bytes(24), "a pickle; convert a PyTorch model with 'onnx-gradcam export pytorch'"),
        (b'\xf8\x03\0\0\0\0\0\0{"fc.weight":{}}', "a safetensors file, weights alone; give it to 'onnx-gradcam export"),
        (b"\x12\x01" + bytes(30), "weights of MXNet; convert them and their symbol with 'onnx-gradcam export mxnet'"),
        (b'{\n  "nodes": []\n}', "a JSON file; convert a symbol of MXNet and its .params with"),
    ],
    ids=["ort", "tflite", "hdf5", "zip", "pickle", "safetensors", "params", "symbol"],
)
def test_a_model_of_another_format_is_named(tmp_path, content, advice):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert f"model.onnx is not an ONNX model but {advice}" in refused(path)


def test_an_operator_that_onnx_does_not_have_is_named(capfd):
    proto = unnamed_sizes("N")
    scale = helper.make_node("ImageScaler", ["x"], ["s"], name="scaler", bias=[0.0] * 3, scale=1.0)
    proto.graph.node.insert(0, scale)
    proto.graph.node[1].input[0] = "s"
    assert "opset 10 has no operator ImageScaler (node 'scaler'); export it again" in refused(proto)
    assert capfd.readouterr() == ("", ""), "ONNX's checker would write to standard output, which may be JSON"


def test_scores_in_a_map_are_named():
    proto = dense()
    zipped = helper.make_node("ZipMap", ["y"], ["loss"], domain="ai.onnx.ml", classlabels_strings=["a", "b"])
    proto.graph.node.append(zipped)
    proto.opset_import.add(domain="ai.onnx.ml", version=2)
    scores = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.output.append(helper.make_value_info("loss", helper.make_sequence_type_proto(scores)))
    for read in (load, attach):
        with pytest.raises(UnsupportedError, match="the output 'loss' maps class names to scores, as ZipMap makes it"):
            read(proto)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model(tmp_path, part):
    whole = dense().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(path)


@pytest.mark.parametrize("data", [W.tobytes()[:-400], W.tobytes()[:-1], W.tobytes() + b"more"])
def test_a_weight_with_too_few_or_too_many_bytes(data):
    proto = dense()
    proto.graph.initializer[0].raw_data = data
    assert f"weight 'w' has {len(data)} bytes, but its shape and type need {W.nbytes}" in refused(proto)


def test_a_weight_of_an_unknown_type(external):
    proto = dense()
    proto.graph.initializer[0].data_type = 99
    assert "weight 'w' is of the unknown type 99" in refused(proto)
    path = external()
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = 99
    path.write_bytes(proto.SerializeToString())
    assert "weight 'w' is of the unknown type 99" in refused(path)


def test_a_graph_without_nodes():
    proto = dense()
    del proto.graph.node[:]
    assert "the graph has no nodes" in refused(proto)


def test_an_invalid_graph_gives_the_checkers_reason():
    proto = dense()
    proto.graph.node[1].input[0] = "nowhere"
    message = refused(proto)
    assert "nowhere" in message
    assert "export it again" in message


def test_an_operator_set_from_the_future():
    assert "of opset 9999, but the installed onnx package ends at" in refused(dense(opset=9999))


def test_a_model_without_an_operator_set():
    proto = dense()
    del proto.opset_import[:]
    assert "imports no ONNX operator set" in refused(proto)


# ----- external weights ------------------------------------------------------


def test_external_weights_are_not_read_until_needed(external):
    path = external()
    model = load(path)
    (path.parent / "weights.bin").write_bytes(b"\0" * 16 + (2 * W).tobytes())
    np.testing.assert_array_equal(model.core.graph.initializers["w"].const_value.numpy(), 2 * W)
    assert model.shape("w") == (3, 400)
    assert model.shape("y") == ("N", 400)


def test_external_weights_without_offset_and_length(external):
    path = external(offset=None, length=None)
    (path.parent / "weights.bin").write_bytes(W.tobytes())
    np.testing.assert_array_equal(load(path).core.graph.initializers["w"].const_value.numpy(), W)


def test_external_weights_in_a_subfolder(external):
    path = external("sub/weights.bin")
    (path.parent / "sub").mkdir()
    (path.parent / "weights.bin").rename(path.parent / "sub" / "weights.bin")
    np.testing.assert_array_equal(load(path).core.graph.initializers["w"].const_value.numpy(), W)


def test_a_model_of_bytes_cannot_have_external_weights(external):
    assert "weight 'w' is in another file; load the model from its path" in refused(external().read_bytes())
    assert "load the model from its path" in refused(onnx.load(external(), load_external_data=False))


def test_missing_external_weights(external):
    path = external()
    (path.parent / "weights.bin").unlink()
    assert "the weights file 'weights.bin' is missing" in refused(path)


@pytest.mark.parametrize(("offset", "length"), [(16, W.nbytes), (16, None), (17, W.nbytes), (10**9, None), (16, 8)])
def test_truncated_external_weights(external, offset, length):
    path = external(offset=offset, length=length)
    if (offset, length) in {(16, W.nbytes), (16, None)}:
        weights = path.parent / "weights.bin"
        weights.write_bytes(weights.read_bytes()[:-1])
    assert "the weights file 'weights.bin' is truncated" in refused(path)


@pytest.mark.parametrize(("offset", "length"), [(-1, None), ("x", None), (0, -5)])
def test_invalid_positions_in_the_weights_file(external, offset, length):
    assert "has no valid position in a file" in refused(external(offset=offset, length=length))


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "./../model/../secret.bin"])
def test_a_path_that_leaves_the_folder(external, location):
    path = external(location, 0)
    (path.parent / "sub").mkdir()
    (path.parent.parent / "secret.bin").write_bytes(W.tobytes())
    assert "is outside of the model's folder" in refused(path)


def test_an_absolute_path_even_into_the_folder(external, tmp_path):
    inside = tmp_path / "model" / "weights.bin"
    assert "is outside of the model's folder" in refused(external(str(inside)))


def test_a_symbolic_link_that_leaves_the_folder(external, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    path = external("link.bin", 0)
    (path.parent / "link.bin").symlink_to(secret)
    assert "is outside of the model's folder" in refused(path)


def test_a_folder_behind_a_symbolic_link(external, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(W.tobytes())
    path = external("door/w.bin", 0)
    (path.parent / "door").symlink_to(tmp_path / "elsewhere")
    assert "is outside of the model's folder" in refused(path)


def test_a_link_that_leads_to_itself(external):
    path = external("loop.bin", 0)
    (path.parent / "loop.bin").symlink_to("loop.bin")
    refused(path)


def test_a_hard_link(external, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    path = external("hard.bin", 0)
    os.link(secret, path.parent / "hard.bin")
    assert "is a hard link; copy it instead" in refused(path)


@pytest.mark.parametrize("location", ["", ".", "sub"])
def test_a_folder_as_weights(external, location):
    path = external(location, 0)
    (path.parent / "sub").mkdir()
    assert "which should hold weight 'w', is not a file" in refused(path)


def hidden(place: str) -> onnx.ModelProto:
    """A model with a tensor in another file where onnx's own search does, or does not, look for one."""
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[400], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    proto, node = dense(), helper.make_node("Constant", [], ["k"], value=tensor)
    inner = helper.make_graph([], "inner", [], [], initializer=[tensor])
    if place == "attribute":
        proto.graph.node.insert(0, node)
    elif place == "branch":
        proto.graph.node.add(op_type="If", output=["z"]).attribute.add(name="then_branch", type="GRAPH", g=inner)
    elif place == "branch of another type":
        proto.graph.node.add(op_type="If", output=["z"]).attribute.add(name="then_branch", type="INT", g=inner)
    elif place == "sparse":
        proto.graph.sparse_initializer.add(dims=[400]).values.CopyFrom(tensor)
    elif place == "function":
        proto.functions.add(name="f", domain="d").node.add(op_type="If").attribute.add(name="b", type="GRAPH", g=inner)
    elif place == "training":
        proto.training_info.add().algorithm.CopyFrom(inner)
    return proto


@pytest.mark.parametrize("place", ["attribute", "branch", "branch of another type", "sparse", "function", "training"])
def test_external_data_is_found_wherever_a_tensor_can_be(place, tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(1600))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(hidden(place).SerializeToString())
    assert "weight 'k' is outside of the model's folder" in refused(path)
    with pytest.raises(ModelError, match="weight 'k' is outside of the model's folder"):
        Session(path)


def test_a_weight_with_two_positions(external):
    path = external()
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="location", value="other.bin")
    path.write_bytes(proto.SerializeToString())
    assert "has two positions in files" in refused(path)


# ----- one form --------------------------------------------------------------

VERSIONED = """<ir_version: {ir}, opset_import: ["": {opset}]>
g (float[N,3,8,8] x) => (float[N,10] y) {{
    a = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, k)
    b = Relu(a)
    c = MaxPool<kernel_shape = [2,2], strides = [2,2]>(b)
    d = GlobalAveragePool(c)
    e = Flatten(d)
    f = Gemm(e, w, v)
    y = Softmax<axis = 1>(f)
}}"""


@pytest.mark.parametrize(
    "opset", [*range(7, 24), *(pytest.param(opset, marks=needs_opset(opset)) for opset in range(24, 27))]
)
def test_every_opset_is_raised_to_18_and_no_further_with_equal_values(opset):
    rng = np.random.default_rng(0)
    proto = parser.parse_model(VERSIONED.format(ir=3 if opset < 9 else 8, opset=opset))
    weights = {
        "k": rng.standard_normal((16, 3, 3, 3)),
        "w": rng.standard_normal((16, 10)),
        "v": rng.standard_normal(10),
    }
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        if opset < 9:
            proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    (expected,) = quiet_session(proto).run(None, {"x": x})
    model = load(proto)
    assert model.opset == max(opset, 18)
    assert [i.name for i in model.core.graph.inputs] == ["x"]
    assert model.shape("c") == ("N", 16, 4, 4)
    model.check()
    (got,) = quiet_session(model.to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_nodes_that_need_no_conversion_stay_as_they_were():
    proto = dense()
    assert [n.SerializeToString(deterministic=True) for n in load(proto).to_proto().graph.node] == [
        n.SerializeToString(deterministic=True) for n in proto.graph.node
    ]


@pytest.mark.parametrize("opset", [8, 18])
def test_initializers_are_taken_off_the_inputs_and_keep_their_values(opset):
    proto = dense(opset, 3 if opset == 8 else 8, weight_is_input=True)
    model = load(proto)
    assert [i.name for i in model.core.graph.inputs] == ["x"]
    np.testing.assert_array_equal(model.core.graph.initializers["w"].const_value.numpy(), W)
    (got,) = quiet_session(model.to_proto()).run(None, {"x": X})
    np.testing.assert_allclose(got, X @ W + 0.5, rtol=1e-5, atol=1e-6)


def test_the_source_is_left_as_it_was():
    proto = dense(9, 4, weight_is_input=True)
    before = proto.SerializeToString(deterministic=True)
    model = load(proto)
    Builder(model).const(1.0)
    assert proto.SerializeToString(deterministic=True) == before


FUNCTIONS = """<ir_version: 10, opset_import: ["": {opset}, "local": 1]>
g (float[N,4] x) => (float[N,4] y) {{ a = local.Twice(x)\n y = local.Twice(a) }}
<domain: "local", opset_import: ["": {opset}, "local": 1]> Twice (x) => (y) {{ h = local.Half(x)\n y = Add(x, h) }}
<domain: "local", opset_import: ["": {opset}]> Half (x) => (y) {{ c = Constant<value_float = 0.5>()\n y = Mul(x, c) }}
"""


@pytest.mark.parametrize("opset", [14, 18, 21])
def test_local_functions_are_inlined_however_deep(opset):
    model = load(parser.parse_model(FUNCTIONS.format(opset=opset)))
    assert not model.core.functions
    assert {n.op_type for n in model.core.graph} == {"Add", "Mul", "Constant"}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (got,) = quiet_session(model.to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(got, 2.25 * x)


def test_the_long_name_of_the_default_domain_is_understood():
    proto = parser.parse_model('<ir_version: 10, opset_import: ["ai.onnx": 18]> g (float[2] x) => (float[2] y) {'
                               "c = Constant<value_ints = [1]>()\n b = Cast<to = 9>(c)\n s = Squeeze(b)\n"
                               "y = If(s) <then_branch = t () => (float[2] p) { p = Exp(x) },"
                               " else_branch = e () => (float[2] q) { q = Neg(x) }> }")  # fmt: skip
    for node in (*proto.graph.node, *proto.graph.node[-1].attribute[0].g.node):
        node.domain = "ai.onnx"
    model = load(proto)
    assert model.opset == 18
    assert {n.domain for n in model.core.graph.all_nodes()} == {""}


def test_metadata_survives():
    proto = dense(9, 4)
    helper.set_model_props(proto, {"author": "somebody"})
    model = load(proto)
    assert model.metadata["author"] == "somebody"
    model.metadata["onnx_gradcam.version"] = "1"
    assert {p.key for p in model.to_proto().metadata_props} == {"author", "onnx_gradcam.version"}


def test_check_names_what_is_wrong():
    model = load(dense())
    model.core.graph[1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"the graph is not valid ONNX: .*NoSuchOperator"):
        model.check()


# ----- saving ----------------------------------------------------------------


def extended(source):
    model = load(source)
    t = Builder(model)
    t.output(t.find("y") * 2.0, "twice")
    t.finish()
    return model


def run(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": X})


def test_saved_beside_the_original_the_weights_stay_where_they_are(external):
    path = external()
    target = path.with_name("explained.onnx")
    extended(path).save(target)
    assert sorted(p.name for p in path.parent.iterdir()) == ["explained.onnx", "model.onnx", "weights.bin"]
    assert target.stat().st_size < 2000
    y, twice = run(target)
    np.testing.assert_allclose(y, X @ W + 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twice, 2 * y)


def test_saved_over_the_original(external):
    path = external()
    extended(path).save(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "weights.bin"]
    np.testing.assert_allclose(run(path)[1], 2 * (X @ W + 0.5), rtol=1e-5, atol=1e-6)


def test_saved_into_another_folder_the_weights_come_along(external, tmp_path):
    path = external()
    other = tmp_path / "other"
    other.mkdir()
    model = extended(path)
    model.save(other / "explained.onnx")
    assert sorted(p.name for p in other.iterdir()) == ["explained.onnx", "explained.onnx.data"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "weights.bin"]
    expected = run(other / "explained.onnx")
    (path.parent / "weights.bin").unlink()
    np.testing.assert_array_equal(run(other / "explained.onnx")[1], expected[1])
    np.testing.assert_allclose(expected[0], X @ W + 0.5, rtol=1e-5, atol=1e-6)


def test_a_model_can_be_saved_twice_and_into_both_folders(external, tmp_path):
    model = extended(external())
    other = tmp_path / "other"
    other.mkdir()
    targets = [other / "a.onnx", tmp_path / "model" / "b.onnx", other / "c.onnx"]
    for target in targets:
        model.save(target)
    results = [run(target)[1] for target in targets]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_model_without_external_weights_is_one_file(tmp_path):
    extended(dense()).save(tmp_path / "explained.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["explained.onnx"]
    np.testing.assert_allclose(run(tmp_path / "explained.onnx")[0], X @ W + 0.5, rtol=1e-5, atol=1e-6)


def test_where_nothing_can_be_written_nothing_is_left(external, tmp_path):
    model = extended(external())
    with pytest.raises(InputError, match="cannot be written"):
        model.save(tmp_path / "nowhere" / "explained.onnx")
    with pytest.raises(InputError, match="is a folder"):
        model.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_failure_on_the_way_leaves_the_old_file(external, tmp_path):
    path = external()
    target = tmp_path / "explained.onnx"
    target.write_bytes(b"old")
    model = extended(path)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match="cannot be written"):
        model.save(target)
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["explained.onnx", "model"]


@pytest.mark.parametrize("size", [-1, 0])
def test_sizes_that_mean_any_become_unknown_before_anything_else_reads_them(size):
    model = load(unnamed_sizes(size))
    assert model.shape("x")[1] == 3
    assert model.shape("y") == (model.shape("x")[0], 4)
    assert model.shape("a") == (model.shape("x")[0], 4, *model.shape("x")[2:])
    declared = [model.core.graph.inputs[0].shape, model.core.graph.outputs[0].shape, model.find("a").shape]
    assert not any(isinstance(d, int) and d <= 0 for shape in declared for d in shape)
    explained = attach(unnamed_sizes(size)).to_proto()
    named = attach(unnamed_sizes("N")).to_proto()
    image = np.random.default_rng(3).standard_normal((2, 3, 5, 5)).astype(np.float32)
    results = [quiet_session(proto).run(None, {"x": image}) for proto in (explained, named)]
    for result, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_nodes_out_of_order_are_sorted():
    proto = unnamed_sizes("N")
    expected = attach(proto).to_proto()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[3], nodes[0], nodes[2], nodes[1]])
    assert attach(proto).to_proto().graph.node == expected.graph.node


def test_a_cycle_is_refused():
    proto = unnamed_sizes("N")
    proto.graph.node[0].input[0] = "a"
    assert "is not valid ONNX" in refused(proto)


def test_a_subgraph_that_reads_a_later_tensor_is_moved_behind_it():
    text = """<ir_version: 10, opset_import: ["": 18]> g (float[N,3] x, bool c) => (float[N,3] y) {
        y = If (c) <
            then_branch = t () => (float[N,3] u) { u = Exp(a) }, else_branch = e () => (float[N,3] v) { v = Neg(a) }
        >
        a = Relu(x)
    }"""
    assert [node.op_type for node in load(parser.parse_model(text)).core.graph] == ["Relu", "If"]


def calling(levels):
    """A model of functions that each call the one before twice."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports[:1])]
    for level in range(1, levels):
        nodes = [helper.make_node(f"f{level - 1}", [x], [y], domain="f") for x, y in ("am", "mb")]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["b"], nodes, imports))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="f")], "g", infos[:1], infos[1:])
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("levels", [17, 30, 60])
def test_functions_that_multiply_are_refused_before_anything_follows_them(levels):
    proto = calling(levels)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert refused(proto) == ("the functions of the model amount to more than 50000 nodes; export it without functions")


def test_a_function_that_calls_itself_is_refused():
    proto = calling(3)
    proto.functions[0].node[0].op_type = "f2"
    proto.functions[0].node[0].domain = "f"
    proto.functions[0].opset_import.add(domain="f", version=1)
    assert refused(proto) == "a function of the model calls itself; export it without functions"


def chained(depth, *, in_branch=False, content=0):
    """A model of functions that each call the one before; the first one may hold a constant of `content` bytes."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    tensor = numpy_helper.from_array(np.ones(content // 4 or 1, np.float32)[:, None], "c")
    body = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
    ]
    body.append(helper.make_node("Mul", ["a", "m"], ["b"]))
    functions = [helper.make_function("f", "f0", ["a"], ["b"], body, imports[:1])]
    for level in range(1, depth):
        nodes = [helper.make_node(f"f{level - 1}", ["a"], ["b"], domain="f")]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["b"], nodes, imports))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xyuv"]
    calls = [helper.make_node(f"f{depth - 1}", ["x"], [name], domain="f") for name in "yuv"]
    nodes = calls[:1]
    if in_branch:
        branches = [helper.make_graph([call], "b", [], [info]) for call, info in zip(calls[1:], infos[2:], strict=True)]
        condition = helper.make_node("Less", ["n", "n"], ["c"])
        number = helper.make_node("ReduceSum", ["x"], ["n"], keepdims=0)
        choice = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
        nodes = [number, condition, choice]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:2])
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("in_branch", [False, True])
def test_functions_that_call_each_other_deeply(in_branch):
    model = load(chained(100, in_branch=in_branch))
    assert not model.core.functions
    x = np.random.default_rng(0).random((2, 3), np.float32)
    np.testing.assert_array_equal(Session(model.to_proto().SerializeToString()).run({"x": x})["y"], x)
    begin = time.monotonic()
    for depth in (101, 500, 3000):
        assert refused(chained(depth, in_branch=in_branch)) == (
            "functions of the model call each other more than 100 deep; export it without functions"
        )
    assert time.monotonic() - begin < 20


def test_a_function_in_a_branch_that_calls_itself_is_refused():
    proto = chained(3, in_branch=True)
    call = helper.make_node("f2", ["a"], ["t"], domain="f")
    branch = helper.make_graph([call], "t", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)])
    proto.functions[0].node[2].CopyFrom(helper.make_node("If", ["m"], ["b"], then_branch=branch, else_branch=branch))
    proto.functions[0].opset_import.add(domain="f", version=1)
    assert refused(proto) == "a function of the model calls itself; export it without functions"


def test_the_constants_of_functions_count_as_often_as_they_are_called():
    proto = chained(1, content=2**20)
    node = proto.graph.node.pop()
    proto.graph.node.extend(helper.make_node("f0", ["x"], [f"y{i}"], domain="f") for i in range(1100))
    proto.graph.node.append(node)
    assert refused(proto) == (
        "the functions of the model amount to more than 1073741824 bytes; export it without functions"
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
def test_resizing_before_opset_11_samples_where_runtimes_do(operator, opset, mode):
    """ONNX's version converter leaves the default of opset 11, which samples half a cell away."""
    x = np.random.default_rng(6).standard_normal((2, 3, 6, 6)).astype(np.float32)
    for scale in (2, 3, 1.5, 2.7, *((0.5, 1 / 3) if operator == "Resize" else ())):
        scales, side = np.array([1, 1, scale, scale], np.float32), int(6 * scale + 1e-4)
        given = {"scales": scales.tolist()} if opset < 9 else {}
        node = helper.make_node(operator, ["x"] if given else ["x", "scales"], ["y"], mode=mode, **given)
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, s, s]) for n, s in (("x", 6), ("y", side))]
        weights = [] if given else [numpy_helper.from_array(scales, "scales")]
        graph = helper.make_graph([node], "g", infos[:1], infos[1:], weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
        (before,) = quiet_session(proto).run(None, {"x": x})
        (after,) = quiet_session(load(proto).to_proto()).run(None, {"x": x})
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slopes", [1, 4, 300])
def test_a_slope_of_opset_6_belongs_to_a_channel(slopes):
    channels = max(slopes, 4)
    text = """<ir_version: 3, opset_import: ["": 6]> g (float[N,C,4,4] x) => (float[N,C,4,4] y) { y = PRelu(x, s) }"""
    proto = parser.parse_model(text.replace("C", str(channels)))
    slope = np.random.default_rng(4).random(slopes).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(slope, "s"))
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [slopes]))
    x = np.random.default_rng(5).standard_normal((2, channels, 4, 4)).astype(np.float32)
    (y,) = quiet_session(load(proto).to_proto()).run(None, {"x": x})
    np.testing.assert_allclose(y, np.where(x < 0, x * slope[:, None, None], x), rtol=1e-6)


@pytest.mark.parametrize("size", [4, 5, 6, 7])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_a_last_window_that_starts_in_the_padding_is_left_out(pool, size):
    text = """<ir_version: 8, opset_import: ["": 18]> g (float[N,2,S,S] x) => (float[N,3] y)
    <float[3,2,1,1] w = {1, -2, 3, -1, 2, 1}> {
        c = Conv(x, w)
        [pool] m = POOL<kernel_shape = [2,2], strides = [2,2], pads = [1,1,1,1], ceil_mode = 1>(c)
        e = Mul(m, m)
        p = GlobalAveragePool(e)
        y = Flatten(p)
    }"""
    source = text.replace("POOL", pool).replace("S", str(size))
    plain = source.replace("[1,1,1,1], ceil_mode = 1", f"[1,1,{1 - size % 2},{1 - size % 2}]")
    results = []
    for model in (source, plain):
        proto = parser.parse_model(model)
        image = np.random.default_rng(6).standard_normal((2, 2, size, size)).astype(np.float32)
        original = quiet_session(proto).run(None, {"x": image})[0]
        explained = attach(proto, layer="c")
        results.append(quiet_session(explained.to_proto()).run(None, {"x": image}))
        np.testing.assert_allclose(results[-1][0], original, rtol=1e-5)
        assert explained.model.shape("m") == ("N", 3, *[size // 2 + 1] * 2)
    for result, expected in zip(*results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_vector_of_indices_that_is_declared_endless_does_not_hang():
    proto = dense()
    proto.graph.output.append(helper.make_tensor_value_info("index", TensorProto.INT64, [2**40]))
    proto.graph.node.add(op_type="ArgMax", input=[proto.graph.output[0].name], output=["index"]).attribute.append(
        helper.make_attribute("keepdims", 0)
    )
    assert load(proto).find("index") is not None
