"""Models with damage that only shows while the graph is followed: one sentence from every function."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from support.graphs import graph

from onnx_gradcam import Explainer, attach, inspect
from onnx_gradcam.errors import ExplainError, ModelError, TargetError
from onnx_gradcam.graph.read import invalid_models_refused


def model() -> onnx.ModelProto:
    return graph(
        "c = Conv<dilations=[1,1]>(x, K) t = Transpose<perm=[0,2,3,1]>(c) b = Transpose<perm=[0,3,1,2]>(t) a = Relu(b)"
        "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )


def attribute(proto: onnx.ModelProto, node: int) -> onnx.AttributeProto:
    return proto.graph.node[node].attribute[0]


def damaged(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = model()
    change(proto)
    return proto.SerializeToString()


DAMAGE = {
    "dilations": (
        damaged(lambda m: attribute(m, 0).ints.extend([1] * 40)),
        "not valid ONNX: |no tensor with spatial positions",
    ),
    "axes": (
        damaged(lambda m: attribute(m, 1).ints.__setitem__(0, 7)),
        "not valid ONNX: |no tensor with spatial positions",
    ),
    "type of an input": (
        damaged(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99)),
        "a tensor is of the unknown type 99; export the model again",
    ),
    "text": (model().SerializeToString().replace(b"Relu", b"Re\xac\xbf"), r"a name in it is not UTF-8 text\); fetch"),
}


@pytest.mark.parametrize(("data", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_sentence(tmp_path, data, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    for use in (attach, lambda p: Explainer(p, preprocess="none"), lambda p: Explainer(p, method="rise")):
        with pytest.raises(ExplainError, match=words) as caught:
            use(path)
        assert "\n" not in str(caught.value)
    try:
        refusal = inspect(path).refusal
    except ExplainError as exc:
        refusal = str(exc)
    assert refusal


def test_an_error_in_a_valid_model_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), invalid_models_refused(model()):
        _ = 1 // 0


@pytest.mark.parametrize("damage", ["dilations", "axes"])
def test_an_error_in_a_model_that_is_not_valid_becomes_the_checkers_sentence(damage):
    with pytest.raises(ModelError, match=r"the model is not valid ONNX: .*Inference") as caught:  # noqa: SIM117
        with invalid_models_refused(DAMAGE[damage][0]):
            _ = 1 // 0
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_own_errors_stay_what_they_are():
    with pytest.raises(ModelError, match=r"^own$"), invalid_models_refused(DAMAGE["axes"][0]):
        raise ModelError("own")


def test_an_image_larger_than_any_is_refused():
    proto = model()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**25
    with pytest.raises(ExplainError, match=r"image of 33554432 x 8 pixels, above the limit of 134217728 pixels"):
        attach(proto)


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("function", [attach, inspect])
def test_an_input_that_no_computer_holds_is_refused(function, axis):
    for source in (model(), attach(model()).to_proto()):
        source.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**40
        with pytest.raises(ExplainError, match=r"the input 'x' declares (3 x )?1099511627776 x"):
            function(source)


def test_maps_larger_than_any_image_are_refused():
    proto = graph(
        "c = Conv<pads=[0,0,0,2147483647]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )
    with pytest.raises(TargetError, match=r"layer 'a' has 6 x 2147483653 positions, more than an image has pixels"):
        attach(proto)


def test_shapes_beyond_64_bits_stay_unknown():
    proto = graph(
        "c = Conv<pads=[0,2147483647,0,2147483647]>(x, K) d = Conv<pads=[0,2147483647,0,2147483647]>(c, L) "
        "n = Shape(d) s = Slice(n, i, j) r = Concat<axis=0>(s, minus) p = GlobalAveragePool(d) f = Reshape(p, r) "
        "y = Gemm(f, W)",
        K=(6, 3, 3, 3),
        L=(6, 6, 3, 3),
        W=(6, 4),
        i=[0],
        j=[1],
        minus=[-1],
    )
    with pytest.raises(ExplainError):
        attach(proto)


def test_a_layer_without_positions_is_refused():
    proto = model()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2
    with pytest.raises(TargetError, match=r"layer 'a' has no positions \(0 x 6\).*larger"):
        attach(proto, layer="a")
