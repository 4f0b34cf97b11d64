"""The repository for Triton: parsed by Triton's own protobuf, checked against the model, and run by a live server.

The live server is the old one that nvidia-pytriton brings, whose only backend runs Python: there the explained model
runs in a twin with the same configuration, whose code calls ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import placed_detector
from support.serve_ports import free_ports
from support.wrong_choices import WRONG
from typer.testing import CliRunner

from onnx_gradcam import Explainer, attach
from onnx_gradcam.cli import app
from onnx_gradcam.errors import ExplainError
from onnx_gradcam.runtime.session import Session
from onnx_gradcam.serve.repository import write_repository

TOLERANCE = 1e-5

TWIN = """
import pathlib, numpy, onnxruntime, triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [i.name for i in self.session.get_inputs()]
        feeds = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        outputs = [o.name for o in self.session.get_outputs()]
        results = self.session.run(outputs, feeds)
        tensors = [triton.Tensor(name, values) for name, values in zip(outputs, results)]
        return triton.InferenceResponse(tensors)
"""


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """An explained detector."""
    path = tmp_path_factory.mktemp("detector") / "boxes.onnx"
    described = {"size": [32, 32], "resize": "letterbox", "scale": 1 / 255, "mean": [0.45]}
    attach(placed_detector(5), preprocess=described, labels=["ship", "buoy"]).save(path)
    return path


@pytest.fixture(scope="module")
def finder(detector) -> Explainer:
    return Explainer(detector, threads=1)


@pytest.fixture(scope="module")
def written(explained, detector, tmp_path_factory) -> Path:
    """The repository of the demo classifier and a detector, with their ensembles."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(explained, folder, name="shapes", ensemble=True)
    write_repository(detector, folder, ensemble=True)
    return folder


def parsed(folder: Path):
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format  # noqa: PLC0415 - with tritonclient

    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), config.ModelConfig())


def check_against(folder: Path, model: onnx.ModelProto) -> None:
    """Every tensor of the configuration is one of the model: name, type, rank, sizes, batch."""
    config = parsed(folder)
    assert config.name == folder.name
    assert config.backend == "onnxruntime"
    batching = config.max_batch_size > 0
    initializers = {i.name for i in model.graph.initializer}
    for entries, values in ((config.input, model.graph.input), (config.output, model.graph.output)):
        known = {v.name: v.type.tensor_type for v in values}
        for entry in entries:
            of = known[entry.name]
            sizes = [d.dim_value or -1 for d in of.shape.dim]
            as_numpy = helper.tensor_dtype_to_np_dtype(of.elem_type)
            triton_type = {"float32": 11, "int64": 9, "float16": 10, "uint8": 2}[as_numpy.name]
            assert entry.data_type == triton_type
            assert not getattr(entry, "optional", False)
            dims = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
            assert sizes == ([-1, *dims] if batching else dims)
            assert entry.dims, "Triton refuses a tensor without dimensions"
    assert {e.name for e in config.input} == {v.name for v in model.graph.input}
    assert not initializers & {v.name for v in model.graph.input}


@pytest.mark.serve
def test_the_configuration_is_that_of_the_model(written):
    check_against(written / "shapes", onnx.load(written / "shapes" / "1" / "model.onnx"))
    config = parsed(written / "shapes")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert {o.name for o in config.output} == {"logits", "heatmap", "cam", "heatmap_class"}
    labels = (written / "shapes" / next(o.label_filename for o in config.output if o.name == "logits")).read_text(
        "utf-8"
    )
    assert labels.split()[0] == "circle"


@pytest.mark.serve
def test_the_configuration_of_a_detector_has_its_box(written):
    check_against(written / "boxes", onnx.load(written / "boxes" / "1" / "model.onnx"))
    config = parsed(written / "boxes")
    assert [i.name for i in config.input] == ["x", "target_class", "target_box"]
    assert {i.name: list(i.dims) for i in config.input}["target_box"] == [1]
    outputs = {"detection_scores", "detection_boxes", "heatmap_box", "heatmap_score"}
    assert outputs <= {o.name for o in config.output}
    for name in ("boxes_preprocess", "boxes_images"):
        optional = {i.name for i in parsed(written / name).input if i.optional}
        assert optional == {"target_class", "target_box"}
    assert {i.name for i in parsed(written / "shapes_images").input if i.optional} == {"target_class"}


@pytest.mark.serve
@pytest.mark.parametrize("name", ["shapes", "boxes"])
def test_the_ensemble_leads_every_tensor_from_step_to_step(written, name):
    config = parsed(written / f"{name}_images")
    produced = {i.name for i in config.input}
    for step in config.ensemble_scheduling.step:
        of = parsed(written / step.model_name)
        assert set(step.input_map) == {i.name for i in of.input}
        assert set(step.output_map) <= {o.name for o in of.output}
        assert set(step.input_map.values()) <= produced
        produced |= set(step.output_map.values())
    assert {o.name for o in config.output} <= produced
    first = parsed(written / f"{name}_preprocess")
    main = {i.name: (i.data_type, list(i.dims)) for i in parsed(written / name).input}
    assert {o.name: (o.data_type, list(o.dims)) for o in first.output} == main


@pytest.mark.serve
def test_without_batching_and_with_tensorrt(explained, tmp_path):
    write_repository(explained, tmp_path, name="whole", max_batch=0, tensorrt=True)
    check_against(tmp_path / "whole", onnx.load(tmp_path / "whole" / "1" / "model.onnx"))
    config = parsed(tmp_path / "whole")
    assert not config.HasField("dynamic_batching")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"


def test_the_class_is_an_ordinary_input_and_nothing_else_changed(written, explained, explainer, rows):
    session = Session(written / "shapes" / "1" / "model.onnx", threads=1)
    assert {i.name for i in session.inputs} == {"image", "target_class"}
    classes = np.array([3, -1, 0, 2, 5])
    got = session.run({"image": rows, "target_class": classes})
    for name, values in explainer.run(rows, classes.tolist()).items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    again = Explainer(written / "shapes" / "1" / "model.onnx", threads=1)
    assert again.labels == explainer.labels


def test_the_box_is_an_ordinary_input(written, finder):
    session = Session(written / "boxes" / "1" / "model.onnx", threads=1)
    assert {i.name for i in session.inputs} == {"x", "target_class", "target_box"}
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    classes, boxes = [1, -1, -1], [-1, 5, 63]
    got = session.run({"x": x, "target_class": np.array(classes), "target_box": np.array(boxes)})
    for name, values in finder.run(x, classes, boxes, tables=True).items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    assert got["heatmap_box"].tolist()[1:] == [5, 63]


def test_a_box_cannot_be_fixed(tmp_path):
    fixed = tmp_path / "fixed.onnx"
    attach(placed_detector(), box=3).save(fixed)
    with pytest.raises(ExplainError, match="the input 'target_box' is 3 by default, but clients choose it here"):
        write_repository(fixed, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
    assert CliRunner().invoke(app, ["triton", str(fixed), "-o", str(tmp_path / "repository")]).exit_code == 1


def test_a_plain_model_is_attached_first(repository, written, tmp_path):
    (folder,) = write_repository(repository / "models" / "shapes.onnx", tmp_path)
    assert (folder / "config.pbtxt").read_text("utf-8") == (written / "shapes" / "config.pbtxt").read_text("utf-8")


def test_the_readme_warns_and_says_how_to_start(written):
    text = (written / "shapes" / "README.md").read_text("utf-8")
    for part in ("26.02", "CVE-2025-23310", "--model-control-mode=none", "127.0.0.1:8000", "| `heatmap` | out |"):
        assert part in text
    assert "target_box" not in text
    text = (written / "boxes" / "README.md").read_text("utf-8")
    for part in ("for detection", "| `target_box` | in | int64 | [N, 1] |", "- `detection_boxes`: x0 y0 x1 y1 in"):
        assert part in text
    assert all(f"`{layer}`" in text for layer in Explainer(written / "boxes" / "1" / "model.onnx").metadata.layers)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a\\b", 'a"', "a b", "x" * 101])
def test_a_name_cannot_leave_the_repository(explained, tmp_path, name):
    with pytest.raises(ExplainError, match="is not a valid model name"):
        write_repository(explained, tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_half_written(explained, tmp_path, repository):
    (tmp_path / "shapes_images").mkdir()
    with pytest.raises(ExplainError, match=r"shapes_images.* already exists"):
        write_repository(explained, tmp_path, name="shapes", ensemble=True)
    assert [p.name for p in tmp_path.iterdir()] == ["shapes_images"]
    with pytest.raises(ExplainError, match="cannot be chosen any more"):
        write_repository(explained, tmp_path, name="other", layer="x")
    with pytest.raises(ExplainError):
        write_repository(repository / "models" / "shapes.txt", tmp_path)


def test_a_fixed_batch_cannot_be_batched(explained, tmp_path, repository):
    fixed = onnx.load(repository / "models" / "shapes.onnx")
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(ExplainError, match="use --max-batch 0"):
        write_repository(tmp_path / "fixed.onnx", tmp_path / "repository")
    (folder,) = write_repository(tmp_path / "fixed.onnx", tmp_path / "repository", max_batch=0)
    assert "dims: [ 1, 3, 96, 96 ]" in (folder / "config.pbtxt").read_text("utf-8")


def test_what_triton_cannot_switch_off_is_refused(repository, tmp_path):
    proto = onnx.load(repository / "models" / "shapes.onnx")
    explained = attach(proto)
    explained.model.metadata["onnx_gradcam.disabled_optimizers"] = '["FusePadding"]'
    explained.save(tmp_path / "hazard.onnx")
    with pytest.raises(ExplainError, match=r"FusePadding.*Triton cannot disable it"):
        write_repository(tmp_path / "hazard.onnx", tmp_path / "repository")


class Triton:
    """The `tritonserver` of nvidia-pytriton on a repository."""

    def __init__(self, repository: Path, work: Path) -> None:
        packages = Path(importlib.util.find_spec("pytriton").origin).parents[1]
        root = packages / "pytriton" / "tritonserver"
        backends = work / "backends"
        shutil.copytree(root / "backends" / "python", backends / "python")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(root / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
        self.http, self.grpc, metrics = free_ports(3)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        }
        self.log = work / "log.txt"
        command = [root / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}"]
        command += [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
        command += [f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={metrics}"]
        command += ["--allow-gpu-metrics=false", "--model-control-mode=none"]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text("utf-8")
            ready = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text("utf-8"))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def live(written, tmp_path_factory):
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("nvidia-pytriton is not installed")
    work = tmp_path_factory.mktemp("live")
    repository = work / "repository"
    shutil.copytree(written, repository)
    for name in ("shapes", "boxes"):
        config = repository / name / "config.pbtxt"
        own = 'platform: "onnxruntime_onnx"\nbackend: "onnxruntime"\n'
        assert own in config.read_text("utf-8")
        config.write_text(config.read_text("utf-8").replace(own, 'backend: "python"\n'), "utf-8")
        (repository / name / "1" / "model.py").write_text(TWIN, "utf-8")
    server = Triton(repository, work)
    yield server
    server.close()


@pytest.fixture
def client(live):
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    with triton.InferenceServerClient(f"127.0.0.1:{live.grpc}") as found:
        yield found


def tensor(name: str, values: np.ndarray, datatype: str):
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


@pytest.mark.triton
def test_a_live_server_gives_what_the_explainer_gives(client, explainer, rows):
    classes = np.array([3, -1, 0, 2, 5])
    answer = client.infer("shapes", [tensor("image", rows, "FP32"), tensor("target_class", classes[:, None], "INT64")])
    for name, values in explainer.run(rows, classes.tolist()).items():
        got = answer.as_numpy(name)
        np.testing.assert_allclose(got.reshape(values.shape), values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
    assert answer.as_numpy("heatmap").max() > 0.99
    assert (
        answer.as_numpy("heatmap_class").tolist()
        == explainer.run(rows, classes.tolist())["heatmap_class"][:, None].tolist()
    )


@pytest.mark.triton
def test_a_live_server_explains_the_box_that_is_asked_for(client, finder):
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    classes, boxes = np.array([1, -1, -1]), np.array([-1, 5, 63])
    chosen = [tensor("target_class", classes[:, None], "INT64"), tensor("target_box", boxes[:, None], "INT64")]
    answer = client.infer("boxes", [tensor("x", x, "FP32"), *chosen])
    for name, values in finder.run(x, classes.tolist(), boxes.tolist(), tables=True).items():
        got = answer.as_numpy(name).reshape(values.shape)
        np.testing.assert_allclose(got, values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


@pytest.mark.triton
def test_a_live_ensemble_explains_the_box_that_is_asked_for(client, finder, photo):
    box = finder.boxes(photo)[1]
    file = tensor("image_bytes", np.array([[photo]], dtype=object), "BYTES")
    for inputs, explained in (
        ([], finder(photo)),
        ([tensor("target_box", np.array([[box.index]]), "INT64")], finder(photo, box=box)),
        ([tensor("target_class", np.array([[0]]), "INT64")], finder(photo, 0)),
    ):
        answer = client.infer("boxes_images", [file, *inputs])
        assert answer.as_numpy("heatmap_box").tolist() == [[explained.maps[0].boxes[0].index]]
        assert answer.as_numpy("heatmap_class").tolist() == [[explained.target.index]]
        np.testing.assert_allclose(answer.as_numpy("heatmap")[0], explained.heatmap, atol=TOLERANCE)


@pytest.mark.triton
@pytest.mark.parametrize(("suffix", "target"), [(".png", None), (".jpg", 1), (".webp", 1)])
def test_a_live_ensemble_takes_image_files(client, explainer, photo, suffix, target):
    image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    photo = cv2.imencode(suffix, image)[1].tobytes()
    inputs = [tensor("image_bytes", np.array([[photo]], dtype=object), "BYTES")]
    if target is not None:
        inputs.append(tensor("target_class", np.array([[target]]), "INT64"))
    answer = client.infer("shapes_images", inputs)
    expected = explainer(photo, target)
    assert answer.as_numpy("heatmap_class").tolist() == [[expected.target.index]]
    np.testing.assert_allclose(answer.as_numpy("heatmap")[0], expected.heatmap, atol=TOLERANCE)
    np.testing.assert_allclose(answer.as_numpy("logits")[0], expected.scores, rtol=1e-4, atol=TOLERANCE)


@pytest.mark.triton
def test_a_live_ensemble_refuses_what_is_no_image(client, live):
    triton = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed")
    for data, says in ((b"no image", "not an image in a supported format"), (b"\xff\xd8\xff\xe0", "damaged")):
        with pytest.raises(triton.InferenceServerException, match=says):
            client.infer("shapes_images", [tensor("image_bytes", np.array([[data]], dtype=object), "BYTES")])
    assert live.process.poll() is None


@pytest.mark.triton
def test_live_metadata_and_statistics(client):
    metadata = client.get_model_metadata("shapes", as_json=True)
    assert {i["name"]: i["shape"] for i in metadata["inputs"]} == {
        "image": ["-1", "3", "96", "96"],
        "target_class": ["-1", "1"],
    }
    assert client.is_model_ready("shapes_images")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_word_is_refused_before_anything_is_written(repository, tmp_path, name):
    choices, message = WRONG[name]
    with pytest.raises(ExplainError) as error:
        write_repository(repository / "models" / "shapes.onnx", tmp_path / "repository", **choices)
    assert message in str(error.value)
    assert not (tmp_path / "repository").exists()


def test_class_names_of_the_wrong_number_are_refused(repository, explained, tmp_path):
    names = [f"class {i}" for i in range(7)]
    with pytest.raises(ExplainError, match="7 class names for 6 classes; the first, often 'background'"):
        write_repository(repository / "models" / "shapes.onnx", tmp_path / "repository", labels=names)
    with pytest.raises(ExplainError, match="labels cannot be chosen"):
        write_repository(explained, tmp_path / "repository", labels=names)
    assert not (tmp_path / "repository").exists()
