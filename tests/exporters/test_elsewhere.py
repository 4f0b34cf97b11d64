"""Conversions in another process: what comes back, and what is said when nothing does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support.fake_python import interpreter
from support.graphs import graph

from onnx_gradcam.errors import ExportError, InputError, ModelError
from onnx_gradcam.exporters import workers
from onnx_gradcam.exporters.elsewhere import convert_elsewhere

pytestmark = pytest.mark.skipif(os.name == "nt", reason="scripts with a first line")

BODY = "t = Conv(x, w) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm(f, d)"


def convert(python, **settings):
    return convert_elsewhere("from_tflite", {"path": "net.tflite"}, packages="this that", python=python, **settings)


def test_the_model_comes_back_with_a_named_batch(tmp_path):
    model = graph(BODY, inputs="float[unk__7,3,8,8] x", outputs="float[unk__9,4] y", w=(5, 3, 3, 3), d=(5, 4))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("t", 1, ["unk__8", 5, 6, 6]))
    onnx.save(model, tmp_path / "made.onnx")
    python = interpreter(
        tmp_path,
        f"import shutil; shutil.copy({str(tmp_path / 'made.onnx')!r}, folder / 'model.onnx')\n"
        "request = json.loads((folder / 'request.json').read_text())\n"
        "answer(worker=sys.argv[2], request=request, protobuf=os.environ['PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION'],"
        " backend=os.environ['KERAS_BACKEND'], folder=str(folder))",
    )
    converted = convert(python, KERAS_BACKEND="torch")
    assert converted.model.shape("x") == ("batch", 3, 8, 8)
    assert converted.model.shape("t") == ("batch", 5, 6, 6)
    assert converted.model.shape("y") == ("batch", 4)
    folder = converted.answer.pop("folder")
    assert converted.answer == {
        "worker": "from_tflite",
        "request": {"path": "net.tflite"},
        "protobuf": "python",
        "backend": "torch",
    }
    assert not os.path.exists(folder)  # noqa: PTH110 - a string as it came


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("answer(refused='holds code, and that takes --trust')", r"net\.tflite: holds code, and that takes --trust"),
        (
            "answer(missing='tensorflow')",
            r"'tensorflow' is missing for .*python; run `.*python -m pip install this that`",
        ),
        ("raise ValueError('Op FOO is\\nnot known')", r"cannot be converted: ValueError: Op FOO is not known"),
        ("os.kill(os.getpid(), 9)", r"stopped by signal 9; is there enough memory\?"),
        ("sys.exit(3)", r"failed without a message"),
    ],
)
def test_failures_are_one_sentence(body, words, tmp_path):
    with pytest.raises(ExportError, match=words) as caught:
        convert(interpreter(tmp_path, body))
    assert "\n" not in str(caught.value)


def test_no_such_interpreter(tmp_path):
    with pytest.raises(InputError, match=r"nowhere' cannot be started \(No such file or directory\)"):
        convert(tmp_path / "nowhere")


def test_what_comes_back_is_checked(tmp_path):
    with pytest.raises(ModelError, match="not an ONNX model"):
        convert(interpreter(tmp_path, "(folder / 'model.onnx').write_bytes(b'junk'); answer()"))


def test_workers_need_nothing_of_this_package(tmp_path):
    """A bare interpreter starts them; the first thing it misses is the framework."""
    (tmp_path / "request.json").write_text('{"path": "m.tflite"}', "utf-8")
    start = Path(workers.__file__).with_name("start.py")
    subprocess.run([sys.executable, "-I", "-S", start, "from_tflite", tmp_path], check=True)
    assert (tmp_path / "answer.json").read_text("utf-8") == '{"missing": "tf2onnx"}'
