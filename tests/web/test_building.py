"""The page as files: complete, of the right model, or refused in a sentence. What it does is seen in tests/browser."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from support.graphs import graph, placed_detector
from support.wrong_choices import WRONG
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach
from onnx_gradcam.cli import app
from onnx_gradcam.errors import ExplainError, InputError
from onnx_gradcam.images.decoding import prepare, read_image
from onnx_gradcam.web import building
from onnx_gradcam.web.building import build_page
from onnx_gradcam.web.runtime_files import FILES

RUNTIME = dict.fromkeys(FILES, b"of onnxruntime-web")
CONV = "h = Conv<pads=[1,1,1,1]>(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"
WEIGHTS = {"w": (5, 3, 3, 3), "v": (5, 4)}
PLAIN = {"size": [8, 8], "scale": 1 / 255}


@pytest.fixture
def model(repository):
    return repository / "models" / "shapes.onnx"


def facts(folder) -> dict:
    return json.loads((folder / "site.json").read_text("utf-8"))


def saved(proto, path):
    onnx.save(proto, path)
    return path


def test_the_page_is_complete(model, tmp_path):
    written = build_page(model, tmp_path / "site", runtime=RUNTIME)
    found = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert found == set(written)
    assert {"index.html", "page.js", "model.onnx", "site.json", "ort/LICENSE.txt"} <= found
    assert {f"ort/{name}" for name in FILES} <= found
    assert [p.name for p in tmp_path.iterdir()] == ["site"]
    assert facts(tmp_path / "site")["model"]["bytes"] == (tmp_path / "site" / "model.onnx").stat().st_size


def test_every_file_that_is_referred_to_is_there_and_nothing_lies_elsewhere(model, tmp_path):
    site = tmp_path / "site"
    build_page(model, site, runtime=RUNTIME)
    own = [p for p in site.iterdir() if p.suffix in {".js", ".html", ".css"}]
    for path in own:
        text = path.read_text("utf-8")
        assert not re.search(r"(https?:)?//[a-z]+\.", re.sub(r"^//.*$|^\s*//.*$", "", text, flags=re.MULTILINE)), path
        for name in re.findall(r'(?:from |URL\(|href=|src=)"(?:\./)?([\w./-]+\w)"', text):
            assert (site / name).is_file(), f"{path.name}: {name}"
        assert "innerHTML" not in text
        assert "style=" not in text


def test_title_and_sample_can_be_given(model, tmp_path, repository):
    build_page(model, tmp_path / "plain", runtime=RUNTIME)
    assert (facts(tmp_path / "plain")["title"], facts(tmp_path / "plain")["sample"]) == ("shapes", "sample.jpg")
    sample = repository / "models" / "square_and_ring.png"
    words = ["web", str(model), "-o", str(tmp_path / "site"), "--title", "My shapes", "--sample", str(sample)]
    words += ["--runtime", str(tmp_path / "none")]
    assert "none" in CliRunner().invoke(app, words).stderr
    build_page(model, tmp_path / "site", runtime=RUNTIME, title="My shapes", sample=sample)
    assert facts(tmp_path / "site")["title"] == "My shapes"
    assert (tmp_path / "site" / facts(tmp_path / "site")["sample"]).read_bytes() == sample.read_bytes()
    (tmp_path / "x.png").write_bytes(b"text")
    for wrong, message in (("x.png", "x.png"), ("x.tif", "no file that browsers show"), ("nothing.png", "nothing.png")):
        with pytest.raises(InputError, match=message):
            build_page(model, tmp_path / "other", runtime=RUNTIME, sample=tmp_path / wrong)
    assert not (tmp_path / "other").exists()


def test_the_model_gives_the_heatmaps_of_the_native_one(model, tmp_path, repository):
    build_page(model, tmp_path / "site", runtime=RUNTIME)
    native = Explainer(model)
    image = read_image(repository / "models" / "circle_and_star.png")
    session = onnxruntime.InferenceSession(tmp_path / "site" / "model.onnx", providers=["CPUExecutionProvider"])
    # An ordinary input, which onnxruntime-web can feed.
    assert [i.name for i in session.get_inputs()] == ["image", "target_class"]
    tensor = prepare(image, native.preprocessing)[0][None]
    (heatmap,) = session.run(["heatmap"], {"image": tensor, "target_class": np.array([4])})
    np.testing.assert_array_equal(heatmap[0], native(image, target=4).heatmap)


def test_an_explained_model_serves_as_well(model, tmp_path):
    attach(model, method="gradcam++").save(tmp_path / "explained.onnx")
    build_page(tmp_path / "explained.onnx", tmp_path / "site", runtime=RUNTIME)
    assert facts(tmp_path / "site")["model"]["class"] == "target_class"
    assert "target_class" in [i.name for i in onnx.load(tmp_path / "site" / "model.onnx").graph.input]


def test_weights_in_another_file_come_along(tmp_path):
    proto = graph(CONV, **WEIGHTS)
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    onnx.save(proto, tmp_path / "m.onnx")
    build_page(tmp_path / "m.onnx", tmp_path / "site", runtime=RUNTIME, preprocess=PLAIN)
    data = (tmp_path / "site" / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    want = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    np.testing.assert_allclose(session.run(["y"], {"x": x, "target_class": np.array([0])}), want, atol=1e-6)


def test_levels_are_those_of_the_native_runtime(model, tmp_path):
    build_page(model, tmp_path / "site", runtime=RUNTIME)
    levels = np.array(facts(tmp_path / "site")["preprocessing"]["levels"])
    want = (np.arange(256)[:, None] / 255 - 0.5) / 0.25
    np.testing.assert_array_equal(levels, np.broadcast_to(want, (256, 3)).astype(np.float32))


@pytest.mark.parametrize(
    ("tail", "asked", "way", "probabilities"),
    [
        ("", None, "softmax", True),
        ("", "sigmoid", "sigmoid", True),
        ("", "none", "given", False),
        ("Softmax", None, "given", True),
        ("Sigmoid", None, "given", True),
        ("LogSoftmax", None, "exponential", True),
        ("Softmax", "none", "given", False),
    ],
)
def test_what_scores_become(tmp_path, tail, asked, way, probabilities):
    body = CONV if not tail else CONV.replace("y = Gemm", "z = Gemm") + f" y = {tail}(z)"
    path = saved(graph(body, **WEIGHTS), tmp_path / "m.onnx")
    build_page(path, tmp_path / "site", runtime=RUNTIME, probabilities=asked, preprocess=PLAIN)
    scores = facts(tmp_path / "site")["scores"]
    assert (scores["way"], scores["probabilities"]) == (way, probabilities)


DETECTOR = {"size": [32, 32], "scale": 1 / 255, "mean": [0.45]}


def test_visitors_choose_the_box_of_a_detector(tmp_path, repository):
    path = saved(placed_detector(5), tmp_path / "m.onnx")
    build_page(path, tmp_path / "site", runtime=RUNTIME, preprocess=DETECTOR)
    described = facts(tmp_path / "site")
    assert described["detector"] == {
        "box": "target_box",
        "heatmapBox": "heatmap_box",
        "scores": "detection_scores",
        "corners": "detection_boxes",
        "least": 0.25,
        "overlap": 0.45,
        "empty": "specified axis dim value [0]",
    }
    assert (described["scores"]["way"], described["scores"]["probabilities"]) == ("given", True)
    native = Explainer(path, preprocess=DETECTOR)
    image = read_image(repository / "models" / "circle_and_star.png")
    box = native.boxes(image)[1]
    session = onnxruntime.InferenceSession(tmp_path / "site" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x", "target_class", "target_box"]
    feeds = {"x": prepare(image, native.preprocessing)[0][None]}
    feeds |= {"target_class": np.array([box.target.index]), "target_box": np.array([box.index])}
    (heatmap,) = session.run(["heatmap"], feeds)
    np.testing.assert_array_equal(heatmap[0], native(image, box.target.index, box=box).heatmap)


def test_a_classifier_has_no_boxes(model, tmp_path):
    build_page(model, tmp_path / "site", runtime=RUNTIME)
    assert facts(tmp_path / "site")["detector"] is None


def refusals(tmp_path, model):
    other = graph(
        "q = Add(x, z) " + CONV.replace("Conv<pads=[1,1,1,1]>(x", "Conv<pads=[1,1,1,1]>(q"),
        inputs="float[N,3,8,8] x, float[N,3,8,8] z",
        **WEIGHTS,
    )
    soft = graph(CONV.replace("y = Gemm", "z = Gemm") + " y = Softmax(z)", **WEIGHTS)
    plain = saved(graph(CONV, **WEIGHTS), tmp_path / "m.onnx")
    attach(model, class_input="none", target=1).save(tmp_path / "fixed.onnx")
    attach(model).save(tmp_path / "explained.onnx")
    found = saved(placed_detector(5), tmp_path / "d.onnx")
    attach(found, box=3, preprocess=DETECTOR).save(tmp_path / "box.onnx")
    return {
        "box": (tmp_path / "box.onnx", {}, "'target_box' is 3 by default, but clients choose it here"),
        "probable": (found, {"preprocess": DETECTOR, "probabilities": "sigmoid"}, "boxes are probabilities already"),
        "unknown": (plain, {}, "the model carries no preprocessing; give it with --preprocess"),
        "fixed": (tmp_path / "fixed.onnx", {}, "the class is fixed in this model"),
        "explained": (tmp_path / "explained.onnx", {"layer": "a"}, "explained already; layer cannot be chosen"),
        "other": (saved(other, tmp_path / "o.onnx"), {"preprocess": PLAIN, "image": "x"}, "another input, 'z'"),
        "task": (plain, {"preprocess": PLAIN, "task": "regression"}, "classifiers and detectors .* regression"),
        "given": (
            saved(soft, tmp_path / "s.onnx"),
            {"preprocess": PLAIN, "probabilities": "sigmoid"},
            "ends in softmax and outputs probabilities already",
        ),
        "size": (plain, {"preprocess": {"size": [9, 9]}}, "9x9 .* the model's input is 8x8"),
        "no model": (tmp_path / "none.onnx", {}, "there is no file"),
    }


CASES = ["unknown", "fixed", "box", "probable", "explained", "other", "task", "given", "size", "no model"]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_shown_is_refused(tmp_path, model, case):
    source, choices, message = refusals(tmp_path, model)[case]
    with pytest.raises(ExplainError, match=message):
        build_page(source, tmp_path / "site", runtime=RUNTIME, **choices)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_choice_is_refused_as_everywhere(model, tmp_path, name):
    choices, message = WRONG[name]
    with pytest.raises(ExplainError) as error:
        build_page(model, tmp_path / "site", runtime=RUNTIME, **choices)
    assert message in str(error.value)
    assert not (tmp_path / "site").exists()


def test_class_names_of_the_wrong_number_are_refused(model, tmp_path):
    names = [f"class {i}" for i in range(7)]
    with pytest.raises(ExplainError, match="7 class names for 6 classes; the first, often 'background'"):
        build_page(model, tmp_path / "site", runtime=RUNTIME, labels=names)


def test_a_wrong_word_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="probabilities is 'sigmoyd'; did you mean 'sigmoid'"):
        build_page(model, tmp_path / "site", runtime=RUNTIME, probabilities="sigmoyd")
    assert not (tmp_path / "site").exists()


def test_nothing_is_downloaded_for_a_model_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "runtime_files", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ExplainError, match=r"none\.onnx"):
        build_page(tmp_path / "none.onnx", tmp_path / "site")


def test_a_model_too_large_for_a_browser_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_LARGEST", 10**5)
    with pytest.raises(ExplainError, match=r"the model has 0\.0 GB of weights, and a page can hold at most 1 GB"):
        build_page(model, tmp_path / "site", runtime=RUNTIME)


def test_what_is_there_stays(model, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "mine.txt").write_text("mine")
    with pytest.raises(ExplainError, match="already exists"):
        build_page(model, site, runtime=RUNTIME)
    with pytest.raises(ExplainError, match="already exists"):
        build_page(model, site / "mine.txt", runtime=RUNTIME)
    assert [p.name for p in site.iterdir()] == ["mine.txt"]
    with pytest.raises(ExplainError, match="cannot be made"):
        build_page(model, site / "mine.txt" / "below", runtime=RUNTIME)


def test_an_empty_folder_is_filled(model, tmp_path):
    (tmp_path / "site").mkdir()
    build_page(model, tmp_path / "site", runtime=RUNTIME)
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_gradcam.web.building.runtime_files", lambda *_: RUNTIME)
    arguments = ["web", str(model), "-o", str(tmp_path / "site"), "--probabilities", "sigmoid"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "http://127.0.0.1:8000" in result.output
    assert facts(tmp_path / "site")["scores"]["way"] == "sigmoid"
    assert facts(tmp_path / "site")["labels"][0] == "circle"
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "already exists" in again.output


def test_the_command_takes_detectors(tmp_path, monkeypatch):
    monkeypatch.setattr("onnx_gradcam.web.building.runtime_files", lambda *_: RUNTIME)
    path = saved(placed_detector(5), tmp_path / "m.onnx")
    arguments = ["web", str(path), "-o", str(tmp_path / "site"), "--preprocess", json.dumps(DETECTOR)]
    refused = CliRunner().invoke(app, [*arguments, "--probabilities", "softmax"])
    assert (refused.exit_code, (tmp_path / "site").exists()) == (1, False)
    assert "omit --probabilities" in refused.output
    result = CliRunner().invoke(app, [*arguments, "--boxes", "yolov8"])
    assert result.exit_code == 0, result.output
    assert facts(tmp_path / "site")["detector"]["box"] == "target_box"
