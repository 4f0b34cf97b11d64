"""Every layer class against what Keras computed: small models of Keras 3 (on PyTorch) and 2 (on TensorFlow)."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("h5py", reason="h5py is not installed")

from onnx_gradcam.exporters.keras import read_keras
from onnx_gradcam.exporters.keras.layer_table import LAYERS

ORACLES = Path(__file__).resolve().parents[2] / "oracles" / "keras"
FILES = sorted(p for p in ORACLES.iterdir() if p.suffix in {".keras", ".h5"})
TOLERANCE = 1e-5


@functools.cache
def product_of(path):
    return read_keras(path)


def channels_second(array):
    return np.moveaxis(array, -1, 1)


def run(product, feeds, names=()):
    """The outputs of the exported model and the named tensors."""
    proto = product.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    outputs = [output.name for output in proto.graph.output]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in outputs)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    asked = [*outputs, *names]
    return outputs, dict(zip(asked, session.run(asked, feeds), strict=True))


def close(ours, theirs):
    __tracebackhide__ = True
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_all_layers_are_the_same(path):
    product = product_of(path)
    first = "channels_first" in path.stem
    with np.load(path.with_suffix(".npz")) as stored:
        kept = {name: stored[name] for name in stored.files if name != "provenance"}
    given = {name.removeprefix("input/"): kept.pop(name) for name in list(kept) if name.startswith("input/")}
    answers = [kept.pop(name) for name in list(kept) if name.startswith("output/")]
    feeds = {k: channels_second(v) if v.ndim == 4 and not first else v for k, v in given.items()}
    tensors = {name: product.layers[name].tensor for name in kept}
    outputs, values = run(product, feeds, list(tensors.values()))
    for name, theirs in kept.items():
        layout = product.layers[name].layout
        assert layout.startswith("NC") or theirs.ndim < 4, "maps have channels second"
        close(values[tensors[name]], channels_second(theirs) if layout and not first else theirs)
    assert len(outputs) == len(answers)
    for output, theirs in zip(outputs, answers, strict=True):
        close(values[output], theirs)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_layer_is_a_tensor_on_the_path(path):
    product = product_of(path)
    graph = product.model.core.graph
    tensors = {output.name: output for node in graph for output in node.outputs} | {i.name: i for i in graph.inputs}
    for name, layer in product.layers.items():
        tensor = tensors[layer.tensor]
        assert tensor.uses() or tensor.is_graph_output(), name
        assert layer.shape == list(product.model.shape(layer.tensor))
        if layer.kind not in {"InputLayer", "Functional", "Sequential", "Model"}:
            assert layer.tensor == name


def test_the_oracles_have_every_layer_class():
    held = {layer.kind for path in FILES for layer in product_of(path).layers.values()}
    rules = {}
    for kind, rule in LAYERS.items():
        rules.setdefault(id(rule), set()).add(kind)
    without = [sorted(kinds) for kinds in rules.values() if not kinds & held]
    assert without == [["ThresholdedReLU"]], "but for what neither library makes any more"
