"""Spans of requests and their stages by OpenTelemetry, where it is installed and its environment variables are set.

Only the API is used (https://opentelemetry.io/docs/specs/otel/trace/api/): which SDK takes the spans, and where they
are sent, is up to `opentelemetry-instrument` and its variables. Spans contain names, states and times, never what a
request contains.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onnx_gradcam import __version__

__all__ = ["End", "no_span", "request_span", "stage_span"]

End = Callable[[str, int], None]
"""Says of a request its model, empty if it is unknown, and its HTTP status."""


@functools.cache
def _api() -> Any:
    """The tracing API and its propagators; `None` without them, or where no variable of OpenTelemetry is set."""
    if not any(name.startswith("OTEL_") for name in os.environ):
        return None
    try:
        return importlib.import_module("opentelemetry.trace"), importlib.import_module("opentelemetry.propagate")
    except ModuleNotFoundError:
        return None


@contextlib.contextmanager
def no_span() -> Iterator[End]:
    """In place of the span of a request, where none is made."""
    yield lambda _model, _status: None


@contextlib.contextmanager
def request_span(name: str, headers: Mapping[str, Any], transport: str) -> Iterator[End]:
    """A span of a request, which continues the trace that `traceparent` names in its headers (W3C Trace Context)."""
    api = _api()
    if api is None:
        with no_span() as end:
            yield end
        return
    trace, propagate = api
    tracer = trace.get_tracer("onnx_gradcam", __version__)
    attributes = {"onnx_gradcam.transport": transport}
    context, kind = propagate.extract(headers), trace.SpanKind.SERVER
    quiet = {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, context, kind, attributes, **quiet) as span:

        def end(model: str, status: int) -> None:
            span.set_attributes({"onnx_gradcam.model": model, "http.response.status_code": status})
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)

        yield end


@contextlib.contextmanager
def stage_span(name: str) -> Iterator[None]:
    """A span of one stage of the current request."""
    api = _api()
    if api is None:
        yield
        return
    tracer = api[0].get_tracer("onnx_gradcam", __version__)
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
        yield
