"""REST transport: bodies are read within limits and parsed off the event loop, and each refusal is one sentence.

MLServer's own endpoint reads bodies of any size, decompresses gzip without a bound, validates JSON with pydantic, which
creates an error for each of a million wrong entries, and stores tensors as Python lists.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from mlserver.errors import MLServerError
from mlserver.handlers import DataPlane
from mlserver.types import InferenceRequest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnx_gradcam.errors import ServerError, reason

from .limits import release
from .mlserver import ExplainRuntime
from .query import Query, Result, Tensor, check_counts

__all__ = ["inference_routes"]

_LOG: Final = logging.getLogger("mlserver.onnx_gradcam")
_MAX_CONTAINERS: Final = 1 << 18
"""Lists and objects in a body: once parsed, each takes fifty times its two bytes."""
_REFUSED: Final = (
    "/v2/repository/index",
    "/v2/repository/models/{model_name}/load",
    "/v2/repository/models/{model_name}/unload",
)


def inference_routes(data_plane: DataPlane, runtime: ExplainRuntime) -> list[BaseRoute]:
    """Routes that replace MLServer's: inference, and refusals of loading and unloading models."""

    async def infer(request: Request) -> Response:
        return await _Exchange(data_plane, runtime, request).response()

    async def refuse(_request: Request) -> Response:
        return _error("this server serves one model; it cannot be loaded or unloaded", 403)

    paths = ("/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{model_version}/infer")
    return [Route(path, infer, methods=["POST"]) for path in paths] + [
        Route(path, refuse, methods=["POST"]) for path in _REFUSED
    ]


class _Exchange:
    """One request and its response."""

    def __init__(self, data_plane: DataPlane, runtime: ExplainRuntime, request: Request) -> None:
        self._data_plane = data_plane
        self._runtime = runtime
        self._request = request
        self._received = 0

    async def response(self) -> Response:
        try:
            return await self._infer()
        except ServerError as error:
            self._runtime.count_refusal(error.status)
            return _error(str(error), error.status)
        except MLServerError as error:  # already counted
            return _error(str(error), error.status_code)
        except Exception:  # noqa: BLE001 - a bug must not stop the server
            self._runtime.count_refusal(500)
            _LOG.exception("a request failed")
            return _error("internal error; see the server's log", 500)
        finally:
            release(self._received)

    async def _infer(self) -> Response:
        name, version = self._request.path_params["model_name"], self._request.path_params.get("model_version")
        # Checked first, as MLServer keeps a metric for every model name that it receives.
        await self._data_plane.model_ready(name, version)
        loop = asyncio.get_running_loop()
        body = await self._body()
        with self._runtime.admitted():
            identity, query = await loop.run_in_executor(None, _parsed, body)
            del body
            payload = InferenceRequest.model_construct(id=identity, parameters=None, inputs=query)
            answer = await self._data_plane.infer(payload, name, version)
            content = await loop.run_in_executor(None, _written, answer)
        return Response(content, media_type="application/json")

    async def _body(self) -> bytes:
        """Read the body, within the limits of size and time."""
        try:
            return await asyncio.wait_for(self._read(), self._runtime.limits.seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise ServerError("the body did not arrive in time", 408) from error
        except ClientDisconnect as error:
            raise ServerError("the connection was closed before the body had arrived") from error

    async def _read(self) -> bytes:
        headers, most = self._request.headers, self._runtime.limits.request_bytes
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ServerError("bodies with a Content-Encoding are not supported; send the body uncompressed", 415)
        if "inference-header-content-length" in headers:
            raise ServerError("the binary tensor extension is not supported over REST; send raw tensors over gRPC")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise ServerError(
                f"the body has {length[:20]} bytes, which exceeds the limit of {most}; send a smaller one", 413
            )
        body = bytearray()
        with self._runtime.receiving() as receive:
            async for chunk in self._request.stream():
                receive(len(chunk))
                self._received += len(chunk)
                body += chunk
                if len(body) > most:
                    raise ServerError(f"the body exceeds the limit of {most} bytes; send a smaller one", 413)
        return bytes(body)


def _error(message: str, status: int) -> Response:
    return Response(orjson.dumps({"error": message}), status, media_type="application/json")


def _parsed(body: bytes) -> tuple[str | None, Query]:
    """Parse the identifier and the query of a JSON body."""
    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS:
        raise ServerError(f"the body has more than {_MAX_CONTAINERS} lists and objects; send flat lists")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ServerError(f"the body is not JSON ({reason(error, 120)})") from error
    if not isinstance(document, dict):
        raise ServerError("the body is not an object; send a JSON object with 'inputs'")
    identity = _member(document, "id", str, None)
    inputs, requested = _member(document, "inputs", list), _member(document, "outputs", list, [])
    parameters = _member(document, "parameters", dict, {})
    check_counts(inputs=inputs, outputs=requested, parameters=parameters)
    outputs = [_named(one, "outputs") for one in requested]
    tensors = [_tensor(one) for one in inputs]
    return identity, Query(tensors, parameters, outputs)


def _tensor(entry: Any) -> Tensor:
    name = _named(entry, "inputs")
    parameters = _member(entry, "parameters", dict, {})
    return Tensor(
        name,
        _member(entry, "datatype", str),
        _member(entry, "shape", list),
        _member(entry, "data", list),
        _member(parameters, "content_type", str, ""),
    )


def _named(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise ServerError(f"an entry of {where!r} is not an object; send objects with a 'name'")
    name: str = _member(entry, "name", str)
    return name


_REQUIRED: Final = object()
_WORDS: Final[Mapping[type, str]] = {str: "text", list: "a list", dict: "an object"}


def _member(entry: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = entry.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind):
        raise ServerError(f"{key!r} is {'missing' if value is None else f'not {_WORDS[kind]}'}")
    return value


def _written(answer: Any) -> bytes:
    """Encode a response as JSON; byte strings become base64."""
    document = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "id": answer.id,
        "outputs": [_output(result) for result in answer.outputs],
    }
    present = {key: value for key, value in document.items() if value is not None}
    return bytes(orjson.dumps(present, option=orjson.OPT_SERIALIZE_NUMPY))


def _output(result: Result) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": result.name, "datatype": result.datatype, "shape": result.shape}
    if not isinstance(result.data, list):
        return {**entry, "data": result.data.reshape(-1)}
    values = [base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in result.data]
    if any(isinstance(one, bytes) for one in result.data):
        entry["parameters"] = {"content_type": "base64"}
    return {**entry, "data": values}
