"""Settings of a server refuse every wrong choice in the sentence that Python gives."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from support.wrong_choices import WRONG

from onnx_gradcam import Explainer, attach
from onnx_gradcam.errors import ExplainError

pytestmark = pytest.mark.serve

SCRIPT = """
import asyncio, json, sys
from mlserver import ModelSettings
from mlserver.settings import ModelParameters
from onnx_gradcam.errors import ExplainError
from onnx_gradcam.serve.mlserver import ExplainRuntime

def message(model, extra):
    parameters = ModelParameters(uri=model, extra=extra)
    settings = ModelSettings(name="m", implementation=ExplainRuntime, parameters=parameters)
    try:
        asyncio.run(ExplainRuntime(settings).load())
    except ExplainError as error:
        return str(error)

print(json.dumps({name: message(*case) for name, case in json.load(sys.stdin).items()}))
"""


@pytest.fixture(scope="module")
def cases(repository, tmp_path_factory):
    model = repository / "models" / "shapes.onnx"
    explained = tmp_path_factory.mktemp("settings") / "explained.onnx"
    attach(model).save(explained)
    names = [f"class {i}" for i in range(7)]
    return {
        **{name: (str(model), choices) for name, (choices, _) in WRONG.items()},
        "reserved word": (str(model), {"pixels": 3}),
        "unknown limit": (str(model), {"limits": {"row": 3}}),
        "labels": (str(model), {"labels": names}),
        "labels, explained": (str(explained), {"labels": names}),
        "choice, explained": (str(explained), {"layer": "x"}),
    }


@pytest.fixture(scope="module")
def messages(cases):
    # Not imported here: MLServer and tritonclient register the same messages, one process holds one of them.
    if importlib.util.find_spec("mlserver") is None:
        pytest.skip("MLServer is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(cases), capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_word_is_refused_as_python_does(messages, repository, name):
    choices, message = WRONG[name]
    with pytest.raises(ExplainError) as python:
        Explainer(repository / "models" / "shapes.onnx", **choices)
    assert message in messages[name]
    assert messages[name] == str(python.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reserved word", "there is no option 'pixels'"),
        ("unknown limit", "unknown limit 'row'; did you mean 'rows'?"),
        ("labels", "there are 7 class names for 6 classes; the first, often 'background', may have to go"),
        ("labels, explained", "there are 7 class names for 6 classes; the first, often 'background', may have to go"),
        ("choice, explained", "the model is explained already"),
    ],
)
def test_what_settings_refuse(messages, name, message):
    assert message in messages[name]
