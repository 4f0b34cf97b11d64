"""A batch job refuses every wrong choice in the sentence that Python gives, before anything is written."""

from __future__ import annotations

import pytest
from support.batch_runs import PREPROCESS
from support.wrong_choices import CLASSES, WRONG

from onnx_gradcam import Explainer
from onnx_gradcam.batching.running import batch
from onnx_gradcam.errors import ExplainError


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_word_is_refused_as_python_does(model, images, tmp_path, name):
    choices, message = WRONG[name]
    with pytest.raises(ExplainError) as python:
        Explainer(model, preprocess=PREPROCESS, **choices)
    with pytest.raises(ExplainError) as run:
        batch(model, images, tmp_path / "out", format="npz", preprocess=PREPROCESS, **choices)
    assert message in str(run.value)
    assert str(run.value) == str(python.value)
    assert "\n" not in str(run.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", CLASSES)
@pytest.mark.parametrize("explained", [False, True])
def test_class_names_of_the_wrong_number_are_refused(model, images, tmp_path, count, explained):
    from onnx_gradcam import attach  # noqa: PLC0415 - only here

    if explained:
        attach(model).save(tmp_path / "explained.onnx")
        model = tmp_path / "explained.onnx"
    names = [f"class {i}" for i in range(count)]
    with pytest.raises(ExplainError, match=rf"{count} class names for 4 classes.*{CLASSES[count]}"):
        batch(model, images, tmp_path / "out", format="npz", preprocess=PREPROCESS, labels=names)
    assert not (tmp_path / "out").exists()
