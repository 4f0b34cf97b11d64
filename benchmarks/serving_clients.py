"""Shared by the serving benchmarks: a running server, and clients that send requests to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

if TYPE_CHECKING:
    from typing_extensions import Self

MODEL = "measured"


def free_ports(count: int) -> list[int]:
    """Free ports on the loopback interface."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Served:
    """A running `onnx-gradcam serve`, or `serving_plain.py` with the same options; a context manager."""

    def __init__(self, model: Path, *options: str, plain: bool = False) -> None:
        self.http, self.grpc = free_ports(2)
        self._open = contextlib.ExitStack()
        ports = (f"--port={self.http}", f"--grpc-port={self.grpc}")
        start = [str(Path(__file__).with_name("serving_plain.py"))] if plain else ["-m", "onnx_gradcam", "serve"]
        command = [sys.executable, *start, str(model), "--name", MODEL, *ports, *options]
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            with contextlib.suppress(OSError):
                connection = self.connection()
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start: {' '.join(command)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(30)

    def connection(self) -> http.client.HTTPConnection:
        """A REST connection, closed with the server."""
        made = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        return self._open.enter_context(contextlib.closing(made))

    def client(self) -> InferenceServerClient:
        """A gRPC client, closed with the server."""
        return self._open.enter_context(InferenceServerClient(f"127.0.0.1:{self.grpc}"))

    def megabytes(self) -> float:
        """The resident memory of the server."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def photograph(side: int = 640) -> bytes:
    """A JPEG file of smooth colors and noise, as large as a typical image on the web."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 12, 3), np.uint8)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    noisy = np.clip(smooth + rng.integers(-8, 8, smooth.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def tensor_input(name: str, values: Any, datatype: str = "FP32") -> InferInput:
    """A gRPC input."""
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def ask_tensors(client: InferenceServerClient, inputs: list[InferInput], outputs: list[str]) -> None:
    """Send tensors over gRPC and read the outputs."""
    answer = client.infer(MODEL, inputs, outputs=[InferRequestedOutput(name) for name in outputs])
    for name in outputs:
        assert answer.as_numpy(name) is not None


def image_body(photo: bytes, *, target: str, outputs: list[str]) -> bytes:
    """The body of a REST request with one image file."""
    data = base64.b64encode(photo).decode()
    document = {
        "inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [data]}],
        "outputs": [{"name": name} for name in outputs],
        "parameters": {"target": target},
    }
    return json.dumps(document).encode()


def tensor_body(name: str, values: Any, outputs: list[str]) -> bytes:
    """The body of a REST request with numbers in JSON."""
    entry = {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.reshape(-1).tolist()}
    return json.dumps({"inputs": [entry], "outputs": [{"name": one} for one in outputs]}).encode()


def post(connection: http.client.HTTPConnection, body: bytes) -> int:
    """Send a REST request and return the status; a connection that the server has closed is reopened."""
    for _ in range(2):
        try:
            connection.request("POST", f"/v2/models/{MODEL}/infer", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            connection.close()
            continue
        response.read()
        return response.status
    raise ConnectionError("the server closes every connection")
