"""Every benchmark script runs, at sizes too small to measure speed, and reports what it should."""

import importlib
import json
import re

import cv2
import numpy as np
import onnx
import pytest


def test_latency_measures_both_sides(capsys):
    importlib.import_module("latency").main(["--quick", "--no-torch"])
    text = capsys.readouterr().out
    rows = re.findall(r"\| squeezenet1_1 \| (\d) \| linear \| ([\d.]+) \(", text)
    assert [batch for batch, _ in rows] == ["1", "2"]
    assert all(float(ratio) > 0 for _, ratio in rows)
    assert re.search(r"attach ResNet-50 from a file \| \d\.\d\d s", text)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # PyTorch's, torchvision's and the tools' own
def test_latency_compares_with_pytorchs_tools_and_their_maps_agree(capsys):
    for package in ("torch", "captum"):
        pytest.importorskip(package)
    importlib.import_module("latency").main(["--quick"])
    rows = re.findall(r"\| squeezenet1_1 .* \| ([\d.]+) \| ([\d.]+) \| (\S+) \|\n", capsys.readouterr().out)
    if not rows:
        pytest.skip("one of PyTorch's tools is not installed")
    assert all(float(difference) < 1e-4 for *_, difference in rows)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # PyTorch's, torchvision's and the tools' own
def test_methods_of_many_runs_are_measured_beside_others(capsys):
    for package in ("torch", "captum", "pytorch_grad_cam"):
        pytest.importorskip(package)
    importlib.import_module("rivals").main(["--quick", "--networks", "squeezenet1_1", "--runs", "1"])
    text = capsys.readouterr().out
    rows = re.findall(r"\| squeezenet1_1 \| ([a-z-]+) \| \d+ \| (\S+) \| \d+ \| ([\d.]+) ", text)
    names = [("integrated-gradients", "captum"), ("smoothgrad", "captum"), ("scorecam", "pytorch-grad-cam")]
    assert [row[:2] for row in rows] == names
    assert all(float(ratio) > 0 for *_, ratio in rows)
    assert re.search(r"\| squeezenet1_1 \| \d+\.\d s \| \d+ \|", text)


def test_input_gradients_of_every_profile_are_measured_and_agree(capsys):
    importlib.import_module("input_gradient").main(["--quick", "--no-torch", "--operators"])
    text = capsys.readouterr().out
    rows = dict(re.findall(r"\| mobilenet_v2 \| (portable|cpu) \| [\d.]+ \(.* \| (\S+) \|\n", text))
    assert rows["portable"] == "0e+00"
    assert float(rows["cpu"]) < 1e-4
    assert re.search(r"\| mobilenet_v2 \| cpu \| \d+\.\d ms \| .*HardSigmoid \(backward\)", text)


def test_the_check_of_a_graphics_card_runs_on_the_processor(capsys):
    script = importlib.import_module("gpu")
    assert script.main(["--provider", "cpu", "--quick", "--networks", "squeezenet1_1"]) == 0
    text = capsys.readouterr().out
    rows = re.findall(r"\| squeezenet1_1 \| (\w+) \| (\w+) \| 0e\+00 \| 0e\+00 \| (\S+) \| none \|", text)
    assert [row[:2] for row in rows] == [(m, p) for m in ("gradcam", "gradient") for p in ("portable", "cuda")]
    assert all(0 < float(half) < 0.5 for *_, half in rows)
    assert re.search(r"\| squeezenet1_1 \| 1 \| [\d.]+ \(", text)


def test_a_large_model_keeps_its_weights_beside_it_and_runs_from_both_places(tmp_path, capsys):
    script = importlib.import_module("large_model")
    script.main(["--gigabytes", "0.0005", "--width", "32", "--folder", str(tmp_path)])
    text = capsys.readouterr().out
    assert re.search(r"\| attach \| \d+\.\d\d s \| \d+ MB \|", text)
    runs = re.findall(r"\| the \S+ folder \| (\S+) \| \[1, 224, 224\] \| (\S+) \|", text)
    assert len(runs) == 2
    assert all(float(difference) < 1e-5 and 0.5 < float(top) <= 1 for difference, top in runs)
    assert not list(tmp_path.iterdir())


def test_the_large_models_weights_are_stored_in_another_file(tmp_path):
    size = importlib.import_module("large_model").write_model(tmp_path / "m.onnx", 0.0005, 32)
    assert (tmp_path / "m.data").stat().st_size == size >= 0.0005 * 2**30
    assert (tmp_path / "m.onnx").stat().st_size < 20_000
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)


# ----- the pointing game -----------------------------------------------------


@pytest.fixture
def corner_model(tmp_path):
    """A classifier whose class 1 is how red, class 0 how blue the image is, at a resolution of 8x8."""
    weights = np.zeros((2, 3, 8, 8), np.float32)
    weights[0, 2], weights[1, 0] = 1, 1
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["x", "w"], ["maps"], strides=[8, 8]),
            onnx.helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            onnx.helper.make_node("Flatten", ["pooled"], ["y"]),
        ],
        "corner",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 64, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "corner.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def boxes(tmp_path):
    """An image of 128x64 with a red patch in its upper right corner, and boxes that are right and wrong of it."""
    image = np.zeros((64, 128, 3), np.uint8)
    image[0:16, 112:128, 2] = 255  # OpenCV writes blue first
    cv2.imwrite(str(tmp_path / "red.png"), image)
    objects = {
        "right": {"boxes": [[100, 0, 127, 20]], "imagenet_candidates": [1]},
        "wrong": {"boxes": [[0, 40, 30, 63], [60, 28, 70, 36]], "imagenet_candidates": [1]},
        "unranked": {"boxes": [[100, 0, 127, 20]], "imagenet_candidates": [0]},
        "person": {"boxes": [[0, 0, 127, 63]], "imagenet_candidates": []},
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": {"red": {"file": "red.png", "objects": objects}}}))
    return path


def test_the_pointing_game_counts_hits_chance_and_the_middle(corner_model, boxes, tmp_path, capsys):
    preprocess = '{"size": [64, 64], "resize": "stretch", "scale": 0.00392156862745098}'
    arguments = [str(corner_model), "--boxes", str(boxes), "--images", str(tmp_path), "--preprocess", preprocess]
    importlib.import_module("pointing_game").main([*arguments, "--rank", "1"])
    (all_objects,) = re.findall(r"\| all \| (.*) \|", capsys.readouterr().out)
    count, hits, area, middle, _, blank = all_objects.split(" | ")
    assert (count, hits, middle, blank) == ("2", "50.0% (1)", "50.0% (1)", "0")
    pixels = 28 * 21, 31 * 24 + 11 * 9
    assert area == f"{sum(pixels) / 2 / (64 * 128):.1%}"


@pytest.fixture
def voc(tmp_path_factory):
    """A folder with a PASCAL VOC file for the image: the same box for a sofa, a dog, a second sofa and a unicorn."""
    folder = tmp_path_factory.mktemp("voc")
    corners = "<bndbox><xmin>101</xmin><ymin>1</ymin><xmax>128</xmax><ymax>21</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{corners}</object>" for name in ("sofa", "dog", "sofa", "unicorn"))
    (folder / "red.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


@pytest.mark.usefixtures("boxes")
def test_the_pointing_game_reads_the_boxes_of_pascal_voc(voc, tmp_path):
    games = importlib.import_module("task_localisation").read_voc(voc, tmp_path, ["dog", "couch"])
    annotations = {game.annotation.label: game.annotation for game in games}
    assert {label: list(annotation.classes) for label, annotation in annotations.items()} == {"sofa": [1], "dog": [0]}
    assert annotations["sofa"].boxes == [(100, 0, 127, 20)] * 2


@pytest.mark.usefixtures("boxes")
def test_the_pointing_game_explains_only_the_classes_that_the_model_finds(voc, corner_model, tmp_path):
    script = importlib.import_module("task_localisation")
    games = list(script.read_voc(voc, tmp_path, ["dog", "couch"]))
    preprocess = {"size": [64, 64], "resize": "stretch", "scale": 1 / 255}
    _, results = script.measure(corner_model, games, 0.01, preprocess=preprocess)
    assert [result.hit for result in results] == [True]


# ----- the models ------------------------------------------------------------


@pytest.mark.real
def test_the_page_of_trained_models_says_what_was_checked(real_data, tmp_path, capsys):
    page = tmp_path / "models.md"
    names = ["resnet20_cifar10_torchscript", "mnist8_cntk"]
    code = importlib.import_module("model_zoo").main([str(real_data), "--write", str(page), "--only", *names])
    text = page.read_text()
    assert code == 0
    assert text.strip() == capsys.readouterr().out.strip()
    assert "2 of 2 pass" in text
    linear, finite = re.search(r"`resnet20.* \| 3 of 3 \| \S+ \| (\S+) \| (\S+) \|", text).groups()
    assert float(linear) < 1e-4
    assert float(finite) < 1e-2
    assert re.search(r"`mnist8_cntk` \| .* \| gradient \| 3 of 3 \| \S+ \| – \| – \|", text)


@pytest.mark.real
def test_a_model_whose_recorded_class_is_another_is_reported(real_data):
    script = importlib.import_module("model_zoo")
    manifest = json.loads((real_data / "MANIFEST.json").read_text())
    entry = next(e for e in manifest["models"] if e["name"] == "mnist8_cntk")
    for classes in entry["top3"].values():
        classes[0][0] = 9
    finding = script.check(entry, real_data)
    assert finding.right == 0
    assert "the top-1 class of 3 images is another" in finding.trouble


def test_methods_of_many_runs_are_counted(capsys):
    names = ["smoothgrad", "scorecam", "ablationcam", "occlusion"]
    importlib.import_module("many_runs").main(["--quick", "--network", "squeezenet1_1", "--methods", *names])
    text = capsys.readouterr().out
    rows = {name: (model, head) for name, model, head in re.findall(r"\| `(\w+)` \| (\d+) \| (\d*) \| [\d.]+ s", text)}
    # One or two runs of the image itself, and then 50 noisy copies, 1000 channels, none, 15 x 15 windows.
    assert rows == {
        "smoothgrad": ("51", ""),
        "scorecam": ("1002", ""),
        "ablationcam": ("2", "1001"),
        "occlusion": ("227", ""),
    }


def test_every_planted_fault_still_finds_its_place():
    script = importlib.import_module("mutate_rules")
    assert len(script.FAULTS) >= 30
    for fault in script.FAULTS:
        text = (script.ROOT / "onnx_gradcam" / fault.file).read_text(encoding="utf-8")
        assert text.count(fault.old) == 1, f"{fault.description} in {fault.file}"
        assert all((script.ROOT / tests).is_file() for tests in script.tests_of(fault.file)), fault.file


def test_planted_shortcuts_and_drift_are_found(capsys):
    importlib.import_module("planted").main(["--trials", "2"])
    rows = re.findall(r"\| ([a-z ]+) \| ([\d.]+) \| ([\d.]+)% \| ([\d.]+)% \|", capsys.readouterr().out)
    assert len(rows) == 4
    assert {tuple(figures) for _, *figures in rows} == {("1.000", "100.0", "0.0")}


def test_a_ranking_goes_on_where_it_stopped(tmp_path, capsys):
    planted, script = importlib.import_module("planted"), importlib.import_module("ranking")
    onnx.save(planted.model(planted.RED), tmp_path / "m.onnx")
    for i, image in enumerate(planted.images(np.random.default_rng(0), 4)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image[:, :, ::-1])
    options = ["--images", str(tmp_path), "--preprocess", json.dumps(planted.PREPROCESS), "--steps", "4"]
    options += ["--methods", "gradcam,activationmap,saliency", "--metrics", "insertion,random_logit"]
    results = tmp_path / "r.jsonl"
    texts = []
    for count in ("2", "4", "4"):
        script.main([str(tmp_path / "m.onnx"), *options, "--results", str(results), "--count", count])
        texts.append(capsys.readouterr().out)
        assert len(results.read_text().splitlines()) == int(count)
    assert texts[1] == texts[2] != texts[0]
    assert re.search(r"\| gradcam \| [\d.]+ \| [\d.]+ \|", texts[1])
    assert "4 images; Kendall's W of 2 metrics" in texts[1]
