"""What an explained model says of itself, and how it is read without parsing the model."""

from __future__ import annotations

import json

import onnx
import pytest
from support.graphs import graph

from onnx_gradcam import __version__
from onnx_gradcam.editor.attachment import attach
from onnx_gradcam.errors import ModelError
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import PREFIX, Carried, CarriedLayer, Metadata, peek

PREPROCESSING = {"size": [8, 8], "resize": "stretch", "color": "rgb", "scale": 0.5}


def model() -> onnx.ModelProto:
    return graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) l = Gemm(f, W) y = Softmax(l)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )


def props(proto: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


def test_what_is_said():
    explained = attach(model(), labels=["cat", "Katze", "猫", 'a "b"'], preprocess=PREPROCESSING)
    said = props(explained.to_proto())
    assert {k.removeprefix(PREFIX): v for k, v in said.items() if k.startswith(PREFIX)} == {
        "version": __version__,
        "method": "gradcam",
        "preset": "default",
        "weights": "linear",
        "derivative": "exact",
        "modifier": "",
        "eigen_smooth": "false",
        "attribution": "",
        "completeness": "",
        "target_tensor": "a",
        "target_tensors": '["a"]',
        "score_tensor": "l",
        "image_input": "x",
        "layout": "NCHW",
        "scores_output": "y",
        "activation": "softmax",
        "single_logit": "false",
        "class_input": "target_class",
        "heatmap": "heatmap",
        "cam": "cam",
        "heatmap_class": "heatmap_class",
        "labels": '["cat", "Katze", "猫", "a \\"b\\""]',
        "preprocessing": json.dumps(parse_preprocessing(PREPROCESSING).to_dict()),
        "profile": "portable",
        "grad_dtype": "model",
        "disabled_optimizers": "[]",
        "task": "classification",
        "mask_input": "",
        "all_classes": "false",
        "couples_rows": "false",
        "combine": "",
        "probabilities": "",
        "box_input": "",
        "heatmap_box": "",
        "heatmap_score": "",
        "detection_scores": "",
        "detection_boxes": "",
        "extent": "[]",
    }


def test_round_trip():
    explained = attach(model(), labels=["a", "b", "c", "d"], preprocess=PREPROCESSING)
    assert Metadata.from_props(props(explained.to_proto())) == explained.metadata
    bare = attach(model())
    assert Metadata.from_props(props(bare.to_proto())) == bare.metadata
    assert bare.metadata.labels is None


def test_a_model_that_is_not_explained():
    assert Metadata.from_props({}) is None
    assert Metadata.from_props({"author": "x", PREFIX + "labels": "[]"}) is None


def test_labels_and_preprocessing_that_the_model_carries_are_kept():
    source = model()
    onnx.helper.set_model_props(
        source,
        {
            PREFIX + "labels": '["a", "b", "c", "d"]',
            PREFIX + "preprocessing": json.dumps(PREPROCESSING),
        },
    )
    metadata = attach(source).metadata
    assert metadata.labels == ["a", "b", "c", "d"]
    assert metadata.preprocessing == PREPROCESSING
    assert attach(source, labels=["1", "2", "3", "4"]).metadata.labels == ["1", "2", "3", "4"]


def test_framework_layer_names_that_the_model_carries():
    source = model()
    carried = Carried(
        layers={
            "features.1": CarriedLayer(tensor="a", kind="ReLU", shape=["batch", 4, 8, 8], layout="NCHW"),
            "features.0": CarriedLayer(tensor="c", kind="Conv2d"),
        },
        framework="pytorch",
    )
    onnx.helper.set_model_props(source, carried.to_props())
    assert attach(source, layer="features.0").metadata.target_tensor == "c"
    assert Carried.from_props(props(source)) == carried


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"labels": "not json"}, "'onnx_gradcam.labels' is not valid JSON"),
        ({"labels": '{"a": 1}'}, "'onnx_gradcam.labels' is not a JSON list of strings"),
        ({"labels": '["a", null, {}]'}, "'onnx_gradcam.labels' is not a JSON list of strings"),
        ({"preprocessing": "[1]"}, "'onnx_gradcam.preprocessing' is not a JSON object"),
        ({"layers": "[1]"}, "'onnx_gradcam.layers' is not a JSON object of layers"),
        ({"layers": '{"a": 1}'}, "'onnx_gradcam.layers' is not a JSON object of layers"),
    ],
)
def test_damaged_entries_of_a_model_that_is_not_explained(entry, message):
    source = model()
    onnx.helper.set_model_props(source, {PREFIX + k: v for k, v in entry.items()})
    with pytest.raises(ModelError, match=message):
        attach(source)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"labels": "["}, "'onnx_gradcam.labels' is not valid JSON"),
        ({"labels": "[1]"}, "'onnx_gradcam.labels' is not a JSON list of strings"),
        ({"preprocessing": "7"}, "'onnx_gradcam.preprocessing' is not a JSON object"),
        ({"single_logit": "maybe"}, "'onnx_gradcam.single_logit' is not valid JSON"),
        ({"single_logit": "2"}, "'onnx_gradcam.single_logit' is not a JSON true or false"),
        ({"disabled_optimizers": "{}"}, "'onnx_gradcam.disabled_optimizers' is not a JSON list of strings"),
    ],
)
def test_damaged_entries_of_an_explained_model(entry, message):
    said = props(attach(model()).to_proto())
    with pytest.raises(ModelError, match=message):
        Metadata.from_props(said | {PREFIX + k: v for k, v in entry.items()})


def test_a_missing_entry_of_an_explained_model():
    said = props(attach(model()).to_proto())
    del said[PREFIX + "target_tensor"]
    with pytest.raises(ModelError, match=r"damaged \('onnx_gradcam.target_tensor' is missing\); start from"):
        Metadata.from_props(said)
    with pytest.raises(ModelError) as caught:
        Metadata.from_props({PREFIX + "heatmap": "heatmap"})
    assert len(str(caught.value)) < 150


# ----- peek ------------------------------------------------------------------


def test_peek_reads_the_entries_of_bytes_and_files(tmp_path):
    explained = attach(model(), labels=["ä", "b", "c", "d"])
    explained.save(tmp_path / "m.onnx")
    said = props(explained.to_proto())
    assert peek(explained.to_proto().SerializeToString()) == said
    assert peek(tmp_path / "m.onnx") == said
    assert peek(str(tmp_path / "m.onnx")) == said


def test_peek_skips_the_graph(tmp_path):
    """Entries behind a graph that no parser would take."""
    entry = onnx.StringStringEntryProto(key="k", value="v" * 300).SerializeToString()
    head = b"\x08\x0a" + b"\x3a\x05" + b"\xff" * 5
    data = head + b"\x72" + bytes([len(entry) & 0x7F | 0x80, len(entry) >> 7]) + entry
    assert peek(data) == {"k": "v" * 300}


def test_peek_of_files_that_are_no_models(tmp_path):
    assert peek(tmp_path / "absent.onnx") == {}
    assert peek(tmp_path) == {}
    assert peek(b"") == {}
    whole = attach(model()).to_proto().SerializeToString()
    for cut in (*range(1, 40), len(whole) // 2, len(whole) - 1):
        peek(whole[:cut])
        peek(whole[-cut:])
    assert peek(b"\xff" * 64) == {}
    assert isinstance(peek(b"plain text, and nothing but text"), dict)
