"""The server as its clients see it: equal to the explainer in process, nothing lost, nothing mixed up."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

grpc = pytest.importorskip("grpc", reason="tritonclient is not installed")
triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

pytestmark = pytest.mark.serve

TOLERANCE = 1e-5


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as found:
        yield found


def tensor(name: str, values: np.ndarray, datatype: str):
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def files(*images: bytes):
    return tensor("image_bytes", np.array(images, dtype=object), "BYTES")


def document(*images: bytes, **parameters) -> dict:
    data = [base64.b64encode(one).decode() for one in images]
    outputs = [{"name": name} for name in parameters.pop("outputs", [])]
    inputs = [{"name": "image_bytes", "datatype": "BYTES", "shape": [len(data)], "data": data}]
    return {"inputs": inputs, "parameters": parameters, **({"outputs": outputs} if outputs else {})}


def test_tensors_over_grpc_equal_those_in_process(server, client, explainer, rows):
    classes = [2, -1, 0, 5, -1]
    expected = explainer.run(rows, classes)
    inputs = [tensor("image", rows, "FP32"), tensor("target_class", np.array(classes), "INT64")]
    answer = client.infer(server.name, inputs, request_id="seven")
    assert answer.get_response().id == "seven"
    assert {o.name for o in answer.get_response().outputs} == set(expected)
    for name, values in expected.items():
        got = answer.as_numpy(name)
        assert got.dtype == values.dtype
        np.testing.assert_allclose(got, values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
    assert answer.as_numpy("heatmap").max() > 0.99


def test_tensors_over_rest_equal_those_in_process(server, explainer, rows):
    expected = explainer.run(rows[:2], [4, 4])
    inputs = [{"name": "image", "datatype": "FP32", "shape": [2, 3, 96, 96], "data": rows[:2].reshape(-1).tolist()}]
    got = server.outputs({"inputs": inputs, "parameters": {"target": explainer.labels[4]}})
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)
    nested = [{**inputs[0], "data": rows[:2].tolist()}]
    only = server.outputs({"inputs": nested, "parameters": {"target": 4}, "outputs": [{"name": "heatmap"}]})
    assert set(only) == {"heatmap"}
    np.testing.assert_array_equal(only["heatmap"], got["heatmap"])


def test_one_class_a_row_and_typed_contents(server, client, explainer, rows):
    """A client that fills the typed fields instead of raw bytes, and says the classes as JSON."""
    request = triton.service_pb2.ModelInferRequest(model_name=server.name)
    entry = request.inputs.add(name="image", datatype="FP32", shape=[2, 3, 96, 96])
    entry.contents.fp32_contents.extend(rows[:2].reshape(-1).tolist())
    request.parameters["target"].string_param = json.dumps([explainer.labels[1], 3])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        answer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    raw = answer.raw_output_contents[[o.name for o in answer.outputs].index("heatmap")]
    expected = explainer.run(rows[:2], [1, 3])["heatmap"]
    np.testing.assert_allclose(np.frombuffer(raw, "<f4"), expected.reshape(-1), atol=TOLERANCE)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_images_equal_those_in_process(transport, server, client, explainer, photo):
    wanted = ["scores", "image", "heatmap_class", "label", "score", "heatmap", "cam"]
    expected = explainer(photo, ["circle", "star", "top1"])
    if transport == "grpc":
        answer = client.infer(
            server.name,
            [files(photo, photo)],
            outputs=[triton.InferRequestedOutput(name) for name in wanted],
            parameters={"target": '["circle", "star", "top1"]'},
        )
        got = {name: answer.as_numpy(name) for name in wanted}
        labels = [one.decode() for one in got["label"]]
    else:
        got = server.outputs(document(photo, photo, target=["circle", "star", "top1"], outputs=wanted))
        labels = got["label"]
    count = len(expected.maps)
    assert got["image"].tolist() == [0] * count + [1] * count
    assert got["heatmap_class"].tolist() == [m.target.index for m in expected.maps] * 2
    assert labels == [m.target.label for m in expected.maps] * 2
    np.testing.assert_allclose(got["scores"], [expected.scores] * 2, rtol=TOLERANCE)
    np.testing.assert_allclose(got["score"], [m.target.score for m in expected.maps] * 2, rtol=TOLERANCE)
    np.testing.assert_allclose(got["heatmap"], [m.heatmap for m in expected.maps] * 2, atol=TOLERANCE)
    np.testing.assert_allclose(got["cam"], [m.cam for m in expected.maps] * 2, atol=TOLERANCE)


def test_overlay_and_grey_heatmap_are_images(server, explainer, photo):
    wanted = ["overlay_png", "heatmap_png"]
    got = server.outputs(document(photo, target="star", outputs=wanted, colormap="viridis", opacity=0.3))
    shown, grey = (
        cv2.imdecode(np.frombuffer(base64.b64decode(got[name][0]), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        for name in wanted
    )
    expected = explainer(photo, "star")
    difference = shown.astype(int) - expected.overlay(colormap="viridis", opacity=0.3).pixels
    assert np.abs(difference).max() <= 1
    np.testing.assert_allclose(grey[:, :, 0] / 255, expected.heatmap, atol=0.5 / 255 + TOLERANCE)


def test_a_large_image_gives_an_overlay_of_screen_size(server, explainer):
    """The heatmap lies on the same places as on the full image."""
    image = np.full((1500, 3000, 3), 30, np.uint8)
    image[200:700, 300:900] = (255, 80, 60)
    source = cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes()
    got = server.outputs(document(source, outputs=["overlay_png"], opacity="1"))
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(got["overlay_png"][0]), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (512, 1024, 3)
    full = explainer(source).overlay(opacity=1).pixels[:, :, ::-1]
    small = cv2.resize(full, (1024, 512), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(shown.astype(int) - small).mean() < 3


def test_thousand_requests_of_eight_clients_are_all_answered_and_none_is_mixed_up(server, explainer, rows, photo):
    """Tensors and images, different classes: what runs together does not depend on each other."""
    classes = len(explainer.labels)
    expected = {
        (row, c): explainer.run(rows[row : row + 1], [c])["heatmap"][0] for row in range(5) for c in range(classes)
    }
    of_photo = {c: explainer(photo, c).heatmap for c in range(classes)}
    outputs = [triton.InferRequestedOutput("heatmap")]
    local = threading.local()
    before = server.metric("onnx_gradcam_explanations_total"), server.metric("onnx_gradcam_batch_rows_count")

    def ask(number: int) -> float:
        if not hasattr(local, "client"):
            local.client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        row, c = number % 5, number // 5 % classes
        if number % 4 == 0:
            answer = local.client.infer(
                server.name, [files(photo)], outputs=outputs, parameters={"target": c}, client_timeout=60
            )
            return float(np.abs(answer.as_numpy("heatmap")[0] - of_photo[c]).max())
        inputs = [tensor("image", rows[row : row + 1], "FP32"), tensor("target_class", np.array([[c]]), "INT64")]
        answer = local.client.infer(server.name, inputs, outputs=outputs, client_timeout=60)
        return float(np.abs(answer.as_numpy("heatmap")[0] - expected[row, c]).max())

    with ThreadPoolExecutor(8) as pool:
        differences = list(pool.map(ask, range(1000)))
    assert len(differences) == 1000
    assert max(differences) <= TOLERANCE
    assert server.metric("onnx_gradcam_explanations_total") - before[0] == 1000
    batches = server.metric("onnx_gradcam_batch_rows_count") - before[1]
    assert batches < 1000, "nothing ran together"


def test_health_readiness_and_metadata(server, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.name)
    assert server.get("/v2/health/live")[0] == 200
    assert server.get(f"/v2/models/{server.name}/ready")[0] == 200
    assert json.loads(server.get("/v2")[1])["name"] == "onnx-gradcam"
    described = json.loads(server.get(f"/v2/models/{server.name}")[1])
    assert {i["name"]: (i["datatype"], i["shape"]) for i in described["inputs"]} == {
        "image": ("FP32", [-1, 3, 96, 96]),
        "target_class": ("INT64", [-1]),
        "image_bytes": ("BYTES", [-1]),
    }
    outputs = {o["name"]: o["shape"] for o in described["outputs"]}
    assert outputs["heatmap"] == [-1, 96, 96]
    assert outputs["overlay_png"] == [-1]
    over_grpc = client.get_model_metadata(server.name, as_json=True)
    assert [i["name"] for i in over_grpc["inputs"]] == ["image", "target_class", "image_bytes"]


def test_metrics_count_explanations_refusals_and_time(server, photo):
    names = ("onnx_gradcam_explanations_total", "onnx_gradcam_request_seconds_count")
    before = [server.metric(name) for name in names]
    server.outputs(document(photo, target="top3"))
    assert [server.metric(name) - b for name, b in zip(names, before, strict=True)] == [3, 1]
    server.infer(b"no json")
    refused = server.metric("onnx_gradcam_refused_total")
    server.infer(b"no json")
    assert server.metric("onnx_gradcam_refused_total") == refused + 1
    assert server.metric("onnx_gradcam_pending") == 0
