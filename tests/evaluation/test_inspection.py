"""`inspect` as a library function: typed answers, refusals as values, bad options as errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.graphs import graph, weight
from typer.testing import CliRunner

from onnx_gradcam import attach
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, ModelError
from onnx_gradcam.evaluation.inspection import inspect
from onnx_gradcam.images.decoding import read_image
from onnx_gradcam.options import Options


def model(**more):
    return graph(
        "a = Conv(x, K, k) b = Relu(a) p = GlobalAveragePool(b) f = Flatten(p) l = MatMul(f, W) y = Softmax(l)",
        inputs="float[N,3,16,16] x",
        outputs="float[N,4] y",
        K=weight("K", 6, 3, 3, 3),
        k=weight("k", 6),
        W=weight("W", 6, 4),
        **more,
    )


def test_decisions_are_typed():
    inspection = inspect(model())
    assert inspection.refusal == ""
    assert (inspection.score.tensor, inspection.score.classes, inspection.score.activation) == ("l", 4, "softmax")
    decisions = inspection.decisions
    assert (decisions.layer.tensor, decisions.layer.operator, decisions.layer.grid) == ("b", "Relu", [14, 14])
    assert [candidate.tensor for candidate in decisions.candidates] == ["a", "b"]
    assert (decisions.method, decisions.method_reason, decisions.weights) == ("gradcam", "", "linear")
    assert json.loads(json.dumps(inspection.to_dict()))["layer"]["reason"] == decisions.layer_reason
    assert repr(inspection) == "<Inspection: gradcam at 'b', one of 2 candidates>"


def test_options_and_their_fields_are_the_same():
    one = inspect(model(), Options(layer="a", score="output"))
    other = inspect(model(), layer="a", score="output")
    assert one == other
    assert one.decisions.layer.tensor == "a"
    assert one.score.tensor == "y"


def test_a_class_to_compare_with_by_name():
    assert inspect(model(), against="cat", labels=["dog", "cat", "hen", "cow"]).refusal == ""
    assert "no class is called 'cta'" in inspect(model(), against="cta", labels=["dog", "cat", "hen", "cow"]).refusal


def test_a_refusal_is_a_value():
    inspection = inspect(model(), layer="nope")
    assert "no layer 'nope'" in inspection.refusal
    assert repr(inspection) == f"<Inspection: refused: {inspection.refusal}>"
    assert inspection.decisions is None
    assert inspection.score.tensor == "l"
    unknown = inspect(model(), output=["z"])
    assert "no output 'z'" in unknown.refusal
    assert unknown.score is None
    assert "layer" not in unknown.to_dict()


def test_an_explained_model():
    inspection = inspect(attach(model()).to_proto())
    assert inspection.explained.target_tensor == "b"
    assert inspection.decisions is None
    assert inspection.to_dict()["explained"]["method"] == "gradcam"
    assert repr(inspection) == "<Inspection: explained with gradcam>"
    assert inspection.to_dict()["refusal"] is None


@pytest.mark.parametrize(
    ("choices", "words"),
    [({"weights": "lin"}, "weights is 'lin'"), ({"lay": "x"}, "no option 'lay'"), ({"box": -1}, "box is -1")],
)
def test_bad_options_are_errors(choices, words):
    with pytest.raises(InputError, match=words):
        inspect(model(), **choices)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        inspect(tmp_path / "m.onnx")


PLAIN = {"resize": "stretch", "color": "bgr", "scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_a_photo_as_the_model_takes_it():
    photo = np.zeros((8, 8, 3), np.uint8)
    photo[:4] = (255, 51, 0)  # red and some green in the upper half
    seen = inspect(model(), photo=photo, preprocess=PLAIN).seen
    assert (seen.dtype, seen.shape) == ("float32", [3, 16, 16])
    blue, green, red = (np.array(pair) for pair in ((0, 0), (0.2, 0), (1, 0)))
    ranges = [(blue - 0.5) / 0.2, (green - 0.4) / 0.3, (red - 0.3) / 0.4]
    assert (seen.low, seen.high) == (
        pytest.approx(min(r.min() for r in ranges)),
        pytest.approx(max(r.max() for r in ranges)),
    )
    # The rows between the halves are interpolated, as many above as below.
    np.testing.assert_allclose(seen.means, [r.mean() for r in ranges], atol=1e-2)
    assert seen.image.shape == (16, 16, 3)
    np.testing.assert_array_equal(seen.image[0, 0], (255, 51, 0))
    listed = json.loads(json.dumps(inspect(model(), photo=photo, preprocess=PLAIN).to_dict()))["seen"]
    assert set(listed) == {"dtype", "shape", "low", "high", "means", "deviations"}
    explained = attach(model(), preprocess=PLAIN)
    np.testing.assert_array_equal(inspect(explained, photo=photo).seen.image, seen.image)


def test_a_photo_needs_preprocessing():
    with pytest.raises(InputError, match=r"the model carries no preprocessing, .*; give --preprocess"):
        inspect(model(), photo=np.zeros((8, 8, 3), np.uint8))
    assert "seen" not in inspect(model()).to_dict()


def test_the_command_says_and_writes_what_the_model_sees(tmp_path, repository):
    source, photo = repository / "models/shapes.onnx", repository / "models/circle_and_star.png"
    out = tmp_path / "seen.png"
    result = CliRunner().invoke(app, ["inspect", str(source), str(photo), "-o", str(out)])
    assert result.exit_code == 0, result.stderr
    assert "as the model takes it: float32 [3, 96, 96], from " in result.stdout
    np.testing.assert_array_equal(read_image(out), inspect(source, photo=photo).seen.image)
    refused = CliRunner().invoke(app, ["inspect", str(source), "-o", str(out)])
    assert refused.exit_code == 2
    assert "name the image" in refused.stderr
