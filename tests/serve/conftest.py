"""A server, started once by the command that users type, and ways to ask it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
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

from onnx_gradcam import Explainer, attach
from onnx_gradcam.images.decoding import prepare, read_image


class Server:
    """A running `onnx-gradcam serve`."""

    def __init__(
        self,
        model: Path,
        *options: str,
        name: str = "shapes",
        log: Path,
        environment: dict[str, str] | None = None,
        ports=None,
        port_option: str = "--port",
    ) -> None:
        self.http, self.grpc = ports or free_ports(2)
        self.name = name
        self.log = log
        numbers = [f"{port_option}={self.http}", f"--grpc-port={self.grpc}"]
        named = ["--name", name] if name else []
        command = [sys.executable, "-m", "onnx_gradcam", "serve", str(model), *named, *numbers, *options]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **(environment or {})},
            )
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text("utf-8"))
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.http), timeout=5):
                return
            time.sleep(0.05)
        raise RuntimeError("the server did not become ready: " + log.read_text("utf-8"))

    def request(self, path: str, body: bytes | None = None, headers=()) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.http}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json", **dict(headers)})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str, **options) -> tuple[int, bytes]:
        return self.request(path, **options)

    def infer(self, document: object, **options) -> tuple[int, dict]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, answer = self.request(f"/v2/models/{self.name}/infer", body, **options)
        return status, json.loads(answer)

    def outputs(self, document: object) -> dict[str, np.ndarray | list[str]]:
        """The outputs of a request that has to succeed."""
        status, answer = self.infer(document)
        assert status == 200, answer
        found = {}
        for one in answer["outputs"]:
            numeric = one["datatype"] != "BYTES"
            dtype = {"FP32": np.float32, "INT64": np.int64}.get(one["datatype"])
            found[one["name"]] = np.array(one["data"], dtype).reshape(one["shape"]) if numeric else one["data"]
        return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.get("/metrics")[1].decode()
        lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        assert lines, f"{name} is not in /metrics"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def megabytes(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="session")
def explained(repository, tmp_path_factory) -> Path:
    """The demo classifier with its explanation."""
    path = tmp_path_factory.mktemp("explained") / "explained.onnx"
    attach(repository / "models" / "shapes.onnx").save(path)
    return path


@pytest.fixture(scope="session")
def explainer(explained) -> Explainer:
    return Explainer(explained, threads=1)


@pytest.fixture(scope="session")
def rows(repository, explainer) -> np.ndarray:
    """Five inputs of the model, `float32 [5, 3, 96, 96]`: drawn images with some noise."""
    rng = np.random.default_rng(0)
    names = ["circle_and_star", "square_and_ring", "triangle_and_cross", "circle_and_star", "square_and_ring"]
    images = [read_image(repository / "models" / f"{name}.png") for name in names]
    inputs = np.stack([prepare(one, explainer.preprocessing)[0] for one in images])
    return inputs + 0.02 * rng.standard_normal(inputs.shape).astype(np.float32)


@pytest.fixture(scope="session")
def photo(repository) -> bytes:
    return (repository / "models" / "circle_and_star.png").read_bytes()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory):
    """Start servers; at the end each has to be alive, to stop when told, and to have logged no failure."""
    if importlib.util.find_spec("uvicorn") is None:
        pytest.skip("onnx-gradcam[serve] is not installed")
    started: list[Server] = []

    def start(model: Path, *options: str, **more) -> Server:
        started.append(Server(model, *options, log=tmp_path_factory.mktemp("server") / "log.txt", **more))
        return started[-1]

    start.stopped = started.remove
    yield start
    for one in started:
        assert one.process.poll() is None, one.log.read_text("utf-8")
        assert one.close() == 0
        assert "Traceback" not in one.log.read_text("utf-8")


@pytest.fixture(scope="module")
def server(explained, start_server) -> Server:
    return start_server(explained, "--threads=1")
