"""`Options` checks itself: every word, value and name, through Python and through the command line."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from support.graphs import graph
from typer.testing import CliRunner

from onnx_gradcam import Explainer, Options, attach
from onnx_gradcam.cli import app
from onnx_gradcam.editor.targets.classes import check_labels, find_label, read_labels, separated
from onnx_gradcam.errors import InputError, TargetError

HOW = {"size": [8, 8]}


def model():
    return graph(
        "c = Conv(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) l = Gemm(f, W) y = Softmax(l)",
        K=(6, 3, 3, 3),
        W=(6, 4),
    )


# What was accepted before and explained something else than was asked for; what it is now.
WRONG = [
    ({"combine": "total", "layer": ["c", "a"]}, "combine is 'total'; choose 'mean', 'max', 'product' or 'sum'"),
    ({"channels": "mean", "method": "input-x-gradient"}, "channels is 'mean'; choose 'max' or 'sum'"),
    ({"score": "softmax"}, "score is 'softmax'; choose 'logit' or 'output'"),
    ({"score": "probability"}, "score is 'probability'; choose 'logit' or 'output'"),
    ({"weights": "closed"}, "weights is 'closed'; choose 'auto', 'linear', 'gradient' or 'finite'"),
    ({"weights": "lin"}, "weights is 'lin'; did you mean 'linear'?"),
    ({"weights": "auto "}, "weights is 'auto '; did you mean 'auto'?"),
    ({"grad_dtype": "float16"}, "grad_dtype is 'float16'; did you mean 'float32'?"),
    ({"class_input": "fixed"}, "class_input is 'fixed'; choose 'optional', 'required', 'none' or 'all'"),
    ({"task": "segment"}, "there is no task 'segment'; did you mean 'segmentation'?"),
    ({"modifier": "guide"}, "modifier is 'guide'; did you mean 'guided'?"),
    ({"lay": "x"}, "there is no option 'lay'; did you mean 'layer'?"),
    ({"labels": ["n"] * 5}, "there are 5 class names for 4 classes; the first, often 'background', may have to go"),
    ({"labels": ["n"] * 3}, "there are 3 class names for 4 classes; a first one for 'background' may be missing"),
    ({"labels": ["n"] * 9}, "there are 9 class names for 4 classes; give the list that belongs to this model"),
    ({"profile": "cup"}, "there is no profile 'cup'"),
    ({"method": "gradcm"}, "there is no method 'gradcm'; did you mean 'gradcam'"),
    ({"preset": "torchcam2"}, "there is no preset 'torchcam2'"),
    ({"box_rank": -1}, "box_rank is -1; give an integer from 0 on"),
    ({"eigen_smooth": "yes"}, "eigen_smooth is 'yes'; give True or False"),
    ({"layer": []}, "layer is empty; name at least one"),
    ({"layer": 3}, "layer is 3; give a name"),
    ({"against": True}, "against is True; give the index or the name of a class"),
    ({"target": 2}, "a target fixes the class in the model; combine it with class_input 'none'"),
]


@pytest.mark.parametrize(("choices", "sentence"), WRONG, ids=[str(c) for c, _ in WRONG])
@pytest.mark.parametrize("door", [attach, lambda m, **choices: Explainer(m, **{"preprocess": HOW, **choices})])
def test_a_wrong_choice_is_refused_by_every_python_door(door, choices, sentence):
    with pytest.raises((InputError, TargetError), match=f"^{re.escape(sentence)}"):
        door(model(), **choices)


@pytest.mark.parametrize(("choices", "sentence"), WRONG[:12], ids=[str(c) for c, _ in WRONG[:12]])
def test_the_command_line_refuses_it_too(tmp_path, choices, sentence):
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    words = []
    for name, value in choices.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", one]
    result = CliRunner().invoke(app, ["attach", str(path), "-o", str(tmp_path / "e.onnx"), *words])
    assert result.exit_code != 0
    assert not (tmp_path / "e.onnx").exists()


def test_every_field_that_takes_words_is_checked():
    literals = [
        f for f in dataclasses.fields(Options) if str(f.type).split(" | ")[0] not in {"str", "int", "bool", "npt"}
    ]
    words = [f.name for f in literals if "[" not in str(f.type)]
    assert len(words) >= 9
    for name in words:
        with pytest.raises(InputError, match=f"^{name} is 'nonsense'"):
            Options(**{name: "nonsense"})


def test_a_long_value_is_shortened():
    with pytest.raises(InputError) as caught:
        Options(weights="x" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('["a", "b", "c"]', ["a", "b", "c"]),
        ('{"0": "a", "2": "c"}', ["a", "", "c"]),
        ('{"id2label": {"0": "a", "1": "b"}, "model_type": "vit"}', ["a", "b"]),
        ('{"cat": 1, "bird": 0}', ["bird", "cat"]),
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', ["tench", "goldfish"]),
        ("[UNK]\nb\n", ["[UNK]", "b"]),
    ],
)
def test_label_files_in_json(tmp_path, text, names):
    (tmp_path / "labels").write_text(text, "utf-8")
    assert read_labels(tmp_path / "labels") == names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "without class indices"),
        ('{"a": "b"}', "without class indices"),
        ('{"99999999": "a"}', "class index 99999999"),
        ("[]", "holds no class names"),
        ("[1, 2]", "'1' as the name of class 0"),
    ],
)
def test_label_files_that_are_none(tmp_path, text, sentence):
    (tmp_path / "labels").write_text(text, "utf-8")
    with pytest.raises(InputError, match=sentence):
        read_labels(tmp_path / "labels")


def test_the_right_number_of_labels():
    check_labels(["a"] * 3, 3)
    check_labels(None, 3)
    check_labels(["a"], None)
    with pytest.raises(InputError, match="there is 1 class name for 2 classes"):
        check_labels(["a"], 2)


def test_names_that_share_a_word_come_first():
    labels = ["bat", "tabby, tabby cat", "tiger cat", "coat", "Egyptian cat", "dog"]
    with pytest.raises(
        TargetError, match="no class is called 'cat'; did you mean 'tiger cat', 'egyptian cat', 'tabby, tabby cat'"
    ):
        find_label("cat", labels)


def test_classes_with_commas_between():
    labels = ["tench, Tinca tinca", "boxer", "tabby"]
    assert separated(["boxer,tabby", "tench, Tinca tinca", 3], labels) == ["boxer", "tabby", "tench, Tinca tinca", 3]
    explainer = Explainer(model(), labels=[*labels, "x"], preprocess=HOW)
    maps = explainer(np.zeros((8, 8, 3), np.uint8), "boxer, tabby").maps
    assert [m.target.index for m in maps] == [1, 2]
