"""Forms of files, names, sizes, and refusals."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnx_gradcam import Options, export
from onnx_gradcam.cli import app
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import ExportError, InputError, TargetError
from onnx_gradcam.exporters.mxnet import read_mxnet
from onnx_gradcam.images.preprocessing import PRESETS, parse_preprocessing
from onnx_gradcam.runtime.session import Session

from .conftest import Case
from .networks import V2, Network, variable


def old_form(case: Case, key: str) -> None:
    """Rewrite a symbol as MXNet before 0.9 (`param`) or 1.0 (`attr`) wrote it: no auxiliary states, short entries."""
    nodes = case.symbol["nodes"]
    kept = [i for i, n in enumerate(nodes) if key != "param" or not n["name"].endswith(("moving_mean", "moving_var"))]
    number = {old: new for new, old in enumerate(kept)}
    for node in nodes:
        node[key] = node.pop("attrs", {})
        node["inputs"] = [[number[i], o] for i, o, *_ in node["inputs"] if i in number]
        node["backward_source_id"] = -1
    if key == "param":
        nodes[-1]["attr"] = {"ctx_group": "stage1", "lr_mult": "0.1"}
    case.symbol["nodes"] = [nodes[i] for i in kept]
    case.symbol["heads"] = [[number[i], o] for i, o, *_ in case.symbol["heads"]]
    del case.symbol["attrs"]


@pytest.mark.parametrize("key", ["param", "attr"])
@pytest.mark.parametrize("name", ["batch_norm_fixed", "batch_norm_free", "convolution", "softmax_output"])
def test_old_forms_of_symbols(case, tmp_path, key, name):
    case = case(name)
    old_form(case, key)
    product = read_mxnet(*case.write(tmp_path), input_shape=case.x.shape[1:])
    case.check(product.model)
    assert product.version == ""


def test_integers_as_python_2_wrote_them(case, tmp_path):
    case = case("convolution")
    case.node()["attrs"] |= {"kernel": "(3L, 2L)", "stride": "[2, 1]"}
    case.check(read_mxnet(*case.write(tmp_path), input_shape=(4, 5, 6)).model)


def test_layers_are_tensors_of_the_nodes_names(case, tmp_path):
    case = case("dropout")
    product = read_mxnet(*case.write(tmp_path), input_shape=(6,), names={"net[1]": "y"})
    assert product.framework == "mxnet"
    assert product.version == "1.9.1"
    assert {name: layer.kind for name, layer in product.layers.items()} == {
        "_mulscalar0": "_mul_scalar",
        "y": "Dropout",
        "net[1]": "Dropout",
    }
    # Dropout does nothing in prediction: it is its input's tensor, which bears the output's name.
    assert {layer.tensor for layer in product.layers.values()} == {"y"}
    assert product.layers["net[1]"].shape == ["batch", 6]
    assert [n.op_type for n in product.model.core.graph] == ["Mul"]


def test_a_name_for_no_node(case, tmp_path):
    with pytest.raises(TargetError, match=r"'net\[1\]' stands for node 'drop'.*not in the symbol"):
        read_mxnet(*case("dropout").write(tmp_path), input_shape=(6,), names={"net[1]": "drop"})


def test_layouts_follow_the_channels(case, tmp_path):
    layers = read_mxnet(*case("batch_norm_free").write(tmp_path), input_shape=(4, 5, 6)).layers
    assert (layers["y"].layout, layers["y"].shape) == ("NCHW", ["batch", 4, 5, 6])
    assert read_mxnet(*case("transpose").write(tmp_path), input_shape=(4, 5, 6)).layers["y"].layout == ""


def test_fixed_gammas_leave_no_weight_behind(case, tmp_path):
    model = read_mxnet(*case("batch_norm_fixed").write(tmp_path), input_shape=(4, 5, 6)).model
    assert "y_gamma" not in model.core.graph.initializers
    assert "y_beta" in model.core.graph.initializers


def test_a_zero_pad_is_negative_zero(case, tmp_path):
    model = read_mxnet(*case("pad_zero_then_pool").write(tmp_path), input_shape=(4, 5, 6)).model
    (pad,) = (n for n in model.core.graph if n.op_type == "Pad")
    assert np.signbit(pad.inputs[2].const_value.numpy())


# ----- the size of an image -------------------------------------------------


def classifier(folder, side=20, prefix="", head="dense"):
    """A convolution and a head that fixes the size, or does not."""
    net = Network(folder, prefix)
    x = net.node("Convolution", "conv", variable("data"), net.weight("w", (4, 3, 3, 3)), kernel="(3, 3)",
                 num_filter="4", no_bias="True")  # fmt: skip
    if head == "dense":
        x = net.node("FullyConnected", "dense", x, net.weight("d", (2, 4 * (side - 2) ** 2)), num_hidden="2",
                     no_bias="True")  # fmt: skip
    elif head == "pool":
        x = net.node("Pooling", "pool", x, kernel="(1, 1)", global_pool="True", pool_type="avg")
    else:
        x = net.node("Flatten", "flat", x)
    return net.write(x)


def test_weights_tell_the_size(tmp_path):
    product = read_mxnet(*classifier(tmp_path))
    assert tuple(product.model.shape("data")) == ("batch", 3, 20, 20)
    assert product.warnings == [
        "the image size was fixed at 20x20, which fits the weights; --input-shape C,H,W gives another one"
    ]


def test_a_usual_size_is_preferred(tmp_path):
    assert tuple(read_mxnet(*classifier(tmp_path, 32)).model.shape("data")) == ("batch", 3, 32, 32)


def test_pooling_leaves_the_size_free(tmp_path):
    product = read_mxnet(*classifier(tmp_path, head="pool"))
    assert tuple(product.model.shape("data")) == ("batch", 3, "height", "width")
    for shape in ((1, 3, 5, 9), (3, 3, 16, 4)):
        session = Session(product.model.to_proto().SerializeToString())
        assert session.run({"data": np.ones(shape, np.float32)})["pool"].shape == (shape[0], 4, 1, 1)


def test_nothing_tells_the_size(tmp_path):
    with pytest.raises(ExportError, match=r"the number of outputs of 'flat' .* with --input-shape"):
        read_mxnet(*classifier(tmp_path, head="flat"))


def test_the_model_zoo_has_a_size(tmp_path):
    product = read_mxnet(*classifier(tmp_path, head="flat", prefix="squeezenet0_"))
    assert tuple(product.model.shape("data")) == ("batch", 3, 224, 224)
    assert "model zoo's" in product.warnings[0]
    assert parse_preprocessing(product.preprocessing) == PRESETS["mxnet-gluon"]


def test_a_zoo_network_of_another_size(tmp_path):
    product = read_mxnet(*classifier(tmp_path, 64, prefix="vgg0_"))
    assert tuple(product.model.shape("data")) == ("batch", 3, 64, 64)


def test_no_preprocessing_is_made_up(tmp_path):
    assert read_mxnet(*classifier(tmp_path, head="pool")).preprocessing is None


def test_the_wrong_size_is_refused(tmp_path):
    with pytest.raises(
        ExportError, match=r"node 'dense' \(FullyConnected\): its weights take 1296 features, but .* 900"
    ):
        read_mxnet(*classifier(tmp_path), input_shape=(3, 17, 17))


@pytest.mark.parametrize("shape", [(), (3, 0, 4), (3, -1, 4), (3, 4.0, 4), (True, 4, 4)])
def test_an_input_shape_that_is_none(tmp_path, shape):
    with pytest.raises(InputError, match="give positive integers"):
        read_mxnet(*classifier(tmp_path), input_shape=shape)


def test_an_unknown_shape(case, tmp_path):
    with pytest.raises(ExportError, match=r"its input 'data' is unknown; give the shape .* with --input-shape"):
        read_mxnet(*case("softmax").write(tmp_path))


# ----- refusals --------------------------------------------------------------

CHANGES = [
    ("convolution", {"layout": "NHWC"}, "its layout is NHWC; export the network with channels first"),
    ("convolution", {"flavour": "sweet"}, "its attribute flavour .'sweet'. is unknown"),
    ("convolution", {"kernel": "(3, 2"}, "its attribute kernel is '.3, 2', but must be a tuple of integers"),
    ("convolution", {"kernel": "(" * 3000}, "but must be a tuple of integers"),
    ("convolution", {"kernel": "(" + "1," * 1000 + ")"}, "but must be a tuple of integers"),
    ("convolution", {"kernel": "(3, " + "9" * 40 + ")"}, "but must be a tuple of integers"),
    ("convolution", {"kernel": "(4, 2)"}, "its weights 'y_weight' have shape"),
    ("convolution", {"stride": "(0, 1)"}, "its attribute stride is .0, 1., with a number below 1"),
    ("convolution", {"num_group": "3"}, "4 input channels do not split into 3 groups"),
    ("convolution", {"no_bias": "maybe"}, "its attribute no_bias is 'maybe', but must be True or False"),
    ("pool_max_valid", {"pool_type": "median"}, "its pool_type is median"),
    ("pool_max_valid", {"pooling_convention": "same"}, "its pooling_convention is same"),
    ("pool_max_valid", {"kernel": "()"}, "its kernel has 0 dimensions"),
    ("slice_steps", {"step": "(None, 0, -2)"}, "do not fit together"),
    ("pool_lp", {"p_value": "3"}, "its pool_type is lp of p_value 3"),
    ("pool_sum", {"pooling_convention": "full"}, "its pool_type is sum and its pooling_convention full"),
    ("pool_max_valid", {"kernel": "(30, 30)"}, "its kernel spans 30 positions"),
    ("batch_norm_free", {"axis": "3"}, "its axis is 3"),
    ("batch_norm_free", {"eps": "nan"}, "its attribute eps is 'nan', but must be a finite number"),
    ("batch_norm_free", {"output_mean_var": "True"}, "its output_mean_var True"),
    ("dropout", {"mode": "always"}, "its mode is always, which is random"),
    ("activation_relu", {"act_type": "mish"}, "its act_type is mish; known are relu"),
    ("leaky_leaky", {"act_type": "swish"}, "its act_type is swish"),
    ("cast", {"dtype": "bfloat16"}, "its dtype is bfloat16"),
    ("softmax", {"use_length": "True"}, "its use_length is True"),
    ("softmax", {"temperature": "0"}, "its temperature is 0"),
    ("upsampling_nearest", {"sample_type": "cubic"}, "its sample_type is cubic"),
    ("resize_aligned", {"mode": "odd_scale"}, "its mode is odd_scale"),
    ("resize_aligned", {"width": "999999999999"}, "are not valid; known are 1 to 65536"),
    ("resize_scale", {"scale_width": "-1"}, "its scales are .1.5, -1.0.; known are numbers up to 64"),
    ("deconvolution_bias", {"stride": "(2, 2)"}, "its stride is .2, 2. and its dilate .2, 1., for which MXNet's CPU"),
    ("squeeze", {"axis": "0"}, "which drops the batch"),
    ("pad_edge", {"mode": "wrap"}, "its mode is wrap"),
    ("pad_edge", {"pad_width": "(0, 0, 1)"}, "its pad_width is .0, 0, 1., but must be 8 non-neg"),
    ("l2_channel", {"mode": "rows"}, "its mode is rows"),
    ("lrn", {"nsize": "4"}, "its nsize is 4"),
    ("adaptive_uneven", {"output_size": "(2, 99999999)"}, "known are one or two numbers from 1 to 1024"),
    ("reshape_join", {"shape": "(0, -5)"}, "contains the unknown code -5"),
    ("reshape_join", {"shape": "(-1, -1)"}, "leaves more than one dimension open"),
    ("reshape_join", {"shape": "(0, 0, 0, 0, 0)"}, "needs more dimensions than the 4"),
    ("reshape_split", {"reverse": "True"}, "splits a dimension in reverse"),
    ("split", {"num_outputs": "3"}, "it splits 4 elements into 3 parts"),
    ("transpose", {"axes": "(0, 1, 1, 2)"}, "do not name each of 4 dimensions once"),
    ("concat", {"dim": "7"}, "its axis is 7, but its input has 4 dimensions"),
    ("crop", {"h_w": "(3, 20)"}, "which is smaller; give the shape of one image with --input-shape"),
    ("norm", {"ord": "3"}, "its ord is 3"),
    ("dense", {"num_hidden": "4"}, "its num_hidden is 4; give the .params"),
    ("dot", {"forward_stype": "csr"}, "dot is supported for dense tensors of 2"),
    ("broadcast_to", {"shape": "(2, 2)"}, "but must be 4 non-negative integers"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CHANGES)
def test_attributes_are_checked(case, tmp_path, name, changes, message):
    case = case(name)
    node = case.node("parts" if name == "split" else "y")
    node["attrs"] = node.get("attrs", {}) | changes
    with pytest.raises(ExportError, match=message) as caught:
        read_mxnet(*case.write(tmp_path), input_shape=case.x.shape[1:])
    assert f"node '{node['name']}' ({node['op']}): " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_attribute(case, tmp_path):
    case = case("convolution")
    del case.node()["attrs"]["num_filter"]
    with pytest.raises(ExportError, match=r"node 'y' \(Convolution\): its attribute num_filter is missing"):
        read_mxnet(*case.write(tmp_path), input_shape=(4, 5, 6))


def test_an_unknown_operator(case, tmp_path):
    case = case("convolution")
    case.node()["op"] = "Embedding"
    with pytest.raises(ExportError, match="node 'y' has the unknown operator Embedding"):
        read_mxnet(*case.write(tmp_path), input_shape=(4, 5, 6))


def test_weights_of_gluon(case, tmp_path):
    net = Network(tmp_path, "")
    x = net.node("Convolution", "conv", variable("data"), net.weight("w", (4, 3, 1, 1)), kernel="(1, 1)",
                 num_filter="4", no_bias="True")  # fmt: skip
    net.weights = {"features.0.weight": net.weights["arg:w"]}
    with pytest.raises(ExportError, match=r"\('features.0.weight'\).*net.hybridize\(\); net\(x\); net.export"):
        read_mxnet(*net.write(x))


def test_weights_in_place_of_the_symbol(case, tmp_path):
    _, params = case("convolution").write(tmp_path)
    with pytest.raises(ExportError, match=r"holds weights and no graph; in MXNet run net.hybridize\(\)"):
        read_mxnet(params, params)


def test_missing_weights(case, tmp_path):
    case = case("convolution")
    case.params = case.params.replace(b"arg:y_weight", b"arg:y_height")
    with pytest.raises(ExportError, match=r"holds no weights for 'y_weight'; give the \.params"):
        read_mxnet(*case.write(tmp_path), input_shape=(4, 5, 6))


def test_weights_of_another_network(case, tmp_path):
    mine, other = case("convolution"), case("convolution_no_bias")
    mine.params = other.params
    with pytest.raises(ExportError, match="holds no weights for 'y_bias'"):
        read_mxnet(*mine.write(tmp_path), input_shape=(4, 5, 6))


def test_several_inputs(tmp_path):
    net = Network(tmp_path, "")
    x = net.node("elemwise_add", "sum", variable("left"), variable("right"))
    net.weight("unused", (1,))
    with pytest.raises(ExportError, match=r"has several inputs \('left', 'right'\); export"):
        read_mxnet(*net.write(x))


def test_half_precision_weights_meet_a_float_image(tmp_path):
    net = Network(tmp_path, "")
    x = net.node("Convolution", "conv", variable("data"), net.weight("w", (4, 3, 1, 1), np.float16), kernel="(1, 1)",
                 num_filter="4", no_bias="True")  # fmt: skip
    with pytest.raises(ExportError, match="float16"):
        read_mxnet(*net.write(x))


def test_a_thousand_nodes_on_each_other(tmp_path):
    net = Network(tmp_path, "")
    x = variable("data")
    for i in range(1000):
        x = net.node("_plus_scalar", f"plus{i}", x, scalar="1")
    net.weight("unused", (1,))
    product = read_mxnet(*net.write(x), input_shape=(2,))
    assert len(product.layers) == 1000
    onnx.checker.check_model(product.model.to_proto(), full_check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process, as Linux shows it")
def test_weights_are_not_read_before_they_are_written(tmp_path):
    """200 MB of weights, in a file with a hole in their place."""
    net = Network(tmp_path, "")
    net.weights["arg:w"] = np.zeros((1, 1), np.float32)
    symbol, params = net.write(net.node("FullyConnected", "y", "data", "w", num_hidden="50000", no_bias="True"))
    head = struct.pack("<3Q", 0x112, 0, 1) + struct.pack("<Iii2q3i", V2, 0, 2, 50_000, 1000, 1, 0, 0)
    with params.open("wb") as stream:
        stream.write(head)
        stream.seek(len(head) + 200_000_000)
        stream.write(struct.pack("<2Q", 1, 5) + b"arg:w")
    script = f"""
        import resource
        from onnx_gradcam.exporters.mxnet import read_mxnet

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = read_mxnet({str(symbol)!r}, {str(params)!r}, input_shape=(1000,)).model
        model.check()
        print(model.core.graph.initializers["w"].const_value.nbytes)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    size, grown = map(int, done.stdout.split())
    assert size == 200_000_000
    assert grown < 50


def test_nothing_is_written(case, tmp_path):
    case = case("convolution")
    files = case.write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    read_mxnet(*files, input_shape=(4, 5, 6))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert json.loads(files[0].read_text()) == case.symbol


class TestGluonPaths:
    """`net.features[8][2]`, as gluon's users write it: the symbol has nodes only, so a file says which is which."""

    @pytest.fixture
    def files(self, tmp_path):
        net = Network(tmp_path, "")
        net.weight("w1", (4, 3, 3, 3))
        net.weight("w2", (5, 4, 3, 3))
        kernel = {"kernel": "(3, 3)", "pad": "(1, 1)", "no_bias": "True"}
        first = net.node("Convolution", "conv0_fwd", "data", "w1", num_filter="4", **kernel)
        second = net.node("Convolution", "conv1_fwd", first, "w2", num_filter="5", **kernel)
        act = net.node("Activation", "act0", second, act_type="relu")
        pool = net.node("Pooling", "pool", act, global_pool="True", pool_type="avg", kernel="(1, 1)")
        return net.write(net.node("Flatten", "scores", pool))

    @pytest.mark.parametrize("layer", ["net.features[8][2]", "features[8][2]", "features[8]"])
    def test_on_the_command_line_and_in_python(self, files, tmp_path, layer):
        names, out = tmp_path / "names.json", tmp_path / "net.onnx"
        names.write_text(json.dumps({"features[8][2]": "conv0_fwd", "features[8]": "conv1_fwd"}), "utf-8")
        arguments = ["export", "mxnet", *map(str, files), "-o", str(out), "--input-shape", "3,8,8"]
        result = CliRunner().invoke(app, [*arguments, "--names", str(names), "--layer", layer])
        assert result.exit_code == 0, result.output
        same = export(files[0], input_shape=(3, 8, 8), names=str(names), layer=layer)
        expected = 5 if layer == "features[8]" else 4
        assert same.shape[1] == expected
        assert make_plan(out).layer.chosen.channels == expected
        assert make_plan(out, Options(layer="net.features[8][2]")).layer.chosen.channels == 4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not valid JSON"),
            ("[1]", "names have to be an object of layers"),
            ('{"features[8]": 3}', "names have to be an object of layers"),
            ('{"features[8]": "conv9_fwd"}', "stands for node 'conv9_fwd', which is not in the symbol"),
        ],
    )
    def test_refusals(self, files, tmp_path, text, message):
        names, out = tmp_path / "names.json", tmp_path / "net.onnx"
        names.write_text(text, "utf-8")
        arguments = ["export", "mxnet", *map(str, files), "-o", str(out), "--input-shape", "3,8,8"]
        result = CliRunner().invoke(app, [*arguments, "--names", str(names)])
        assert result.exit_code == 1
        assert message in result.stderr
        assert not out.exists()


def values(product, **feeds):
    return Session(product.model.to_proto().SerializeToString()).run(feeds)


def test_inputs_besides_the_image_become_constants(tmp_path):
    net = Network(tmp_path, "")
    scores = net.node("FullyConnected", "dense", variable("data"), net.weight("w", (3, 6)), num_hidden="3",
                      no_bias="True")  # fmt: skip
    shifted = net.node("broadcast_add", "shifted", scores, variable("stage"))
    files = net.write(net.node("sum", "age", shifted, axis="1", keepdims="True"))
    with pytest.raises(ExportError, match=r"no weights for 'stage'; .* with --input-value NAME=NUMBERS"):
        read_mxnet(*files, input_shape=(6,))
    with pytest.raises(InputError, match="the symbol has no input 'stages'; did you mean 'stage'"):
        read_mxnet(*files, input_shape=(6,), input_values={"stages": [[0, 1, 2]]})
    product = read_mxnet(*files, input_shape=(6,), input_values={"stage": [[0, 1, 2.5]]})
    x = np.random.default_rng(1).random((4, 6), np.float32)
    right = (x @ net.weights["arg:w"].T).sum(1, keepdims=True) + 3.5
    assert [i.name for i in product.model.core.graph.inputs] == ["data"]
    assert np.allclose(values(product, data=x)["age"], right, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes", "row"),
    [
        ("_arange", {"start": "2", "stop": "11.0", "step": "3.0", "repeat": "2", "ctx": "cpu(0)"}, [2, 2, 5, 5, 8, 8]),
        ("_arange", {"start": "6", "stop": "None", "dtype": "float32", "infer_range": "False"}, range(6)),
        ("_ones", {"shape": "(6,)", "ctx": "", "dtype": "float32"}, [1] * 6),
        ("_zeros", {"shape": "(6,)"}, [0] * 6),
    ],
)
def test_constants_that_nodes_make(tmp_path, op, attributes, row):
    net = Network(tmp_path, "")
    line = net.node("Reshape", "line", net.node(op, "made", **attributes), shape="(1, 6)")
    product = read_mxnet(*net.write(net.node("broadcast_add", "y", variable("data"), line)), input_shape=(6,))
    x = np.random.default_rng(1).random((2, 6), np.float32)
    assert np.allclose(values(product, data=x)["y"], x + np.asarray(row))


def test_a_range_without_end_is_refused(tmp_path):
    net = Network(tmp_path, "")
    made = net.node("_arange", "made", start="0", stop="None", infer_range="True")
    files = net.write(net.node("broadcast_add", "y", variable("data"), made))
    with pytest.raises(ExportError, match=r"'made' .*is open or too long"):
        read_mxnet(*files, input_shape=(6,))


def test_an_axis_of_free_size_is_split(tmp_path):
    net = Network(tmp_path, "")
    x = net.node("Convolution", "conv", variable("data"), net.weight("w", (2, 3, 1, 1)), kernel="(1, 1)",
                 num_filter="2", no_bias="True")  # fmt: skip
    halves = net.node("SliceChannel", "halves", x, num_outputs="2", axis="2")
    product = read_mxnet(*net.write(net.node("Pooling", "y", halves, kernel="(1, 1)", global_pool="True",
                                             pool_type="max")))  # fmt: skip
    assert tuple(product.model.shape("data")) == ("batch", 3, "height", "width")
    image = np.random.default_rng(1).random((2, 3, 6, 5), np.float32)
    upper = np.einsum("oi,nihw->nohw", net.weights["arg:w"][:, :, 0, 0], image)[:, :, :3]
    assert np.allclose(values(product, data=image)["y"], upper.max((2, 3), keepdims=True), atol=1e-6)
