"""Spans of requests: one for each, its stages inside it, in the caller's trace; nothing is imported without them."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="onnx-gradcam[serve] is not installed")
pytest.importorskip("orjson", reason="onnx-gradcam[serve] is not installed")

import grpc

from onnx_gradcam.serve import tracing
from onnx_gradcam.serve.hosting import read_sources
from onnx_gradcam.serve.rest import application
from onnx_gradcam.serve.rpc import message_class, rpc_server
from onnx_gradcam.serve.service import Service

pytestmark = pytest.mark.serve

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"  # the example of W3C Trace Context
STAGES = {"parse", "answer", "encode"}


@pytest.fixture(scope="module")
def exporter():
    """The SDK's exporter into memory; the provider of a process can be set once."""
    trace = pytest.importorskip("opentelemetry.trace", reason="onnx-gradcam[telemetry] is not installed")
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    memory = importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture
def spans(exporter, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "test")
    tracing._api.cache_clear()
    exporter.clear()
    yield exporter.get_finished_spans
    tracing._api.cache_clear()


@pytest.fixture(scope="module")
def service(explained):
    made = Service(lambda: read_sources(explained, name="shapes", settings={"threads": 1}))
    yield made
    made.close()


def post(service, path: str, body: bytes, **headers: str) -> int:
    """Ask the ASGI application; the status."""
    sent = []
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(k.encode(), v.encode()) for k, v in headers.items()], "http_version": "1.1", "state": {}}

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(application(service)(scope, receive, send))
    return sent[0]["status"]


def document(photo: bytes) -> bytes:
    return json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()}]}).encode()


def of_trace(span) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}"


def test_a_request_over_rest_continues_the_trace_and_has_its_stages(service, spans, photo):
    assert post(service, "/v1/models/shapes:explain", document(photo), traceparent=TRACEPARENT) == 200
    *stages, request = spans()
    assert (request.name, request.kind.name) == ("explain", "SERVER")
    assert of_trace(request) == (TRACE, PARENT)
    expected = {"onnx_gradcam.transport": "rest", "onnx_gradcam.model": "shapes", "http.response.status_code": 200}
    assert dict(request.attributes) == expected
    assert {one.name for one in stages} == {"read", *STAGES}
    for one in stages:
        assert of_trace(one) == (TRACE, f"{request.context.span_id:016x}"), "in threads too"
        assert request.start_time <= one.start_time <= one.end_time <= request.end_time


def test_a_refusal_is_a_span_without_its_content(service, spans):
    assert post(service, "/v1/models/shapes:explain", b'{"instances": ["secret"]}') == 400
    request = spans()[-1]
    assert request.attributes["http.response.status_code"] == 400
    assert request.status.status_code.name == "UNSET", "the client's fault"
    assert request.parent is None
    assert not any(one.events for one in spans())
    assert "secret" not in "".join(one.to_json() for one in spans())


def test_a_bug_is_an_error(service, spans, photo, monkeypatch):
    def broken(_query):
        raise ZeroDivisionError

    monkeypatch.setattr(service.find(None), "answer", broken)
    assert post(service, "/v1/models/shapes:explain", document(photo)) == 500
    assert spans()[-1].status.status_code.name == "ERROR"


def test_a_call_over_grpc_continues_the_trace_and_health_checks_make_none(service, spans, photo):
    request = message_class("ModelInferRequest")(
        model_name="shapes", raw_input_contents=[len(photo).to_bytes(4, "little") + photo]
    )
    request.inputs.add(name="image_bytes", datatype="BYTES", shape=[1])

    async def ask():
        server = rpc_server(service)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name, message in (("ServerLive", message_class("ServerLiveRequest")()), ("ModelInfer", request)):
                call = channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
                await call(message.SerializeToString(), metadata=[("traceparent", TRACEPARENT)])
        await server.stop(1)

    asyncio.run(ask())
    *stages, infer = spans()
    assert infer.name == "ModelInfer"
    assert of_trace(infer) == (TRACE, PARENT)
    assert infer.attributes["onnx_gradcam.model"] == "shapes"
    assert {one.name for one in stages} == STAGES
    assert {of_trace(one) for one in stages} == {(TRACE, f"{infer.context.span_id:016x}")}


@pytest.mark.parametrize("set_", [False, True])
def test_nothing_is_imported_where_no_variable_is_set_or_the_package_is_missing(set_):
    code = (
        "import sys\n"
        f"if {set_}: sys.modules['opentelemetry'] = None\n"
        "from onnx_gradcam.serve.tracing import request_span, stage_span\n"
        "with request_span('explain', {}, 'rest') as end, stage_span('read'): end('shapes', 200)\n"
        "print(sorted(one for one in sys.modules if one.startswith('opentelemetry') and sys.modules[one]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment |= {"OTEL_SERVICE_NAME": "test"} if set_ else {}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.strip() == "[]"


def test_the_documented_command_prints_spans(explained, start_server, photo, monkeypatch):
    """With the exporter to the console in place of a collector."""
    name = "opentelemetry.instrumentation.auto_instrumentation"
    auto = pytest.importorskip(name, reason="onnx-gradcam[telemetry] is not installed")
    path = os.pathsep.join([str(Path(auto.__file__).parent), os.environ.get("PYTHONPATH", "")])
    more = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    live = start_server(explained, "--threads=1", environment={**more, "PYTHONPATH": path})
    assert live.request("/v1/models/shapes:explain", document(photo), {"traceparent": TRACEPARENT}.items())[0] == 200
    start_server.stopped(live)
    assert live.close() == 0
    log = live.log.read_text("utf-8")
    assert f'"trace_id": "0x{TRACE}"' in log
    assert '"name": "encode"' in log
