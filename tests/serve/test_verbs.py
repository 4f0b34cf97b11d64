"""`predict` and `explain` as clients of KServe, Vertex AI and curl use them, and tensors as bytes over REST."""

from __future__ import annotations

import base64
import io
import json

import cv2
import numpy as np
import onnx
import pytest
from support.graphs import graph

from onnx_gradcam import Explainer
from onnx_gradcam.errors import ServerError
from onnx_gradcam.serve.hosting import Source
from onnx_gradcam.serve.limits import Limits

pytestmark = pytest.mark.serve

VERTEX_KEYS = {
    "baselineOutputValue",
    "instanceOutputValue",
    "featureAttributions",
    "outputIndex",
    "outputDisplayName",
    "approximationError",
    "outputName",
}
"""What Google's readers take of an attribution: any other key is an error there."""


def instance(photo: bytes) -> dict:
    return {"image": {"b64": base64.b64encode(photo).decode()}}


def post(server, path: str, body: object, **headers: str) -> tuple[int, bytes]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.request(path, content, {name.replace("_", "-"): value for name, value in headers.items()}.items())


def verb(server, name: str, photos: list[bytes], **parameters) -> dict:
    document = {"instances": [instance(one) for one in photos], "parameters": parameters}
    status, answer = post(server, f"/v1/models/{server.name}:{name}", document)
    assert status == 200, answer
    return json.loads(answer)


def form(photo: bytes, **fields: str) -> tuple[bytes, str]:
    parts = [f'--X\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    file = b'--X\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(parts) + file + photo + b"\r\n--X--\r\n", "multipart/form-data; boundary=X"


def test_predict_gives_scores_and_the_predicted_class(server, explainer, photo):
    answer = verb(server, "predict", [photo, photo])
    expected = explainer(photo)
    assert set(answer) == {"predictions"}
    assert len(answer["predictions"]) == 2
    for one in answer["predictions"]:
        np.testing.assert_allclose(one["scores"], expected.scores, rtol=1e-5)
        assert (one["class"], one["label"]) == (expected.maps[0].target.index, expected.maps[0].target.label)
        assert set(one) == {"scores", "class", "label", "score"}


def test_explain_gives_what_vertex_gave(server, explainer, photo):
    answer = verb(server, "explain", [photo])
    (attribution,) = answer["explanations"][0]["attributions"]
    expected = explainer(photo).maps[0]
    grey = explainer(np.full((96, 96, 3), 128, np.uint8))
    assert set(attribution) <= VERTEX_KEYS
    assert attribution["outputName"] == "scores"
    assert attribution["outputIndex"] == [expected.target.index]
    assert attribution["outputDisplayName"] == expected.target.label
    assert attribution["instanceOutputValue"] == pytest.approx(expected.target.score, rel=1e-5)
    assert attribution["baselineOutputValue"] == pytest.approx(float(grey.scores[expected.target.index]), rel=1e-5)
    image = attribution["featureAttributions"]["image"]
    np.testing.assert_allclose(image["cam"], expected.cam, atol=1e-5)
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(image["b64_jpeg"]), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(shown.astype(int) - explainer(photo).overlay().pixels).mean() < 4
    assert "b64_png" not in image


def test_several_classes_come_surest_first(server, explainer, photo):
    answer = verb(server, "explain", [photo, photo], target="top3")
    for one in answer["explanations"]:
        values = [a["instanceOutputValue"] for a in one["attributions"]]
        assert values == sorted(values, reverse=True)
        assert [a["outputIndex"][0] for a in one["attributions"]] == np.argsort(-explainer(photo).scores)[:3].tolist()


def test_predict_with_explanations_inside(server, photo):
    """Vertex's `predict` lets nothing through beside the predictions."""
    answer = verb(server, "predict", [photo], explain=True)
    assert set(answer) == {"predictions"}
    assert answer["predictions"][0]["explanation"] == verb(server, "explain", [photo])["explanations"][0]


@pytest.mark.parametrize("way", ["form", "raw", "raw without a type"])
def test_an_image_as_it_is(server, explainer, photo, way):
    """The answer is JSON, an overlay or NumPy's file."""
    body, kind = form(photo, target="star") if way == "form" else (photo, "image/png")
    if way == "raw without a type":
        kind = "application/x-www-form-urlencoded"  # curl --data-binary
    path = "/explain" if way == "form" else f"/v1/models/{server.name}:explain?target=star"
    expected = explainer(photo, "star")
    status, answer = post(server, path, body, Content_Type=kind)
    assert status == 200, answer
    (attribution,) = json.loads(answer)["explanations"][0]["attributions"]
    assert attribution["outputDisplayName"] == "star"
    status, answer = post(server, path, body, Content_Type=kind, Accept="image/png, */*;q=0.1")
    shown = cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(shown.astype(int) - expected.overlay().pixels).max() <= 1
    status, answer = post(server, path, body, Content_Type=kind, Accept="application/x-npy")
    np.testing.assert_allclose(np.load(io.BytesIO(answer)), [expected.heatmap], atol=1e-5)
    assert post(server, path, body, Content_Type=kind, Accept="text/html")[0] == 406


def test_fields_of_a_form_are_parameters(server, photo):
    body, kind = form(photo, target="circle,star", colormap="viridis")
    status, answer = post(server, "/explain", body, Content_Type=kind)
    assert status == 200, answer
    names = {a["outputDisplayName"] for a in json.loads(answer)["explanations"][0]["attributions"]}
    assert names == {"circle", "star"}


def binary_request(rows: np.ndarray, **more) -> tuple[bytes, int]:
    tail = rows.astype("<f4").tobytes()
    entry = {"name": "image", "datatype": "FP32", "shape": list(rows.shape)}
    entry["parameters"] = {"binary_data_size": len(tail)}
    head = json.dumps({"inputs": [entry], **more}).encode()
    return head + tail, len(head)


def test_tensors_as_bytes_equal_those_in_process(server, explainer, rows):
    outputs = [{"name": "heatmap", "parameters": {"binary_data": True}}, {"name": "logits"}]
    body, length = binary_request(rows[:2], outputs=outputs, parameters={"target": 3}, id="seven")
    request = f"/v2/models/{server.name}/infer"
    status, answer = post(server, request, body, Inference_Header_Content_Length=str(length))
    assert status == 200, answer
    head, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    heatmap, logits = head["outputs"]
    expected = explainer.run(rows[:2], [3, 3])
    assert head["id"] == "seven"
    assert heatmap["parameters"] == {"binary_data_size": len(answer) - end}
    got = np.frombuffer(answer[end:], "<f4").reshape(heatmap["shape"])
    np.testing.assert_allclose(got, expected["heatmap"], atol=1e-5)
    np.testing.assert_allclose(np.reshape(logits["data"], logits["shape"]), expected["logits"], rtol=1e-5)


def test_triton_clients_over_rest_send_and_read_bytes(server, explainer, rows, photo):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    with triton.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.name)
        tensor = triton.InferInput("image", [2, 3, 96, 96], "FP32")
        tensor.set_data_from_numpy(rows[:2])
        got = client.infer(server.name, [tensor]).as_numpy("heatmap")
        np.testing.assert_allclose(got, explainer.run(rows[:2], [-1, -1])["heatmap"], atol=1e-5)
        image = triton.InferInput("image_bytes", [1], "BYTES")
        image.set_data_from_numpy(np.array([photo], dtype=object))
        outputs = [triton.InferRequestedOutput(name) for name in ("label", "overlay_png")]
        answer = client.infer(server.name, [image], outputs=outputs)
        assert answer.as_numpy("label").tolist() == [explainer(photo).maps[0].target.label.encode()]
        assert answer.as_numpy("overlay_png")[0].startswith(b"\x89PNG")


def test_names_routes_and_description(server):
    assert json.loads(server.get("/v1/models")[1]) == {"models": [server.name]}
    assert json.loads(server.get(f"/v1/models/{server.name}")[1]) == {"name": server.name, "ready": True}
    assert json.loads(server.get("/v2")[1])["extensions"] == ["binary_tensor_data"]
    described = json.loads(server.get("/openapi.json")[1])
    assert f"/v1/models/{server.name}:explain" in described["paths"]
    assert "http" not in json.dumps(described).replace("https", "")
    for path, methods in described["paths"].items():
        assert server.request(path, b"{}" if "post" in methods else None)[0] in (200, 400), path


def test_the_environment_of_vertex_chooses_port_and_routes(explained, start_server, photo):
    routes = {"AIP_PREDICT_ROUTE": "/v1/endpoints/7/deployedModels/8:predict", "AIP_HEALTH_ROUTE": "/healthy"}
    server = start_server(explained, "--threads=1", environment=routes)
    assert server.get("/healthy")[0] == 200
    document = {"instances": [instance(photo)], "parameters": {"explain": True}}
    status, answer = post(server, routes["AIP_PREDICT_ROUTE"], document)
    assert status == 200
    assert json.loads(answer)["predictions"][0]["explanation"]["attributions"]


def test_instances_of_verbs_carry_the_values_of_other_inputs(tmp_path, photo):
    """A table scales the channels before the scores, so that other rows have other scores."""
    absent = "onnx-gradcam[serve] is not installed"
    service, verbs = (pytest.importorskip(f"onnx_gradcam.serve.{name}", reason=absent) for name in ("service", "verbs"))
    table = graph(
        "c = Conv<pads=[1,1,1,1]>(x, K) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) g = Gemm(table, G) "
        "m = Mul(f, g) n = Mul(m, gain) y = Gemm(n, W)",
        inputs="float[N,3,12,12] x, float[N,3] table, float gain",
        K=(5, 3, 3, 3), G=(3, 5), W=(5, 4),
    )  # fmt: skip
    onnx.save(table, tmp_path / "m.onnx")
    settings = {"preprocess": {"size": [12, 12], "scale": 1 / 64}, "threads": 1}
    explainer = Explainer(table, **settings, feeds={"gain": 1.5})
    source = Source(name="m", version="1", path=tmp_path / "m.onnx", limits=Limits(), settings=settings)
    model = service.Served(source, service.Metrics())
    rows = np.array([[0.4, -1.2, 0.7], [1, 0, 0]], np.float32)
    content = base64.b64encode(photo).decode()

    def ask(*feeds: object) -> dict:
        body = {"instances": [{"image": {"b64": content}, "feeds": one} for one in feeds]}
        return json.loads(verbs.predicted(model, json.dumps(body).encode(), explain=True))

    try:
        got = ask(*({"table": row.tolist(), "gain": 1.5} for row in rows))
        for row, one in zip(rows, got["predictions"], strict=True):
            np.testing.assert_allclose(one["scores"], explainer(photo, feeds={"table": row}).scores, rtol=1e-5)
        refused = [
            ([{}], "need values: 'table'"),
            ([{"table": [1, 2, 3]}, {}], "names other inputs in one instance than in another"),
            ([[1]], "'feeds' is no object"),
            ([{"tabel": [1]}], "no other input 'tabel' to feed; did you mean 'table'"),
            ([{"table": "/etc/passwd", "gain": 1}], "the values for 'table' are not numbers"),
            ([{"table": [[1, 2], [3]], "gain": 1}], "no array"),
        ]
        for feeds, sentence in refused:
            with pytest.raises(ServerError, match=sentence):
                ask(*feeds)
    finally:
        model.close()
