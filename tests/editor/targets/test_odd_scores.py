"""Scores of odd shapes: the right map, by a gradient computed by hand, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.graphs import graph, run
from typer.testing import CliRunner

from onnx_gradcam import attach, inspect
from onnx_gradcam.cli import app
from onnx_gradcam.errors import InputError, TargetError, UnsupportedError

MODELS = Path(__file__).parents[3].parent / "shared" / "detectors" / "models"
POOLED = "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p)"
HIERARCHY = (
    f"{POOLED} g = Gemm(f, P) parent = Softmax<axis=1>(g) h = Gemm(f, W) r = Reshape(h, groups) s = Softmax<axis=2>(r) "
    "u = Unsqueeze(parent, last) m = Mul(u, s) child = Flatten(m)"
)
STACKED = f"{POOLED} h = Gemm(f, W) r = Reshape(h, groups)"
LABELS = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)


def model(body: str, outputs: str, **constants: Any) -> onnx.ModelProto:
    given = {"K": (5, 3, 3, 3), "W": (5, 6), "P": (5, 2), "groups": [1, 2, 3], "last": [2], **constants}
    used = {name: value for name, value in given.items() if name in body.replace(",", " ").replace(")", " ").split()}
    used |= {name: value for name, value in given.items() if f"({name}" in body or f", {name}" in body}
    return graph(body, inputs="float[1,3,8,8] x", outputs=outputs, **used)


def by_hand(source: onnx.ModelProto, score: Any) -> np.ndarray:
    """Grad-CAM of a function of the pooled maps: its derivative by each, from differences in float64, times the map."""
    weights = {i.name: onnx.numpy_helper.to_array(i).astype(np.float64) for i in source.graph.initializer}
    shown = onnx.ModelProto()
    shown.CopyFrom(source)
    shown.graph.output.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 5, 4, 4]))
    maps = run(shown, x=LABELS)["a"][0].astype(np.float64)
    pooled = maps.mean((1, 2))
    steps = 1e-5 * np.eye(5)
    slopes = [(score(pooled + step, weights) - score(pooled - step, weights)) / 2e-5 for step in steps]
    return np.tensordot(slopes, maps, 1) / maps[0].size


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def child(pooled: np.ndarray, weights: dict[str, np.ndarray]) -> float:
    parents = softmax(pooled @ weights["P"])
    return float((parents[:, None] * softmax((pooled @ weights["W"]).reshape(2, 3))).reshape(-1)[4])


CASES: dict[str, tuple[onnx.ModelProto, dict[str, Any], int, Any]] = {
    "one task of several": (
        model(f"{STACKED} y = Identity(r)", "float[1,2,3] y"), {"at": 1}, 2,
        lambda pooled, weights: (pooled @ weights["W"])[5],
    ),
    "a step of time, behind its log-softmax": (
        model(f"{STACKED} y = LogSoftmax<axis=2>(r)", "float[1,2,3] y"), {"at": 0}, 1,
        lambda pooled, weights: (pooled @ weights["W"])[1],
    ),
    "a step of time, its probability": (
        model(f"{STACKED} y = Softmax<axis=2>(r)", "float[1,2,3] y"), {"at": 1, "score": "output"}, 0,
        lambda pooled, weights: softmax((pooled @ weights["W"])[3:])[0],
    ),
    "a number without axes": (
        model(f"{POOLED} h = Gemm(f, W) y = ReduceSum<keepdims=0>(h)", "float y"), {"task": "regression"}, 0,
        lambda pooled, weights: (pooled @ weights["W"]).sum(),
    ),
    "a probability without axes": (
        model(f"{POOLED} h = Gemm(f, W) s = ReduceSum<keepdims=0>(h) y = Sigmoid(s)", "float y"), {}, 1,
        lambda pooled, weights: (pooled @ weights["W"]).sum(),
    ),
    "a value a sample": (
        model(f"{POOLED} h = Gemm(f, W) y = ReduceSum<keepdims=0>(h, one)", "float[1] y", one=[1]),
        {"task": "regression"}, 0, lambda pooled, weights: (pooled @ weights["W"]).sum(),
    ),
    "the highest of the classes": (
        model(f"{POOLED} h = Gemm(f, W) s = Softmax<axis=1>(h) v, i = TopK(s, k)", "float[1,2] v, int64[1,2] i", k=[2]),
        {}, 3, lambda pooled, weights: (pooled @ weights["W"])[3],
    ),
    "the label alone": (
        model(f"{POOLED} h = Gemm(f, W) y = ArgMax<axis=1, keepdims=0>(h)", "int64[1] y"), {}, 2,
        lambda pooled, weights: (pooled @ weights["W"])[2],
    ),
    "a class within its parent": (
        model(HIERARCHY, "float[1,2] parent, float[1,6] child"), {"output": "child"}, 4, child
    ),
    "the parent": (
        model(HIERARCHY, "float[1,2] parent, float[1,6] child"), {"output": "parent"}, 1,
        lambda pooled, weights: (pooled @ weights["P"])[1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_that_of_a_derivative_by_hand(name):
    source, choices, index, score = CASES[name]
    explained = attach(source, method="gradcam", check=True, **choices)
    cam = run(explained.to_proto(), x=LABELS, target_class=np.array([index]))["cam"][0]
    expected = by_hand(source, score)
    assert np.abs(cam - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("source", "choices", "sentence"),
    [
        (model(HIERARCHY, "float[1,2] parent, float[1,6] child"), {}, "several outputs .* name the one .* --output"),
        (CASES["one task of several"][0], {}, "scores of 3 classes at 2 places .* choose one with --at, else"),
        (CASES["one task of several"][0], {"at": 2}, r"no place 2 in the output .*; give 0 to 1 with --at"),
        (CASES["the label alone"][0], {"at": 0}, "and none is one .*; leave it out"),
        (CASES["one task of several"][0], {"at": 0, "task": "segmentation"}, "the task is segmentation; leave it out"),
        (
            model(f"{STACKED} y = Identity(r) z = Softmax(r)", "float[1,2,3] y, float[1,2,3] z"), {"at": 0},
            "several are one .* name it with --output",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked(source, choices, sentence, tmp_path):
    with pytest.raises(TargetError, match=sentence):
        attach(source, **choices)
    onnx.save(source, tmp_path / "m.onnx")
    given = [part for name, value in choices.items() for part in (f"--{name}", str(value))]
    result = CliRunner().invoke(app, ["attach", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "e.onnx"), *given])
    assert result.exit_code != 0
    assert not (tmp_path / "e.onnx").exists()


def test_a_lone_number_is_said_to_be_a_logit():
    source, *_ = CASES["a value a sample"]
    assert any("taken for the logit of two classes" in line for line in attach(source).warnings)
    assert not attach(source, task="regression").warnings
    assert not attach(CASES["a probability without axes"][0]).warnings


def test_a_place_is_an_index():
    with pytest.raises(InputError, match="at is -1; give an integer from 0 on"):
        attach(CASES["one task of several"][0], at=-1)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "odd_argmax": ({}, ""),
    "odd_topk": ({}, ""),
    "odd_n111": ({}, ""),
    "odd_n_squeezed": ({"task": "regression"}, ""),
    "odd_n_squeezed_sigmoid": ({}, ""),
    "odd_ctc": ({"at": 3}, ""),
    "odd_tasks_stacked": ({"at": 2}, ""),
    "odd_hierarchical": ({"output": "child"}, ""),
    "odd_multi_heads": ({"output": "age"}, ""),
    "ul_yolo26_sem": ({"task": "segmentation"}, ""),
    "odd_zipmap_strings": ({}, "export the model without ZipMap"),
    "det_yolov5": ({"at": 1, "task": "classification"}, "outputs boxes .* leave out --at"),
    "det_yolox": ({"at": 1}, "outputs boxes .* leave out --at"),
    "ul_yolov8_det": ({"at": 1}, "outputs boxes .* leave out --at"),
    "hf_detr": ({"at": 1, "output": "pred_boxes"}, "outputs boxes, no classes at places; leave out --at"),
}


@pytest.mark.real
@pytest.mark.parametrize("name", ODD)
def test_files_with_odd_scores(name):
    path = MODELS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("the folder of models is not beside the project")
    choices, refused = ODD[name]
    if refused:
        with pytest.raises((TargetError, UnsupportedError), match=refused):
            attach(path, **choices)
        return
    explained = attach(path, check=True, **choices)
    assert explained.difference == 0
    assert inspect(path, **choices).decisions.layer.tensor == explained.metadata.target_tensor
