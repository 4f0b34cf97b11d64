"""The common pass of all exporters: what is exposed, named, refused, guarded and written down."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.graphs import graph, images, run

from onnx_gradcam import attach
from onnx_gradcam.errors import InputError, TargetError
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.parity import run as run_for_parity
from onnx_gradcam.exporters.writer import Product
from onnx_gradcam.graph.load import load
from onnx_gradcam.graph.read import read_proto
from onnx_gradcam.metadata import Carried, CarriedLayer
from onnx_gradcam.runtime.session import Session

BODY = """
    t1 = Conv<pads=[1,1,1,1]>(x, w1)
    t2 = Relu(t1)
    t3 = Conv<pads=[1,1,1,1]>(t2, w2)
    t4 = Relu(t3)
    seen = Transpose<perm=[0,2,3,1]>(t4)
    p = GlobalAveragePool(t4)
    f = Flatten(p)
    logits = Gemm(f, d)
    y = Softmax<axis=1>(logits)
"""
LAYERS = {"block1": "t2", "block2": "seen", "pool": "p", "gone": "no_such_tensor", "predictions": "y"}


def classifier(body: str = BODY, **choices) -> onnx.ModelProto:
    return graph(body, w1=(5, 3, 3, 3), w2=(6, 5, 3, 3), d=(6, 4), **choices)


def product(model: onnx.ModelProto | None = None, layers: dict[str, str] | None = None, **facts) -> Product:
    table = {name: CarriedLayer(tensor=tensor, kind="Layer") for name, tensor in (layers or LAYERS).items()}
    made = {"framework": "keras", "version": "3.15.1", "layers": table} | facts
    return Product(model=load(model or classifier()), **made)


def outputs(proto: onnx.ModelProto) -> list[str]:
    return [o.name for o in proto.graph.output]


def test_the_layer_is_exposed_under_its_name_without_a_copy():
    made = finish_export(product(), "block1")
    proto = made.to_proto()
    assert outputs(proto) == ["y", "block1"]
    node = next(n for n in proto.graph.node if "block1" in n.output)
    assert node.op_type == "Relu"
    assert [n.op_type for n in proto.graph.node].count("Identity") == 0
    assert any("block1" in n.input for n in proto.graph.node), "the exposed tensor is the one that goes on"
    x = images()
    before, after = run(classifier(), x=x), run(proto, x=x)
    assert np.array_equal(before["y"], after["y"])
    rectified = run(classifier(outputs="float[N,4] y, float[N,5,8,8] t2"), x=x)["t2"]
    assert np.array_equal(after["block1"], rectified)
    assert (made.target, made.shape, made.layout, made.score) == ("block1", ("N", 5, 8, 8), "NCHW", "y")


def test_a_dead_end_is_traced_back_to_the_tensor_on_the_path():
    made = finish_export(product(), "block2")
    proto = made.to_proto()
    assert outputs(proto) == ["y", "block2"]
    assert next(n for n in proto.graph.node if "block2" in n.output).op_type == "Relu"
    assert all(n.op_type != "Transpose" for n in proto.graph.node)
    entry = made.carried.layers["block2"]
    assert (entry.tensor, entry.layout, entry.shape) == ("block2", "NCHW", ["N", 6, 8, 8])


def test_without_a_layer_the_one_that_attach_would_choose_is_exposed():
    made = finish_export(product())
    assert outputs(made.to_proto()) == ["y", "block2"]
    assert made.carried.target_layer == ""
    assert attach(made.to_proto()).metadata.target_tensor == "block2"


def test_the_table_holds_tensors_on_the_path_alone():
    made = finish_export(product(), "block1")
    assert {name: entry.tensor for name, entry in made.carried.layers.items()} == {
        "block1": "block1",
        "block2": "block2",
        "pool": "pool",
        "predictions": "y",
    }
    names = {o for n in made.to_proto().graph.node for o in n.output}
    assert names.issuperset(entry.tensor for entry in made.carried.layers.values())


def test_what_follows_knows_the_layers_by_name():
    proto = finish_export(product(), "block1").to_proto()
    assert attach(proto, layer="block2").metadata.target_tensor == "block2"
    explained = attach(proto)
    assert explained.metadata.target_tensor == "block1"
    assert explained.reason == "layer 'block1', which the model was exported with"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("blok2", r"no layer 'blok2'; did you mean 'block2'"),
        ("gone", r"layer 'gone' was merged into another operator"),
        ("pool", r"layer 'pool' .* has a single position"),
        ("y", r"the score does not depend on layer 'y'"),
    ],
)
def test_layers_that_cannot_be_the_target(layer, words):
    with pytest.raises(TargetError, match=words):
        finish_export(product(), layer)


def test_a_layer_that_the_score_does_not_depend_on():
    body = BODY + "side = Conv(x, w3)"
    model = graph(body, outputs="float[N,4] y, side", w1=(5, 3, 3, 3), w2=(6, 5, 3, 3), w3=(2, 3, 1, 1), d=(6, 4))
    with pytest.raises(TargetError, match="the score does not depend on layer 'aux'"):
        finish_export(product(model, {"aux": "side"}), "aux")


def test_a_name_that_is_taken_leaves_the_tensor_its_own():
    made = finish_export(product(layers={"t2": "t4", "d": "t2"}), "t2")
    assert outputs(made.to_proto()) == ["y", "t4"]
    assert made.carried.layers["t2"].tensor == "t4"
    assert attach(made.to_proto(), layer="t2").metadata.target_tensor == "t4"


def test_the_shortest_of_several_names_is_taken():
    made = finish_export(product(layers={"features.1.act": "t4", "features": "t4", "features.1": "t4"}))
    assert outputs(made.to_proto()) == ["y", "features"]


def test_inputs_and_outputs_keep_their_names():
    made = finish_export(product(layers={"input_1": "x", "block1": "t2", "predictions": "y"}), "block1")
    proto = made.to_proto()
    assert ([i.name for i in proto.graph.input], outputs(proto)) == (["x"], ["y", "block1"])
    assert made.carried.layers["input_1"].tensor == "x"


def test_a_number_gives_way_to_the_name_of_the_node():
    model = classifier(BODY.replace("t4", "n495"))
    for node in model.graph.node:
        node.name = "/layer4/relu" if "n495" in node.output else ""
        for names in (node.input, node.output):
            names[:] = ["495" if n == "n495" else n for n in names]
    assert outputs(finish_export(product(model, {"a": "t2"})).to_proto()) == ["y", "/layer4/relu"]


def test_weights_leave_the_list_of_inputs():
    model = classifier()
    made = product(model)
    core = made.model.core.graph
    core.inputs.append(core.initializers["d"])
    proto = finish_export(made).to_proto()
    assert [i.name for i in proto.graph.input] == ["x"]
    assert {t.name for t in proto.graph.initializer} >= {"w1", "w2", "d"}


PADDED = """
    t1 = Conv(x, w1)
    t2 = Pad{mode}(t1, pads{fill})
    t3 = MaxPool<kernel_shape=[3,3], strides=[2,2]>(t2)
    t4 = Conv(t3, w2)
    p = GlobalAveragePool(t4)
    f = Flatten(p)
    y = Gemm(f, d)
"""


def padded(mode: str = "", fill: str = "", **constants) -> onnx.ModelProto:
    return graph(
        PADDED.format(mode=mode, fill=fill),
        inputs="float[N,3,10,10] x",
        w1=-np.abs(np.random.default_rng(1).standard_normal((5, 3, 3, 3))).astype(np.float32),
        w2=(6, 5, 3, 3),
        d=(6, 4),
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
        **constants,
    )


@pytest.mark.parametrize("constants", [{}, {"fill": ", zero", "zero": np.float32(0)}], ids=["absent", "given"])
def test_padding_before_a_pool_is_safe_from_the_optimiser(constants):
    model = padded(**constants)
    x = np.abs(images(2, 3, 10, 10))
    right = run(model, x=x, disabled=["Pad_Fusion"])["y"]
    proto = finish_export(product(model, {"a": "t1"})).to_proto()
    fill = next(n for n in proto.graph.node if n.op_type == "Pad").input[2]
    value = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == fill)
    assert value == 0
    assert np.signbit(value)
    assert np.abs(run(proto, x=x)["y"] - right).max() <= 1e-6 * np.abs(right).max()
    assert attach(proto).metadata.disabled_optimizers == []


def test_other_padding_stays():
    model = padded(mode='<mode="edge">')
    proto = finish_export(product(model, {"a": "t1"})).to_proto()
    assert len(next(n for n in proto.graph.node if n.op_type == "Pad").input) == 2


def test_the_facts_are_written_down(tmp_path):
    described = {"scale": 1 / 255, "mean": [0.5, 0.5, 0.5]}
    facts = {"labels": list("abcd"), "preprocessing": described, "parity": "within 1e-6", "biases": "merged"}
    made = finish_export(product(**facts), "block1")
    path = tmp_path / "m.onnx"
    made.save(path)
    proto, _ = read_proto(path)
    onnx.checker.check_model(proto, full_check=True)
    carried = Carried.from_props({p.key: p.value for p in proto.metadata_props})
    assert carried == made.carried
    assert (carried.framework, carried.framework_version) == ("keras", "3.15.1")
    assert (carried.labels, carried.preprocessing) == (list("abcd"), described)
    assert (carried.target_layer, carried.score_kind, carried.parity) == ("block1", "softmax", "within 1e-6")
    assert carried.biases == "merged"


def test_a_score_without_an_activation_is_a_logit():
    assert finish_export(product(padded(), {"a": "t1"})).carried.score_kind == "logit"


def test_class_names_have_to_fit():
    with pytest.raises(InputError, match="there are 3 class names for 4 classes"):
        finish_export(product(), labels=["a", "b", "c"])
    made = finish_export(product(labels=["a", "b", "c"]))
    assert made.carried.labels is None
    (warning,) = made.warnings
    assert "there are 3 class names for 4 classes" in warning
    assert finish_export(product(labels=["a"]), labels=list("wxyz")).carried.labels == list("wxyz")


def test_preprocessing_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="unknown key 'scael'"):
        finish_export(product(), preprocessing={"scael": 1})


def test_facts_of_an_earlier_export_do_not_survive():
    first = finish_export(product(labels=list("abcd")), "block1")
    again = finish_export(product(first.to_proto(), {"a": "block1"}), "a")
    assert again.carried.labels is None
    assert Carried.from_props(again.model.metadata) == again.carried


def test_weights_too_many_for_one_file_go_beside_it(tmp_path, monkeypatch):
    made = finish_export(product(), "block1")
    before = run(made.to_proto(), x=images())
    monkeypatch.setattr("onnx_gradcam.graph.model._LARGEST_FILE", 500)
    made.save(tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    after = run(onnx.load(tmp_path / "m.onnx"), x=images())
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert attach(tmp_path / "m.onnx").metadata.target_tensor == "block1"


def test_a_graph_that_no_file_holds_is_compared_and_written_with_its_weights_beside_it(tmp_path, monkeypatch):
    x = images()
    expected = run(classifier(), x=x)["y"]
    monkeypatch.setattr("onnx_gradcam.graph.model._LARGEST_FILE", 100)
    large = product()
    values = run_for_parity(large.model, x, ["t2"])
    assert np.array_equal(values["y"], expected)
    assert values["t2"].shape == (len(x), 5, 8, 8)
    finish_export(large, "block1").save(tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert np.array_equal(Session(tmp_path / "m.onnx").run({"x": x})["y"], expected)
