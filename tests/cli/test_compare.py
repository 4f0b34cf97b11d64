"""`compare`: the numbers, the page, the exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_gradcam import Explainer
from onnx_gradcam.runtime.session import available_providers

from .conftest import LABELS, PREPROCESS, refused, small_classifier

METRICS = ["pearson", "spearman", "cosine", "ssim", "overlap", "difference", "shift", "shift_part", "divergence"]


@pytest.fixture
def swapped(here) -> str:
    """The small classifier with red and blue exchanged."""
    model = small_classifier()
    dense = next(i for i in model.graph.initializer if i.name == "dense")
    dense.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(dense)[:, ::-1].copy(), "dense"))
    onnx.save(model, "swapped.onnx")
    return "swapped.onnx"


@pytest.fixture
def compare(call, classifier):
    """Compare with the small classifier, with the right preprocessing."""

    def run(*arguments: object):
        return call("compare", classifier, *arguments, "--preprocess", PREPROCESS)

    return run


def test_a_model_against_itself(compare, classifier, images):
    result = compare(classifier, "--images", images, "--fail-below", 1 - 1e-6)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].endswith("small.onnx #2 against " + str(classifier) + " #1: 3 images, same top-1 class on 3")
    assert lines[1].split() == ["mean", "median", "worst"]
    assert lines[2].split() == ["Pearson", "1", "1", "1"]
    assert len(lines) == 2 + len(METRICS)


def test_json_has_every_image_and_the_sums(compare, classifier, swapped, images, labels):
    result = compare(swapped, "--images", images, "--labels", labels, "--target", "red", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [m["name"] for m in found["models"]] == ["small.onnx", "swapped.onnx"]
    assert found["models"][0] == {
        "name": "small.onnx",
        "file": str(classifier),
        "layer": "active",
        "method": "gradcam",
        "weights": "linear",
        "provider": "CPU",
    }
    assert [i["path"] for i in found["images"]] == [str(images / n) for n in ("a.bmp", "a.png", "b.png")]
    for image in found["images"]:
        assert image["class"]["label"] == "red"
        (agreement,) = image["agreement"]
        assert set(agreement) == {"model", "score", "top", "same_top", "blank", *METRICS}
    # The images are green, red, blue; the second model exchanges red and blue.
    assert [i["agreement"][0]["same_top"] for i in found["images"]] == [True, False, False]
    assert [i["top"]["label"] for i in found["images"]] == ["green", "red", "blue"]
    assert [i["agreement"][0]["top"]["label"] for i in found["images"]] == ["green", "blue", "red"]
    (summary,) = found["summary"]
    assert summary["model"] == "swapped.onnx"
    assert summary["same_top"] == pytest.approx(1 / 3)
    assert summary["images"] == 3
    assert summary["flipped"] == [str(images / n) for n in ("a.png", "b.png")]
    for metric in METRICS:
        values = [i["agreement"][0][metric] for i in found["images"]]
        rising = metric in METRICS[:5]
        assert summary[metric] == {
            "mean": pytest.approx(np.mean(values)),
            "median": pytest.approx(np.median(values)),
            "worst": pytest.approx(min(values) if rising else max(values)),
        }


def test_agreement_below_the_limit_is_exit_code_1(compare, swapped, image):
    result = compare(swapped, "--images", image, "--fail-below", 0.95)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: swapped.onnx: the mean Pearson is ")
    assert ", below 0.95; " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout.startswith("swapped.onnx against small.onnx: 1 image,")
    assert compare(swapped, "--images", image, "--fail-below", -1).exit_code == 0
    low = compare(swapped, "--images", image, "--fail-below", 0.95, "--metric", "overlap").stderr
    assert "the mean IoU of top 20 % is " in low


def test_a_gate_on_the_top_1_class_names_the_images(compare, swapped, images):
    """Red and blue flip, green does not; the mean of the metric alone would not say so."""
    result = compare(swapped, "--images", images, "--fail-below", -1, "--fail-below-top1", 0.5)
    assert result.exit_code == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence == (
        "error: swapped.onnx: the top-1 class is the same on 33.3% of the images, below 50.0%; it differs on a.png, "
        "b.png"
    )
    assert compare(swapped, "--images", images, "--fail-below-top1", 0.33).exit_code == 0


def test_a_gate_on_the_worst_image(compare, swapped, images, image):
    values = {
        record["path"]: record["agreement"][0]["pearson"]
        for record in json.loads(compare(swapped, "--images", images, "--images", image, "--json").stdout)["images"]
    }
    lowest = min(values.values())
    arguments = (swapped, "--images", images, "--images", image, "--fail-worst")
    result = compare(*arguments, lowest + 1e-4)
    assert result.exit_code == 1
    assert f"the Pearson of 1 image is below {lowest + 1e-4:g}: " in result.stderr
    assert compare(*arguments, lowest).exit_code == 0


def test_report_is_written_whole(compare, swapped, images, here):
    result = compare(swapped, "--images", images, "--report", "out/page.html", "--metric", "ssim")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "report: out/page.html"
    text = (here / "out" / "page.html").read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "by SSIM, lowest first" in text
    assert text.count("<article ") == 3
    assert [p.name for p in (here / "out").iterdir()] == ["page.html"]


def test_a_script_in_a_file_name_stays_text(compare, swapped, image, here):
    evil = "<script>alert(1)<!--.png"
    shutil.copy(image, here / evil)
    assert compare(swapped, "--images", evil, "--report", "page.html").exit_code == 0
    text = (here / "page.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;!--.png" in text


def test_a_bad_image_is_reported_and_the_others_go_on(compare, swapped, images):
    (images / "c.png").write_bytes(b"no image")
    result = compare(swapped, "--images", images, "--json", "--report", "page.html")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "c.png' is not an image" in result.stderr
    found = json.loads(result.stdout)
    assert [sorted(i) for i in found["images"]][2:] == [["agreement", "class", "path", "top"], ["error", "path"]]
    assert found["summary"][0]["images"] == 3


def test_no_image_at_all(compare, swapped, here):
    (here / "c.png").write_bytes(b"no image")
    result = compare(swapped, "--images", "c.png", "--json", "--fail-below", 0.5)
    assert result.exit_code == 1
    (summary,) = json.loads(result.stdout)["summary"]
    assert summary["pearson"] is None
    assert summary["same_top"] is None


def test_options_once_for_all_or_once_for_each(call, classifier, image):
    def layers(*options: str) -> list[str]:
        result = call("compare", classifier, classifier, "--images", image, "--json", *options)
        assert result.exit_code == 0, result.output
        return [m["layer"] for m in json.loads(result.stdout)["models"]]

    both = ("--preprocess", PREPROCESS)
    assert layers(*both) == ["active", "active"]
    assert layers(*both, "--layer", "maps") == ["maps", "maps"]
    assert layers(*both, "--layer", "maps", "--layer", "active") == ["maps", "active"]
    assert layers(*both, "--layer", "", "--layer", "maps") == ["active", "maps"]
    assert layers(*both, *both, "--layer", "maps") == ["maps", "maps"]
    said = refused(call("compare", *[classifier] * 3, "--images", image, "--layer", "a", "--layer", "b"), 2)
    assert "--layer: given 2 times for 3 models; give it once for all, or once for each" in said


def test_explained_models_are_compared_as_they_are(call, classifier, image):
    for name, layer in (("a.onnx", "active"), ("b.onnx", "maps")):
        options = ("--layer", layer, "--preprocess", PREPROCESS)
        assert call("attach", classifier, "-o", name, *options).exit_code == 0
    found = json.loads(call("compare", "a.onnx", "b.onnx", "--images", image, "--json").stdout)
    assert [m["layer"] for m in found["models"]] == ["active", "maps"]
    said = refused(call("compare", "a.onnx", "b.onnx", "--images", image, "--layer", "maps"))
    assert said.startswith("error: a.onnx: the model is explained already")


def test_native_maps_are_a_side(compare, classifier, images, here):
    explainer = Explainer(classifier, preprocess=PREPROCESS)
    np.savez("framework.npz", **{p.name: explainer(p).cam for p in images.glob("*.*") if p.suffix != ".txt"})
    result = compare("--native", "framework.npz", "--images", images, "--json", "--report", "page.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["models"][1] == {"name": "framework.npz", "file": "framework.npz", "method": "computed elsewhere"}
    (summary,) = found["summary"]
    assert summary["pearson"]["worst"] == pytest.approx(1, abs=1e-5)
    assert summary["difference"]["worst"] < 1e-5
    assert summary["same_top"] is None
    assert summary["divergence"] is None


def test_names_tell_models_apart(call, classifier, swapped, image, here):
    (here / "other").mkdir()
    shutil.copy(classifier, here / "other" / "swapped.onnx")
    models = ("swapped.onnx", "other/swapped.onnx", classifier)
    found = json.loads(call("compare", *models, "--images", image, "--preprocess", PREPROCESS, "--json").stdout)
    assert [m["name"] for m in found["models"]] == ["swapped.onnx", "other/swapped.onnx", "small.onnx"]
    assert [s["model"] for s in found["summary"]] == ["other/swapped.onnx", "small.onnx"]


def test_labels_of_each_model(call, classifier, swapped, image, labels, here):
    (here / "reversed.txt").write_text("\n".join(LABELS[::-1]), "utf-8")
    options = ("--labels", labels, "--labels", "reversed.txt", "--preprocess", PREPROCESS)
    found = json.loads(call("compare", classifier, swapped, "--images", image, "--json", *options).stdout)
    assert found["images"][0]["agreement"][0]["same_top"] is True
    assert found["summary"][0]["pearson"]["mean"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--images", "squares.png"), "give another model"),
        (("-", "--images", "squares.png"), "standard input"),
        (("swapped.onnx", "--images", "-"), "standard input"),
        (("swapped.onnx", "--images", "squares.png", "--report", "page.png"), "does not end in .html"),
        (("swapped.onnx", "--images", "squares.png", "--fail-below", "2"), "--fail-below"),
        (("swapped.onnx",), "--images"),
        (("swapped.onnx", "--images", "squares.png", "--metric", "shift"), "shift"),
    ],
)
def test_wrong_usage(compare, swapped, image, arguments, words):
    assert words in refused(compare(*arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.onnx", "--images", "squares.png"), "nothing.onnx: "),
        (("swapped.onnx", "--images", "none"), "none"),
        (("swapped.onnx", "--images", "squares.png", "--target", "top3"), "top3 may be several classes"),
        (("swapped.onnx", "--images", "squares.png", "--target", "9"), "small.onnx: class 9 is out of range"),
        (("swapped.onnx", "--images", "squares.png", "--native", "swapped.onnx"), "holds no maps"),
        (("--native", "none.npz", "--images", "squares.png", "--fail-below-top1", "1"), "no top-1 class"),
        (("swapped.onnx", "--images", "squares.png", "--provider", "abacus"), "small.onnx: "),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(compare, swapped, image, here, arguments, words):
    before = sorted(p.name for p in here.iterdir())
    result = compare(*arguments, "--report", "page.html")
    if "none" in arguments:
        assert result.exit_code == 1
        assert "none" in result.stderr
        return
    assert words in refused(result)
    assert sorted(p.name for p in here.iterdir()) == before


def test_a_report_that_cannot_be_written(compare, swapped, image, here):
    (here / "file").write_text("", "utf-8")
    assert "cannot be" in refused(compare(swapped, "--images", image, "--report", "file/page.html"))


def test_weights_beside_a_symbol(compare, image, here):
    (here / "net-symbol.json").write_text("{}", "utf-8")
    said = refused(compare("net-symbol.json", "--images", image))
    assert "net-symbol.json needs its weights in one file net-0000.params beside it, but there is none" in said
    for epoch in ("0001", "0002"):
        (here / f"net-{epoch}.params").write_bytes(b"")
    said = refused(compare("net-symbol.json", "--images", image))
    assert "there are 2 (net-0001.params, net-0002.params)" in said


@pytest.mark.real
def test_a_keras_file_against_its_onnx(real_data):
    """Two exports of one checkpoint, a file of Keras read on the fly and tf2onnx's; and the same in 8 bits."""
    pytest.importorskip("h5py", reason="h5py is not installed")
    models = real_data / "models"
    name = "st_mobilenetv1_050_224_flowers"
    files = (
        models / "onnx_derived" / f"{name}.onnx",
        models / "keras" / f"{name}.h5",
        models / "onnx_derived" / f"{name}_uint8in_qdq.onnx",
    )
    preprocess = [option for one in ("keras-tf", "keras-tf", "none") for option in ("--preprocess", one)]
    arguments = ["--images", f"{real_data}/photos/classic/omnixai_*.jpg", "--json", "--fail-below", "0.95"]
    done = subprocess.run(
        [sys.executable, "-m", "onnx_gradcam", "compare", *files, *preprocess, *arguments],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    keras, quantised = json.loads(done.stdout)["summary"]
    assert keras["same_top"] == 1
    assert keras["difference"]["worst"] < 1e-4
    assert keras["divergence"]["worst"] < 1e-6
    assert 0.98 < quantised["pearson"]["mean"] < 1
    assert quantised["images"] == 3


@pytest.mark.gpu
def test_cpu_against_cuda(call, classifier, images):
    if "cuda" not in available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")
    options = ("--provider", "cpu", "--provider", "cuda", "--preprocess", PREPROCESS)
    result = call("compare", classifier, classifier, "--images", images, *options, "--fail-below", 0.999)
    if "did not start" in result.stderr:
        pytest.skip("there is no CUDA device")
    assert result.exit_code == 0, result.stderr
