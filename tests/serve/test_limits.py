"""Too many, too slow; and the runtime under MLServer's own command."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from support.serve_ports import free_ports

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def narrow(explained, start_server):
    """A server that lets two requests in, for four seconds each."""
    return start_server(explained, "--threads=1", "--max-pending=2", "--timeout=4", "--max-request=1")


def half_a_request(port: int, size: int = 100, sent: int = 1) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST /v2/models/shapes/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    stream.sendall(head.encode() + b"{" * sent)
    return stream


def whole_answer(connection) -> str:
    """An answer with all of its body, which may come in pieces."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths and len(body) >= int(lengths[0]):
            break
    return received.decode()


def image_request(photo: bytes) -> dict:
    data = [base64.b64encode(photo).decode()]
    return {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": data}]}


def test_slow_bodies_hold_no_place_and_are_refused_after_their_time(narrow, photo):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(half_a_request(narrow.http)) for _ in range(6)]
        time.sleep(0.3)
        assert narrow.infer(image_request(photo))[0] == 200
        answers = [whole_answer(one) for one in slow]
    assert all(one.startswith("HTTP/1.1 408") and "did not arrive in time" in one for one in answers)
    assert narrow.metric("onnx_gradcam_pending") == 0


def test_the_memory_of_slow_bodies_is_bounded(narrow, photo):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(half_a_request(narrow.http, 10**6, 950_000)) for _ in range(3)]
        answers = [whole_answer(one) for one in slow]
    assert sorted(one[9:12] for one in answers) == ["408", "408", "429"]
    assert narrow.infer(image_request(photo))[0] == 200


def test_a_client_that_goes_away_is_no_trouble(narrow, photo):
    for _ in range(5):
        half_a_request(narrow.http).close()
    time.sleep(0.3)
    assert narrow.metric("onnx_gradcam_pending") == 0


def test_the_limit_on_a_request_holds_for_grpc_too(narrow):
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    tensor = triton.InferInput("image", [20, 3, 96, 96], "FP32")
    tensor.set_data_from_numpy(np.zeros((20, 3, 96, 96), np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{narrow.grpc}") as client:
        with pytest.raises(triton.InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("shapes", [tensor])
        assert client.is_server_live()


@pytest.fixture(scope="module")
def stock(explained, tmp_path_factory):
    """MLServer's own command with the runtime: `mlserver start`."""
    if importlib.util.find_spec("mlserver") is None:
        pytest.skip("onnx-gradcam[serve] is not installed")
    folder = tmp_path_factory.mktemp("stock")
    http, grpc, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}), "utf-8")
    runtime = "onnx_gradcam.serve.mlserver.ExplainRuntime"
    extra = {"threads": 1, "limits": {"rows": 4}}
    model = {"name": "shapes", "implementation": runtime, "parameters": {"uri": str(explained), "extra": extra}}
    (folder / "model-settings.json").write_text(json.dumps(model), "utf-8")
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("mlserver"), "start", folder],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    base = f"http://127.0.0.1:{http}/v2/models/shapes"
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/ready", timeout=5):  # noqa: S310
            break
        assert process.poll() is None, (folder / "log.txt").read_text("utf-8")
        time.sleep(0.1)
    yield base, grpc
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def ask(base: str, document: dict) -> tuple[int, dict]:
    request = urllib.request.Request(  # noqa: S310
        f"{base}/infer", json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_mlservers_own_command_serves_images_and_tensors(stock, explainer, photo, rows):
    base, grpc = stock
    entry = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    outputs = [{"name": name} for name in ("heatmap", "label", "overlay_png")]
    status, answer = ask(base, {"inputs": [entry], "parameters": {"target": "star"}, "outputs": outputs})
    assert status == 200, answer
    heatmap, label, overlay = answer["outputs"]
    expected = explainer(photo, "star")
    np.testing.assert_allclose(np.reshape(heatmap["data"], heatmap["shape"])[0], expected.heatmap, atol=1e-5)
    assert label["data"] == ["star"]
    assert base64.b64decode(overlay["data"][0]).startswith(b"\x89PNG")
    triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
    tensor = triton.InferInput("image", [1, 3, 96, 96], "FP32")
    tensor.set_data_from_numpy(rows[:1])
    with triton.InferenceServerClient(f"127.0.0.1:{grpc}") as client:
        got = client.infer("shapes", [tensor], parameters={"target": 2}).as_numpy("heatmap")
    np.testing.assert_allclose(got, explainer.run(rows[:1], [2])["heatmap"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": [0.0]}, "has 1 values"),
        ({"datatype": "INT64"}, "send FP32"),
        ({"shape": [1, 3, 95, 96]}, "it must be"),
        ({"name": "other"}, "unknown input 'other'"),
        ({"shape": [5, 3, 96, 96]}, "exceed the limit of 4 heatmaps"),
    ],
)
def test_mlservers_own_command_refuses_what_is_malformed(stock, change, says):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 96, 96], "data": [0.5] * (3 * 96 * 96), **change}
    status, answer = ask(stock[0], {"inputs": [tensor]})
    assert 400 <= status < 500
    assert says in answer["error"]
