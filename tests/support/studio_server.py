"""A studio on a free port of this computer, and its requests as a browser or somebody else would send them."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

TOKEN = "a-token-of-the-tests"  # noqa: S105 - it guards a server of one test


@dataclass(frozen=True)
class Answer:
    """The response to a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


@dataclass(frozen=True)
class Studio:
    """A running studio."""

    port: int
    workbench: Any

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def ask(self, path: str, body: Any = None, *, token: str = TOKEN, method: str | None = None, **headers) -> Answer:
        """Send a request below the token; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = method or ("GET" if body is None else "POST")
        with contextlib.closing(connection):
            connection.request(kind, f"/{token}/{path}" if token else f"/{path}", data, named)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def add(self, name: str, data: bytes) -> str:
        """Drop an image; its id."""
        answer = self.ask(f"api/images?name={name}", data)
        assert answer.status == 200, answer.error
        return answer.json["id"]

    def events(self, path: str, image: str, **recipe) -> list[dict]:
        """The events of something that takes long, the last one its answer or error."""
        answer = self.ask(path, {"image": image, **recipe})
        assert answer.status == 200, answer.error
        return [json.loads(line) for line in answer.body.decode().splitlines()]

    def explain(self, image: str, **recipe) -> dict:
        last = self.events("api/explain", image, **recipe)[-1]
        assert "answer" in last, last
        return last["answer"]


@contextlib.contextmanager
def running(workbench, *, pending: int = 8) -> Iterator[Studio]:
    """Serve a workbench; skipped where the studio's packages are missing."""
    uvicorn = pytest.importorskip("uvicorn", reason="the studio is not installed: pip install '.[studio]'")
    application = pytest.importorskip("onnx_gradcam.studio.application").application
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            application(workbench, TOKEN, port, pending=pending), log_level="error", lifespan="off", access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Studio(port, workbench)
        finally:
            server.should_exit = True
            thread.join(20)
