"""Too many, too slow, too large."""

from __future__ import annotations

import base64
import contextlib
import socket
import time

import numpy as np
import pytest

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
