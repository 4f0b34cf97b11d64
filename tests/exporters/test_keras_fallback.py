"""Keras models that only Keras can run, by either route: values against Keras's own, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.fake_python import interpreter
from support.graphs import graph, images, run

from onnx_gradcam import attach
from onnx_gradcam.errors import ExportError, InputError, TargetError
from onnx_gradcam.exporters.elsewhere import read_keras_with
from onnx_gradcam.exporters.finishing import finish_export
from onnx_gradcam.exporters.workers.keras_files import RefusedError, load_model

HERE = Path(__file__).parents[1] / "support"
NEEDED = ("tensorflow", "tf2onnx", "tf_keras", "keras", "torch", "onnxscript")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(
        [sys.executable, HERE / "make_keras_models.py", folder], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    return folder


@pytest.fixture
def in_own_folder(monkeypatch):
    """Where the module of the models' own classes lies."""
    monkeypatch.chdir(HERE)


CASES = [
    ("tf", "plain.keras", None, False),
    ("tf", "custom.keras", "own_layers", True),
    ("tf", "coded.keras", None, True),
    ("tf", "subclassed.keras", "own_layers", True),
    ("tf", "old.h5", None, False),
    ("tf", "saved", None, True),
    ("tf", "old_saved", None, True),
    ("torch", "plain.keras", None, False),
    ("torch", "custom.keras", "own_layers", True),
    ("torch", "coded.keras", None, True),
    ("torch", "subclassed.keras", "own_layers", True),
]


@pytest.mark.tensorflow
@installed
@pytest.mark.usefixtures("in_own_folder")
@pytest.mark.parametrize(("route", "name", "custom", "trust"), CASES, ids=[f"{r}-{n}" for r, n, *_ in CASES])
def test_values_are_those_of_keras(route, name, custom, trust, models):
    made = finish_export(read_keras_with(route, models / name, custom=custom, trust=trust))
    ref = dict(np.load(models / f"{name.split('.')[0]}.npz"))
    images, scores = ref.pop("images"), ref.pop("scores")
    assert made.carried.parity.endswith("of Keras's values, relative, at batch 1 and 3")
    assert made.model.shape(made.image) == ("batch", 32, 32, 3)
    layers = made.carried.layers
    wanted = {key.replace("__", "/"): value for key, value in ref.items()}
    assert set(wanted) <= set(layers), set(layers)
    proto = made.to_proto()
    for layer in wanted:
        assert attach(proto, layer=layer).metadata.target_tensor == layers[layer].tensor
    # Every layer's tensor at once, beside the scores.
    exposed = {o.name for o in proto.graph.output}
    for tensor in {layers[layer].tensor for layer in wanted} - exposed:
        proto.graph.output.add().name = tensor
    for count in (1, 3):
        results = run(proto, **{made.image: images[:count]})
        assert close(results[made.score], scores[:count]) <= 1e-5
        for layer, value in wanted.items():
            found = results[layers[layer].tensor]
            if layers[layer].layout == "NCHW":
                found = found.transpose(0, 2, 3, 1)
            assert close(found, value[:count]) <= 1e-5, layer


def close(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.tensorflow
@installed
def test_code_does_not_run_without_trust(models, in_own_folder):
    for name, words in (
        ("coded.keras", "the Lambda layer 'code' holds code"),
        ("custom.keras", "Gate is defined in the module 'own_layers'"),
        ("subclassed.keras", "Net is defined in the module 'own_layers'"),
    ):
        with pytest.raises(ExportError, match=words):
            read_keras_with("tf", models / name)


@pytest.mark.tensorflow
@installed
def test_what_keras_cannot_load_is_said_in_one_sentence(models, tmp_path):
    half = tmp_path / "half.h5"
    half.write_bytes((models / "old.h5").read_bytes()[:4000])
    for path, words in (
        (half, "neither a .keras archive nor a complete HDF5 file"),
        (models / "custom.keras", "Keras .* cannot load it .* name the module of its own classes with --custom"),
    ):
        with pytest.raises(ExportError, match=words) as caught:
            read_keras_with("tf", path, trust=path != half)
        assert "\n" not in str(caught.value)
    with pytest.raises(TargetError, match="no layer 'reluu'; did you mean 'relu'"):
        finish_export(read_keras_with("tf", models / "plain.keras"), "reluu")
    with pytest.raises(ExportError, match="contains no SavedModel"):
        read_keras_with("tf", tmp_path, trust=True)


def test_what_needs_no_keras_to_be_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone\.keras: no such file or folder"):
        read_keras_with("tf", tmp_path / "gone.keras")
    with pytest.raises(ExportError, match=r"a SavedModel is a program, .* pass --trust to run it"):
        read_keras_with("tf", tmp_path)
    with pytest.raises(InputError, match="use --via tf"):
        read_keras_with("torch", tmp_path, trust=True)
    with pytest.raises(InputError, match="code, which runs with --trust only"):
        read_keras_with("tf", tmp_path, custom="os")


@pytest.mark.skipif(os.name == "nt", reason="scripts with a first line")
@pytest.mark.parametrize("wrong", ["", "y", "layer_0"])
def test_a_graph_that_computes_something_else_is_refused(wrong, tmp_path):
    body = "t = Conv(x, w) r = Relu(t) layer_0 = Transpose<perm=[0,2,3,1]>(r) p = GlobalAveragePool(r) f = Flatten(p) "
    model = graph(body + "y = Gemm(f, d)", outputs="float[N,4] y, float[N,6,6,5] layer_0", w=(5, 3, 3, 3), d=(5, 4))
    onnx.save(model, tmp_path / "made.onnx")
    reference = {}
    for batch in (1, 3):
        x = images(batch)
        values = {"": x, **run(model, x=x)}
        reference |= {f"{batch} {name}": value + 0.001 * (name == wrong != "") for name, value in values.items()}
    np.savez(tmp_path / "reference.npz", **reference)
    (tmp_path / "m.keras").write_bytes(b"")
    python = interpreter(
        tmp_path,
        f"import shutil; shutil.copy({str(tmp_path / 'made.onnx')!r}, folder / 'model.onnx')\n"
        f"shutil.copy({str(tmp_path / 'reference.npz')!r}, folder)\n"
        "answer(version='3.15.1', outputs=['y'], layers=[['relu', 'ReLU', 'layer_0']])",
    )
    if wrong:
        with pytest.raises(ExportError, match=f"at batch 1 its '{wrong}' differs from Keras's by"):
            read_keras_with("torch", tmp_path / "m.keras", python=python)
    else:
        product = read_keras_with("torch", tmp_path / "m.keras", python=python)
        assert product.parity.startswith("within ")
        assert [o.name for o in product.model.core.graph.outputs] == ["y"]
        assert (product.layers["relu"].tensor, product.layers["relu"].kind) == ("r", "ReLU")


LAMBDA = {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "evil"}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_name": "Functional", "config": {"layers": [LAMBDA]}}, "the Lambda layer 'evil' holds code"),
        ({"config": {"call": {"class_name": "__lambda__", "config": {"value": "4wA="}}}}, "the Lambda layer"),
        ({"class_name": "system", "module": "os", "config": "echo"}, "system is defined in the module 'os'"),
        ({"class_name": "X", "module": None, "registered_name": "Custom>X"}, "X is a custom class"),
        ({"class_name": "ReLU", "module": "keras.layers", "registered_name": None}, ""),
    ],
)
def test_code_is_seen_before_keras_sees_the_file(config, words, tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
    request = {"path": str(path), "trust": False, "custom": None}
    # `None` in the place of Keras: an attribute error says that loading was reached.
    with pytest.raises(RefusedError if words else AttributeError, match=words or "NoneType"):
        load_model(request, None)


def test_damaged_archives(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(RefusedError, match=r"config\.json is missing"):
        load_model({"path": str(path), "trust": False, "custom": None}, None)
