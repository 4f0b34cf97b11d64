"""The networks with random weights match their names."""

import importlib

import numpy as np
import onnx
import pytest
from support.helpers import quiet_session

NAMES = ("resnet50", "mobilenet_v2", "squeezenet1_1", "vgg16", "vit_small")


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_network_runs_on_any_batch_and_tells_classes_apart(name):
    networks = importlib.import_module("networks")
    model = networks.build(name, size=64, width=1 / 8)
    onnx.checker.check_model(model, full_check=True)
    session = quiet_session(model)
    x = networks.photo_like(3, 64)
    (batch,) = session.run(None, {"input": x})
    (single,) = session.run(None, {"input": x[1:2]})
    np.testing.assert_allclose(batch[1], single[0], rtol=1e-4, atol=1e-4)
    assert batch.shape == (3, 1000)
    assert np.isfinite(batch).all()
    assert batch.std(axis=1).min() > 1e-2
    assert np.abs(batch[0] - batch[1]).max() > 1e-3


def test_the_seed_decides_the_weights():
    build = importlib.import_module("networks").build
    one, same, other = (build("squeezenet1_1", size=64, width=1 / 16, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_full_width_has_the_published_number_of_parameters():
    model = importlib.import_module("networks").build("squeezenet1_1")
    assert sum(int(np.prod(w.dims)) for w in model.graph.initializer) == 1_235_496


@pytest.mark.torch
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "vit_small"])
@pytest.mark.filterwarnings("ignore")  # PyTorch's and torchvision's own
def test_pytorch_computes_the_same_network(name):
    torch = pytest.importorskip("torch")
    networks = importlib.import_module("networks")
    model = networks.build(name, size=64)
    try:
        network = networks.torch_network(name, model)
    except ImportError as exc:
        pytest.skip(f"torchvision is not installed: {exc}")
    x = networks.photo_like(2, 64)
    (ours,) = quiet_session(model).run(None, {"input": x})
    with torch.inference_mode():
        theirs = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_command_writes_a_file(tmp_path):
    path = tmp_path / "net.onnx"
    importlib.import_module("networks").main(["resnet50", str(path), "--size", "32", "--width", "0.0625"])
    assert len(onnx.load(path).graph.node) > 100
