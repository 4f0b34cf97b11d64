"""REST transport: V2 with JSON and binary tensors, the verbs of V1, uploads, health, metrics and a description."""

from __future__ import annotations

import base64
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnx_gradcam import __version__
from onnx_gradcam.errors import ServerError

from .connections import Refusal, Upload, closing_connections
from .limits import release
from .query import Query, Result, Tensor, check_counts
from .service import Served, Service, log, refusal_of
from .tracing import End, request_span
from .verbs import accepted, explained_image, image_query, predicted, read_json

__all__ = ["application"]

_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_JSON: Final = "application/json"
_LOAD: Final = "models are loaded and unloaded by the server's operator alone"
_EXTENSIONS: Final = ["binary_tensor_data"]
_INFER: Final = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
_VERBS: Final = ("/v1/models/{name}:", "/v1/models/{name}/versions/{version}:")

Verb = Callable[[Served, Request, bytes], Response]
"""What answers the body of a request about a model, in a thread."""


def application(service: Service, *, predict_route: str | None = None, health_route: str | None = None) -> Any:
    """The ASGI application. Vertex AI names two routes when it starts a container: they come beside the others."""
    endpoint = functools.partial(_endpoint, service)
    routes: list[BaseRoute] = [Route(path, endpoint("infer", _infer), methods=["POST"]) for path in _INFER]
    for path in _VERBS:
        routes.append(Route(f"{path}predict", endpoint("predict", _predict), methods=["POST"]))
        routes.append(Route(f"{path}explain", endpoint("explain", _explain), methods=["POST"]))
    routes.append(Route("/explain", endpoint("explain", _explain), methods=["POST"]))
    if predict_route:
        routes.append(Route(predict_route, endpoint("predict", _predict), methods=["POST"]))
    reads: dict[str, Callable[[Service, Request], Response]] = {
        "/v2": _server,
        "/v2/health/live": lambda *_: _answer({"live": True}),
        "/v2/health/ready": _ready,
        "/v2/models/{name}": _model,
        "/v2/models/{name}/versions/{version}": _model,
        "/v2/models/{name}/ready": _model_ready,
        "/v2/models/{name}/versions/{version}/ready": _model_ready,
        "/v1/models": lambda service, _: _answer({"models": sorted({one.name for one in service.models})}),
        "/v1/models/{name}": _model_ready,
        "/metrics": lambda service, _: Response(
            generate_latest(service.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        ),
        "/openapi.json": lambda service, _: _answer(_description(service)),
        **({health_route: _ready} if health_route else {}),
    }
    public = {"/v2/health/live", "/v2/health/ready", health_route}
    routes += [Route(path, _reading(service, read, public=path in public)) for path, read in reads.items()]
    routes.append(Route("/v2/repository/{rest:path}", _refuse_loading, methods=["POST"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _unknown})
    return closing_connections(app, lambda: service.draining)


def _endpoint(service: Service, verb: str, answer: Verb) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a verb: the body is read within limits, and each refusal is one sentence."""

    async def handle(request: Request) -> Response:
        with request_span(verb, request.headers, "rest") as end:
            return await answered(request, end)

    async def answered(request: Request, end: End) -> Response:
        start, upload, name = time.monotonic(), Upload(request), ""
        try:
            service.check_token(request.headers.get("authorization", ""))
            model = service.find(request.path_params.get("name"), request.path_params.get("version"))
            name = model.name
            with model.receiving() as receive:
                body = await upload.read(model.limits, receive)
            with model.admitted():
                response = await model.work(functools.partial(answer, model, request, body))
        except Exception as error:  # noqa: BLE001 - a bug must not stop the server
            status, text = refusal_of(error)
            end(name, status)
            service.metrics.count_refusal(name, status)
            log("refused", transport="rest", verb=verb, model=name, status=status, error=text)
            return _refusal(text, status, complete=upload.complete)
        finally:
            release(upload.received)
        end(name, 200)
        milliseconds = round(1000 * (time.monotonic() - start), 2)
        log("answered", transport="rest", verb=verb, model=name, ms=milliseconds)
        return response

    return handle


def _reading(
    service: Service, read: Callable[[Service, Request], Response], *, public: bool
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a GET request."""

    async def handle(request: Request) -> Response:
        try:
            if not public:
                service.check_token(request.headers.get("authorization", ""))
            return read(service, request)
        except Exception as error:  # noqa: BLE001 - a bug must not stop the server
            status, text = refusal_of(error)
            return _refusal(text, status, complete=False)

    return handle


def _refusal(text: str, status: int, *, complete: bool) -> Refusal:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 429 else None
    return Refusal(text, status, complete=complete, headers=headers)


async def _unknown(request: Request, error: Any) -> Response:
    method, path = request.method, request.url.path[:200]
    text = f"{method} {path} is not served; see /openapi.json"
    if error.status_code == 405:
        text = f"the method {method} is not served at {path}; see /openapi.json"
    return Refusal(text, error.status_code, headers=error.headers)


async def _refuse_loading(_request: Request) -> Response:
    return Refusal(_LOAD, 403)


def _answer(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type=_JSON)


def _server(_service: Service, _request: Request) -> Response:
    return _answer({"name": "onnx-gradcam", "version": __version__, "extensions": _EXTENSIONS})


def _ready(service: Service, _request: Request) -> Response:
    """Whether requests are welcome, and what is wrong."""
    problem = "the server is being stopped" if service.draining else service.problem
    more = {"problem": problem} if problem else {}
    return _answer({"ready": not service.draining, **more}, 503 if service.draining else 200)


def _model_ready(service: Service, request: Request) -> Response:
    model = service.find(request.path_params["name"], request.path_params.get("version"))
    return _answer({"name": model.name, "ready": not service.draining}, 503 if service.draining else 200)


def _model(service: Service, request: Request) -> Response:
    model = service.find(request.path_params["name"], request.path_params.get("version"))
    tensors = {"inputs": model.inputs, "outputs": model.outputs}
    return _answer({"name": model.name, "versions": model.versions, "platform": model.platform, **tensors})


def _predict(model: Served, _request: Request, body: bytes) -> Response:
    return Response(predicted(model, body, explain=False), media_type=_JSON)


def _explain(model: Served, request: Request, body: bytes) -> Response:
    """Explain the instances of a document, or images as they are, whose answer may be an image."""
    images = image_query(body, request.headers.get("content-type", ""), dict(request.query_params))
    if images is None:
        return Response(predicted(model, body, explain=True), media_type=_JSON)
    kind = accepted(request.headers.get("accept", "*/*"))
    return Response(explained_image(model, *images, kind), headers={"Content-Type": kind, "Vary": "Accept"})


def _infer(model: Served, request: Request, body: bytes) -> Response:
    with model.stage("parse"):
        identity, query, binary = _parsed(body, request.headers.get(_HEADER_LENGTH))
    results = model.answer(query)
    with model.stage("encode"):
        head, tail = _written(model, identity, results, binary)
        if not tail:
            return Response(head, media_type=_JSON)
        headers = {_HEADER_LENGTH: str(len(head))}
        return Response(b"".join([head, *tail]), headers=headers, media_type="application/octet-stream")


def _parsed(body: bytes, header: str | None) -> tuple[str | None, Query, Callable[[str], bool]]:
    """Parse the identifier and the query of a body, and which outputs are wanted as bytes behind the JSON."""
    end = _header_length(body, header)
    document = read_json(body if end == len(body) else body[:end])
    identity = _member(document, "id", str, None)
    inputs, requested = _member(document, "inputs", list), _member(document, "outputs", list, [])
    parameters = _member(document, "parameters", dict, {})
    check_counts(inputs=inputs, outputs=requested, parameters=parameters)
    tensors = []
    for entry in inputs:
        tensor, end = _tensor(entry, body, end)
        tensors.append(tensor)
    if end != len(body):
        raise ServerError(f"there are {len(body) - end} bytes behind the last tensor; send none")
    rest = _member(parameters, "binary_data_output", bool, default=False)
    outputs = {
        _named(one, "outputs"): _member(_member(one, "parameters", dict, {}), "binary_data", bool, rest)
        for one in requested
    }
    return identity, Query(tensors, parameters, list(outputs)), lambda name: outputs.get(name, rest)


def _header_length(body: bytes, header: str | None) -> int:
    if header is None:
        return len(body)
    if not (header.isascii() and header.isdigit() and int(header[:20]) <= len(body)):
        raise ServerError(
            f"{_HEADER_LENGTH} is {header[:40]!r}; send the length of the JSON in a body of {len(body)} bytes"
        )
    return int(header[:20])


def _tensor(entry: Any, body: bytes, start: int) -> tuple[Tensor, int]:
    """A tensor, and where the bytes of the next one begin."""
    name = _named(entry, "inputs")
    parameters = _member(entry, "parameters", dict, {})
    size = _member(parameters, "binary_data_size", int, None)
    if size is None:
        data: Any = _member(entry, "data", list)
    elif isinstance(size, bool) or not 0 <= size <= len(body) - start:
        raise ServerError(
            f"'binary_data_size' of {name[:99]!r} is {size}, but {len(body) - start} bytes follow; send all"
        )
    else:
        data = body[start : start + size]
    content_type = _member(parameters, "content_type", str, "")
    tensor = Tensor(name, _member(entry, "datatype", str), _member(entry, "shape", list), data, content_type)
    return tensor, start + (size or 0)


def _named(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise ServerError(f"an entry of {where!r} is not an object; send objects with a 'name'")
    name: str = _member(entry, "name", str)
    return name


_REQUIRED: Final = object()
_WORDS: Final[Mapping[type, str]] = {
    str: "text",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    bool: "true or false",
}


def _member(entry: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> Any:
    value = entry.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind):
        raise ServerError(f"{key!r} is {'missing' if value is None else f'not {_WORDS[kind]}'}")
    return value


def _written(
    model: Served, identity: str | None, results: list[Result], binary: Callable[[str], bool]
) -> tuple[bytes, list[bytes]]:
    """Encode a response as JSON, and the bytes behind it; byte strings in JSON become base64."""
    outputs, tail = [], []
    for result in results:
        entry: dict[str, Any] = {"name": result.name, "datatype": result.datatype, "shape": result.shape}
        if binary(result.name):
            tail.append(result.raw())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        elif isinstance(result.data, list):
            if any(isinstance(one, bytes) for one in result.data):
                entry["parameters"] = {"content_type": "base64"}
            entry["data"] = [base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in result.data]
        else:
            entry["data"] = result.data.reshape(-1)
        outputs.append(entry)
    document = {"model_name": model.name, "model_version": model.version or None, "id": identity, "outputs": outputs}
    present = {key: value for key, value in document.items() if value is not None}
    return orjson.dumps(present, option=orjson.OPT_SERIALIZE_NUMPY), tail


def _description(service: Service) -> dict[str, Any]:
    """An OpenAPI description of the routes."""
    error = {"description": "A sentence that says what is wrong, as {'error': '...'}."}
    codes = {str(status): error for status in (400, 401, 404, 408, 413, 415, 429, 504)}

    def post(summary: str, *bodies: str, answers: tuple[str, ...] = (_JSON,)) -> dict[str, Any]:
        return {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {kind: {} for kind in bodies}},
                "responses": {
                    "200": {"description": "The answer.", "content": {kind: {} for kind in answers}},
                    **codes,
                },
            }
        }

    def get(summary: str) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": {"200": {"description": "The answer."}}}}

    uploads = (_JSON, "multipart/form-data", "image/jpeg", "image/png", "image/webp")
    kinds = (_JSON, "image/png", "application/x-npy")
    paths: dict[str, Any] = {
        "/v2/health/live": get("Whether the server runs."),
        "/v2/health/ready": get("Whether it is ready."),
    }
    paths["/metrics"] = get("Metrics for Prometheus.")
    for one in sorted({model.name for model in service.models}):
        paths[f"/v2/models/{one}"] = get("Inputs and outputs.")
        paths[f"/v2/models/{one}/infer"] = post("Open Inference Protocol.", _JSON, "application/octet-stream")
        paths[f"/v1/models/{one}:predict"] = post("Scores of images.", _JSON)
        paths[f"/v1/models/{one}:explain"] = post("Scores and heatmaps of images.", *uploads, answers=kinds)
    return {"openapi": "3.1.0", "info": {"title": "onnx-gradcam", "version": __version__}, "paths": paths}
