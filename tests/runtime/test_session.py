"""Sessions on the execution provider asked for, and on no other."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.graphs import graph, images

from onnx_gradcam.errors import InputError, ModelError
from onnx_gradcam.runtime.session import Session, _reason, available_providers, resolve_provider

MODEL = graph("y = Relu(x)", outputs="float[N,3,8,8] y")
CUDA_LISTED = "CUDAExecutionProvider" in ort.get_available_providers()


def test_inputs_outputs_and_a_run():
    model = graph(
        "y = Relu(x) z = Cast<to=11>(y) h = Cast<to=10>(y)", inputs="float[N,3,?,8] x", outputs="double z, float16 h"
    )
    session = Session(model.SerializeToString(), threads=1)
    assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", "float32", ("N", 3, None, 8))]
    assert [(o.name, o.dtype) for o in session.outputs] == [("z", "float64"), ("h", "float16")]
    x = images()
    got = session.run({"x": x})
    np.testing.assert_array_equal(got["z"], np.maximum(x, 0).astype(np.float64))
    assert session.provider == "CPUExecutionProvider"


def test_a_model_by_its_path(tmp_path):
    (tmp_path / "m.onnx").write_bytes(MODEL.SerializeToString())
    for path in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        np.testing.assert_array_equal(Session(path).run({"x": -images()})["y"], np.maximum(-images(), 0))


def test_metadata():
    model = graph("y = Relu(x)", outputs="float[N,3,8,8] y")
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "Ω"
    assert Session(model.SerializeToString()).metadata == {"author": "Ω"}


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_short_and_full_names(name):
    assert resolve_provider(name) == "CPUExecutionProvider"
    assert Session(MODEL.SerializeToString(), provider=name).provider == "CPUExecutionProvider"


def test_what_is_there():
    assert "cpu" in available_providers()
    assert len(available_providers()) == len(ort.get_available_providers())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpuu", r"no execution provider 'cpuu'; did you mean 'cpu'.*this ONNX Runtime has: .*cpu"),
        ("CudaExecutionProvide", r"did you mean .*'CUDAExecutionProvider'"),
        ("coreml", r"no execution provider 'coreml' \(this ONNX Runtime has: .*cpu\); install a build that has it"),
        ("", r"no execution provider ''"),
    ],
)
def test_a_provider_that_is_not_there(name, message):
    with pytest.raises(InputError, match=message):
        Session(MODEL.SerializeToString(), provider=name)


@pytest.mark.skipif(not CUDA_LISTED, reason="this ONNX Runtime was built without CUDA")
def test_a_provider_that_is_built_in_but_cannot_start_is_an_error_and_nothing_is_printed(tmp_path):
    """ONNX Runtime itself warns on stderr and runs on the CPU."""
    (tmp_path / "m.onnx").write_bytes(MODEL.SerializeToString())
    code = """
        import sys
        from onnx_gradcam.errors import InputError
        from onnx_gradcam.runtime.session import Session
        try:
            session = Session(sys.argv[1], provider="cuda")
        except InputError as exc:
            print("refused:", exc)
        else:
            print("started:", session.provider)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.stdout.startswith("refused: the execution provider 'cuda' did not start"), done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "--provider cpu" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("data", [b"", b"no model", b"\x08\x0a\x3a\x05\xff\xff"])
def test_what_onnx_runtime_cannot_load(data, capfd):
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model: ") as caught:
        Session(data)
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": images()},
        {"x": images(2, 4, 8, 8)},
        {"x": images().astype(np.float64)},
    ],
)
def test_what_onnx_runtime_cannot_run(feeds, capfd):
    session = Session(MODEL.SerializeToString())
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: ") as caught:
        session.run(feeds)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_external_weights_of_a_model_given_as_bytes(tmp_path):
    model = graph("c = Conv(x, K) y = Relu(c)", outputs="float[N,6,6,6] y", K=(6, 3, 3, 3))
    want = Session(model.SerializeToString()).run({"x": images()})["y"]
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "m.onnx").read_bytes()
    np.testing.assert_array_equal(Session(data, folder=tmp_path).run({"x": images()})["y"], want)


def test_an_optimisation_is_off_when_asked():
    """Zero padding before a MaxPool: folded into the pool, it becomes minus infinity."""
    model = graph(
        "c = Neg(x) p = Pad(c, pads) y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(p)",
        outputs="float[N,3,5,5] y",
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
    )
    x = np.ones((1, 3, 8, 8), np.float32)
    right = Session(model.SerializeToString(), disabled_optimizers=["Pad_Fusion"]).run({"x": x})["y"]
    assert right[0, 0, 0].tolist() == [0, 0, 0, 0, 0]
    assert right[0, 0, 1].tolist() == [0, -1, -1, -1, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : No kernel for Conv(22)", "No kernel for Conv(22)"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : It failed:/src/a.h:46 void ort::Check(std::map<int, int>&, int (*)()) Old",
            "It failed: Old",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Weight w failed.endian_utils.cc:66 CopyBytes buffer size mismatch",
            "Weight w failed. buffer size mismatch",
        ),
        ("Required inputs (['x']) are missing", "Required inputs (['x']) are missing"),
    ],
)
def test_reasons_are_without_codes_and_signatures(text, reason):
    assert _reason(RuntimeError(text)) == reason


def test_an_opset_above_the_limit():
    model = graph("y = Relu(x)", outputs="float[N,3,8,8] y")
    model.opset_import[0].version = 99
    with pytest.raises(ModelError, match=r"ONNX Runtime only .*guarantees") as caught:
        Session(model.SerializeToString())
    assert "::" not in str(caught.value)
