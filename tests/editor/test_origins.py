"""What a model file and its neighbours say: read, checked against the model, and said where it is not used."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach, export
from onnx_gradcam.cli import app
from onnx_gradcam.editor.origins import read_statements
from onnx_gradcam.editor.planning import make_plan
from onnx_gradcam.errors import TargetError
from onnx_gradcam.evaluation.inspection import inspect
from onnx_gradcam.images.preprocessing import parse_preprocessing

BODY = "h = Conv(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, v)"
NAMES = ["cat", "dog", "hen", "owl"]
ULTRALYTICS = {
    "author": "Ultralytics", "task": "classify", "imgsz": "[32, 32]", "stride": "1", "channels": "3",
    "names": "{0: 'cat', 1: 'dog', 2: 'hen', 3: 'owl'}",
}  # fmt: skip
CONFIG = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "id2label": dict(enumerate(NAMES))}
STEPS = {
    "size": {"height": 32, "width": 32}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
TIMM = {
    "architecture": "resnet18", "num_classes": 4, "label_names": ["n1", "n2", "n3", "n4"],
    "label_descriptions": dict(zip(["n1", "n2", "n3", "n4"], NAMES, strict=True)),
    "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.875, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A model of four classes with metadata, and files beside it."""

    def write(props=None, *, folder="", **files):
        proto = graph(BODY, inputs="float[N,3,32,32] x", w=(6, 3, 3, 3), v=(6, 4))
        helper.set_model_props(proto, props or {})
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "model.onnx"
        onnx.save(proto, path)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return path

    return write


class TestUltralytics:
    def test_names_size_task_and_geometry(self, saved):
        path = saved(ULTRALYTICS)
        inspection = inspect(path)
        assert inspection.labels == NAMES
        assert inspection.preprocessing == {"size": [32, 32], "scale": 1 / 255, "resize": "short_crop", "short": 32}
        assert inspection.origins == dict.fromkeys(("labels", "preprocessing", "task"), "Ultralytics metadata")
        assert inspection.stated == {"Ultralytics metadata": {"task": "classify", "imgsz": [32, 32], "stride": 1}}
        assert inspection.decisions.warnings == []
        explainer = Explainer(path)
        assert (explainer.labels, explainer.preprocessing.short, explainer.preprocessing.size) == (NAMES, 32, (32, 32))

    @pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
    def test_detectors_are_letterboxed(self, task):
        said = read_statements({**ULTRALYTICS, "task": task}, None)
        assert said.preprocessing == {"size": [32, 32], "scale": 1 / 255, "resize": "letterbox"}
        assert said.task == "detection"

    def test_yolov5_has_names_and_stride_only(self):
        said = read_statements({"names": "['a', 'b']", "stride": "32"}, None)
        assert (said.labels, said.preprocessing, said.task) == (["a", "b"], None, "")

    def test_another_task_is_said(self, saved):
        warnings = attach(saved({**ULTRALYTICS, "task": "detect"})).warnings
        assert any("says that the model does detection, but it is explained as classification" in w for w in warnings)
        assert not attach(saved({**ULTRALYTICS, "task": "detect"}), task="classification").warnings

    def test_a_wrong_count_of_names_is_said_and_not_used(self, saved):
        path = saved({**ULTRALYTICS, "names": "{0: 'cat', 1: 'dog'}"})
        explained = attach(path)
        assert explained.metadata.labels is None
        (warning,) = explained.warnings
        assert warning.startswith("the class names of Ultralytics metadata are not used: there are 2 class names for 4")
        with pytest.raises(TargetError, match="class 'dog' cannot be looked up without class names"):
            attach(path, class_input="none", target="dog")
        assert attach(path, labels=NAMES).metadata.labels == NAMES

    def test_a_contradicting_size_is_said_and_not_used(self, saved):
        explained = attach(saved({**ULTRALYTICS, "imgsz": "[64, 64]"}))
        assert explained.metadata.preprocessing is None
        (warning,) = explained.warnings
        assert "preprocessing of Ultralytics metadata is not used: the preprocessing makes images of 64x64" in warning

    @pytest.mark.parametrize(
        ("key", "text"),
        [
            ("names", "{0: 1}"), ("names", "{-1: 'a'}"), ("names", "__import__('os').getcwd()"), ("names", "[" * 9000),
            ("names", "3"), ("names", "'" + "a" * 2**21 + "'"), ("imgsz", "[0, 32]"), ("imgsz", "{1, 2}"),
            ("imgsz", "[99999999, 1]"), ("imgsz", "[True, 2]"), ("stride", "'x'"), ("channels", "[3"),
        ],
    )  # fmt: skip
    def test_nonsense_is_said(self, saved, key, text):
        path = saved({**ULTRALYTICS, key: text})
        (remark,) = inspect(path).remarks
        assert remark.startswith(f"Ultralytics metadata: its {key} cannot be right")
        assert attach(path).warnings == [remark]
        json.dumps(inspect(path).to_dict())


class TestImageMetadata:
    @pytest.mark.parametrize(
        ("layout", "levels", "expected"),
        [
            ("Bgr8", "NominalRange_0_255", {"color": "bgr"}),
            ("RGB8", "normalized_0_1", {"color": "rgb", "scale": 1 / 255}),
            ("Gray8", "Normalized_1_1", {"color": "gray", "scale": 1 / 127.5, "mean": [1.0]}),
            ("Rgb8", "NominalRange_16_235", {"color": "rgb", "scale": 219 / 255, "mean": [-16.0]}),
        ],
    )
    def test_colours_and_range(self, layout, levels, expected):
        props = {"Image.BitmapPixelFormat": layout, "image.nominalpixelrange": levels, "Image.ColorSpaceGamma": "SRGB"}
        said = read_statements(props, None)
        assert said.preprocessing == expected
        low, high = parse_preprocessing(said.preprocessing).value_range()
        ends = {"16": (16, 235), "_1_1": (-1, 1), "_0_1": (0, 1), "0_255": (0, 255)}
        assert (low, high) == pytest.approx(next(v for k, v in ends.items() if k in levels))

    @pytest.mark.parametrize(
        ("props", "message"),
        [
            ({"Image.BitmapPixelFormat": "Bgra8", "Image.NominalPixelRange": "Normalized_0_1"}, "no pixel format"),
            ({"Image.BitmapPixelFormat": "Bgr8"}, "no range of the pixels"),
            ({"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "-5_5"}, "no range of the pixels"),
            (
                {
                    "Image.BitmapPixelFormat": "Bgr8",
                    "Image.NominalPixelRange": "Normalized_0_1",
                    "Image.ColorSpaceGamma": "Linear",
                },
                "not sRGB",
            ),
        ],
    )
    def test_what_cannot_be_used_is_said(self, saved, props, message):
        inspection = inspect(saved(props))
        assert inspection.preprocessing is None
        assert message in inspection.remarks[0]

    def test_the_input_follows(self, saved):
        path = saved({"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "Normalized_1_1"})
        image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        explainer = Explainer(path)
        got = explainer.prepared(image).tensor
        np.testing.assert_allclose(got, image[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


class TestFilesBesideTheModel:
    def test_hugging_face(self, saved):
        path = saved(config=CONFIG, preprocessor_config=STEPS)
        inspection = inspect(path)
        assert inspection.labels == NAMES
        assert inspection.origins["labels"] == "config.json"
        assert inspection.origins["preprocessing"] == "preprocessor_config.json"
        explainer = Explainer(path)
        assert explainer.labels == NAMES
        assert explainer.preprocessing.value_range() == pytest.approx((-1, 1))

    def test_the_folder_onnx_of_a_hub(self, saved):
        assert inspect(saved(folder="onnx", config=CONFIG)).labels == NAMES
        assert inspect(saved(folder="other", config=CONFIG)).labels is None

    def test_timm(self, saved):
        inspection = inspect(saved(config=TIMM))
        assert inspection.labels == NAMES
        assert inspection.preprocessing["short"] == 36
        assert inspection.preprocessing["mean"] == [0.5, 0.4, 0.3]

    def test_placeholder_names_and_other_tools_files_say_nothing(self, saved):
        assert inspect(saved(config={**CONFIG, "id2label": {0: "LABEL_0", 1: "LABEL_1"}})).labels is None
        inspection = inspect(saved(config={"port": 8080}))
        assert (inspection.labels, inspection.remarks) == (None, [])

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config": "{"}, "config.json: it cannot be read"),
            ({"config": "[1]"}, "config.json: it is not a JSON object"),
            ({"config": {**CONFIG, "id2label": [1]}}, "config.json: its class names cannot be right"),
            ({"preprocessor_config": {**STEPS, "size": {"height": "a", "width": 3}}}, "its preprocessing cannot be"),
            ({"preprocessor_config": {**STEPS, "size": {"height": 10**9, "width": 3}}}, "its preprocessing cannot be"),
            ({"preprocessor_config": {**STEPS, "image_std": [0, 1, 1]}}, "its preprocessing cannot be right"),
            ({"preprocessor_config": {"size": {"shortest_edge": 800, "longest_edge": 1333}}}, "steps that a"),
            ({"config": {**TIMM, "pretrained_cfg": {"input_size": "abc"}}}, "config.json: it has steps that"),
            ({"config": {**TIMM, "pretrained_cfg": {"input_size": "abb"}}}, "its preprocessing cannot be right"),
        ],
    )
    def test_nonsense_is_said(self, saved, files, message):
        path = saved(**files)
        remarks = inspect(path).remarks
        assert any(message in remark for remark in remarks), remarks
        assert attach(path).warnings == remarks

    def test_names_for_another_model_are_said_and_not_used(self, saved):
        explained = attach(saved(config={**CONFIG, "id2label": dict(enumerate("abc"))}))
        assert explained.metadata.labels is None
        assert "class names of config.json are not used: there are 3 class names for 4 classes" in explained.warnings[0]


class TestWhoWins:
    def test_the_user_then_the_file_then_its_neighbours(self, saved):
        other = {**CONFIG, "id2label": dict(enumerate("wxyz"))}
        path = saved(ULTRALYTICS, config=other, preprocessor_config=STEPS)
        remarks = inspect(path).remarks
        assert [remark.removesuffix(" of Ultralytics metadata, which comes first") for remark in remarks] == [
            "the class names of config.json differ from those",
            "the preprocessing of preprocessor_config.json differs from that",
        ]
        assert make_plan(path).labels == NAMES
        assert Explainer(path, labels=list("1234")).labels == list("1234")
        assert Explainer(path, preprocess={"scale": 0.5}).preprocessing.scale == 0.5
        assert attach(path, labels=list("1234"), preprocess={"scale": 0.5}).warnings == []

    def test_an_export_stores_it(self, saved, tmp_path):
        exported = export(saved(ULTRALYTICS), tmp_path / "out.onnx")
        assert exported.carried.labels == NAMES
        again = inspect(tmp_path / "out.onnx")
        assert (again.labels, again.origins["labels"]) == (NAMES, "onnx-gradcam")


def test_on_the_command_line(saved, tmp_path):
    path = saved({**ULTRALYTICS, "stride": "oops"})
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert "class names: 4 (cat, dog, hen ...), from Ultralytics metadata" in result.output
    assert "Ultralytics metadata says: task classify, imgsz [32, 32]" in result.output
    assert "warning: Ultralytics metadata: its stride cannot be right; not used" in result.output
    image, out = tmp_path / "photo.png", tmp_path / "out.png"
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    result = CliRunner().invoke(app, ["explain", str(path), str(image), "-o", str(out), "--target", "hen", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"][0]["explained"][0]["label"] == "hen"
