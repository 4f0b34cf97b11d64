"""`attach`: what is written, what is said, what is checked."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import pytest
from support.graphs import graph

from onnx_gradcam.metadata import Metadata, peek
from onnx_gradcam.runtime import attaching

from .conftest import LABELS, PREPROCESS, refused, small_classifier


def feeds(rows: int = 2) -> dict:
    return {"image": np.random.default_rng(3).random((rows, 3, 16, 16), np.float32)}


def session(path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_writes_a_model_with_the_original_outputs_and_says_what_it_did(call, classifier, here):
    result = call("attach", classifier, "-o", "e.onnx")
    assert result.exit_code == 0, result.stderr
    assert [p.name for p in here.iterdir()] == ["e.onnx"]
    (original,) = session(classifier).run(None, feeds())
    scores, heatmap, cam, classes = session("e.onnx").run(None, feeds())
    np.testing.assert_allclose(scores, original, rtol=1e-5)
    assert heatmap.shape == cam.shape == (2, 16, 16)
    np.testing.assert_array_equal(classes, original.argmax(1))
    lines = result.stdout.splitlines()
    assert (
        lines[0] == "e.onnx: the model with the outputs heatmap [N, 16, 16], cam [N, 16, 16], heatmap_class [N] added."
    )
    assert lines[1].startswith("Layer 'active': the last tensor with spatial extent (16x16) on every path")
    assert (
        lines[2] == "Method gradcam, weights linear, score 'logits'; the class is chosen by the input 'target_class'."
    )
    assert lines[3] == "The model stores no class names or preprocessing."
    assert lines[4].startswith("Checked against the original on a random input")


def test_an_older_opset_is_raised_and_said(call, classifier, here):
    old = onnx.version_converter.convert_version(onnx.load(classifier), 15)
    onnx.save(old, "old.onnx")
    result = call("attach", "old.onnx", "-o", "e.onnx")
    assert "Raised from opset 15 to 18, in which the explanation is written." in result.stdout.splitlines()
    assert Metadata.of("e.onnx").raised_from == 15
    assert "e.onnx: opset ai.onnx 18 (raised from 15), written by" in call("inspect", "e.onnx").stdout
    assert "Raised" not in call("attach", classifier, "-o", "new.onnx").stdout
    assert Metadata.of("new.onnx").raised_from is None
    model = onnx.load("e.onnx")
    next(p for p in model.metadata_props if p.key == "onnx_gradcam.raised_from").value = '"12"'
    onnx.save(model, "edited.onnx")
    assert "is not a JSON whole number" in refused(call("inspect", "edited.onnx"))


def test_the_profile_is_written_down_and_the_map_is_the_same(call, classifier, here):
    cams = []
    for profile in ("portable", "cpu"):
        result = call("attach", classifier, "-o", "e.onnx", "--weights", "gradient", "--profile", profile)
        assert result.exit_code == 0, result.stderr
        assert peek("e.onnx")["onnx_gradcam.profile"] == profile
        cams.append(session("e.onnx").run(["cam"], feeds())[0])
    np.testing.assert_allclose(cams[0], cams[1], rtol=1e-5, atol=1e-6)


def test_the_model_is_written_for_an_engine(call, classifier, here):
    result = call("attach", classifier, "-o", "e.onnx", "--weights", "gradient", "--for", "openvino")
    assert result.exit_code == 0, result.stderr
    assert "For OpenVINO on the CPU (tested in CI, 2026.4.1), with profile openvino; set INFERENCE" in result.stdout
    assert peek("e.onnx")["onnx_gradcam.profile"] == "openvino"
    assert "target_class" in [i.name for i in session("e.onnx").get_inputs()]  # required
    result = call("attach", classifier, "-o", "e.onnx", "--for", "openvino", "--class-input", "optional")
    assert result.exit_code == 0, result.stderr
    assert [i.name for i in session("e.onnx").get_inputs()] == ["image"]


def test_an_engine_that_ignores_the_class_takes_it_from_the_option(call, classifier, labels):
    result = call("attach", classifier, "-o", "e.onnx", "--for", "opencv4", "--target", "2")
    assert result.exit_code == 0, result.stderr
    assert session("e.onnx").run(["heatmap_class"], feeds())[0].tolist() == [2, 2]
    node = call("attach", classifier, "-o", "f.onnx", "--for", "node", "--target", "2")
    assert "--class-input none" in refused(node, code=2)
    assert "did you mean 'openvino'?" in refused(call("attach", classifier, "-o", "f.onnx", "--for", "opnvino"))


def test_the_type_of_the_gradient_is_written_down(call, classifier, here):
    for given, said in (((), "model"), (("--grad-dtype", "float32"), "float32")):
        assert call("attach", classifier, "-o", "e.onnx", *given).exit_code == 0
        assert peek("e.onnx")["onnx_gradcam.grad_dtype"] == said
    assert call("attach", classifier, "-o", "e.onnx", "--grad-dtype", "float64").exit_code == 2


def test_class_that_is_fixed_by_name(call, classifier, labels):
    result = call("attach", classifier, "-o", "e.onnx", "--class-input", "none", "--target", "Blue", "--labels", labels)
    assert "class 'Blue' is explained" in result.stdout
    runnable = session("e.onnx")
    assert [i.name for i in runnable.get_inputs()] == ["image"]
    assert runnable.run(["heatmap_class"], feeds())[0].tolist() == [2, 2]
    # the names that the first one carries serve as well
    onnx_names = onnx.load("e.onnx").metadata_props
    assert any(p.key == "onnx_gradcam.labels" and "blue" in p.value for p in onnx_names)


def test_class_that_is_fixed_by_number_and_not_there(call, classifier, here):
    sentence = refused(call("attach", classifier, "-o", "e.onnx", "--class-input", "none", "--target", "3"))
    assert "class 3 is out of range" in sentence
    assert not list(here.iterdir())


def test_class_input_required(call, classifier):
    assert call("attach", classifier, "-o", "e.onnx", "--class-input", "required").exit_code == 0
    runnable = session("e.onnx")
    assert [i.name for i in runnable.get_inputs()] == ["image", "target_class"]
    classes = runnable.run(["heatmap_class"], {**feeds(), "target_class": np.array([1, 0])})[0]
    assert classes.tolist() == [1, 0]


def test_expose_activation(call, classifier):
    result = call("attach", classifier, "-o", "e.onnx", "--expose-activation")
    assert "Activation maps: output 'active' [N, 4, 16, 16]." in result.stdout
    assert session("e.onnx").run(["active"], feeds())[0].shape == (2, 4, 16, 16)


def test_stdin_to_stdout(call, classifier, here):
    result = call("attach", "-", "-o", "-", stdin=classifier.read_bytes())
    assert result.exit_code == 0
    model = onnx.load_model_from_string(result.stdout_bytes)
    assert [o.name for o in model.graph.output] == ["scores", "heatmap", "cam", "heatmap_class"]
    assert not list(here.iterdir())


def test_preprocessing_that_contradicts_the_model_is_refused_now(call, classifier, here):
    sentence = refused(call("attach", classifier, "-o", "e.onnx", "--preprocess", '{"size": [8, 8]}'))
    assert "8x8" in sentence
    assert "16x16" in sentence
    assert not list(here.iterdir())


def test_external_weights_are_checked_and_copied(call, here):
    (here / "from").mkdir()
    (here / "to").mkdir()
    path = here / "from" / "m.onnx"
    model = graph(
        "c = Conv(image, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) scores = Gemm(f, W)",
        inputs="float[N,3,16,16] image",
        outputs="float[N,3] scores",
        K=(16, 3, 3, 3),
        W=(16, 3),
    )
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    result = call("attach", path, "-o", "to/e.onnx")
    assert result.exit_code == 0, result.stderr
    assert "Checked against the original" in result.stdout
    scores = session(here / "to" / "e.onnx").run(["scores"], feeds())[0]
    np.testing.assert_allclose(scores, session(path).run(None, feeds())[0], rtol=1e-5)
    assert "another file" in refused(call("attach", path, "-o", "-"))


class Wrong(attaching.Session):
    """A session that spoils the scores of explained models, as a wrong kernel would."""

    def run(self, given):
        results = super().run(given)
        if "heatmap" in results:
            results["scores"] = results["scores"] * np.float32(1 + 3e-5)
        return results


def test_a_model_whose_outputs_changed_is_not_written(call, classifier, here, monkeypatch):
    monkeypatch.setattr(attaching, "Session", Wrong)
    sentence = refused(call("attach", classifier, "-o", "e.onnx"))
    assert "output 'scores' differs" in sentence
    assert "nothing was written" in sentence
    assert "--no-check" in sentence
    assert not list(here.iterdir())
    assert call("attach", classifier, "-o", "e.onnx", "--no-check").exit_code == 0
    assert (here / "e.onnx").exists()


def test_an_original_that_does_not_run_is_said_to_be_the_one(call, here):
    model = small_classifier()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Unknown", "com.acme"
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    active = onnx.helper.make_tensor_value_info("active", onnx.TensorProto.FLOAT, ["N", 4, 16, 16])
    model.graph.value_info.append(active)
    onnx.save(model, here / "m.onnx")
    sentence = refused(call("attach", "m.onnx", "-o", "e.onnx"))
    assert sentence.startswith("error: the original does not run: ONNX Runtime cannot load the model: ")
    assert "com.acme" in sentence
    assert sentence.endswith("nothing was written (--no-check writes it anyway)\n")
    assert not (here / "e.onnx").exists()
    assert call("attach", "m.onnx", "-o", "e.onnx", "--no-check").exit_code == 0


def test_large_weights_are_checked_on_request_only(call, classifier, here, monkeypatch):
    monkeypatch.setattr(attaching, "_LARGEST_CHECKED", 100)
    monkeypatch.setattr(attaching, "Session", Wrong)
    result = call("attach", classifier, "-o", "e.onnx")
    assert result.exit_code == 0
    assert "warning: not checked against the original" in result.stderr
    assert "Checked" not in result.stdout
    assert "differs" in refused(call("attach", classifier, "-o", "f.onnx", "--check"))


def test_a_folder_that_is_not_there(call, classifier, here):
    sentence = refused(call("attach", classifier, "-o", "nowhere/e.onnx"))
    assert "nowhere/e.onnx' cannot be written" in sentence
    assert not list(here.iterdir())


def test_what_is_carried(call, classifier, labels):
    result = call("attach", classifier, "-o", "e.onnx", "--labels", labels, "--preprocess", PREPROCESS)
    assert "Stored in the model: class names and preprocessing." in result.stdout
    facts = Metadata.from_props(peek("e.onnx"))
    assert facts.labels == LABELS
    assert facts.preprocessing["scale"] == pytest.approx(1 / 255)


@pytest.mark.real
def test_real_float16_with_its_own_tolerance(call, real_data, here):
    model = real_data / "models" / "onnx_native" / "squeezenet1_1_imagenet_fp16.onnx"
    result = call("attach", model, "-o", "e.onnx")
    assert result.exit_code == 0, result.stderr
    difference = float(result.stdout.rsplit(" ", 1)[1].rstrip(".\n"))
    assert 1e-5 < difference < 2e-3


def test_an_image_is_not_replaced_by_a_model(call, classifier, image):
    before = image.read_bytes()
    message = refused(call("attach", classifier, "-o", image))
    assert "exists and is not a model by its ending; remove it, or choose a name that ends in .onnx" in message
    assert image.read_bytes() == before


@pytest.mark.parametrize(("number", "words"), [(np.nan, "is NaN"), (0, "is zero everywhere")])
def test_maps_that_show_nothing_are_warned_of(number, words, call, here):
    model = small_classifier()
    (dense,) = (t for t in model.graph.initializer if t.name == "dense")
    dense.CopyFrom(onnx.numpy_helper.from_array(np.full((4, 3), number, np.float32), "dense"))
    onnx.save(model, "m.onnx")
    result = call("attach", "m.onnx", "-o", "e.onnx")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: the ")
    assert words in warning
