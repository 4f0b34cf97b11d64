"""A served model: which requests it admits, the threads that answer them, and what is counted and logged of them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hmac
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary

from onnx_gradcam.errors import ExplainError, NothingFoundError, ServerError
from onnx_gradcam.feeds import Input
from onnx_gradcam.runtime.explainer import ClassMap, Explanation

from .answering import IMAGE_OUTPUTS, IMAGES, Answerer, image_outputs
from .hosting import Source
from .limits import Limits
from .query import Query, Result, datatype_of
from .queueing import DEADLINE, BatchingExplainer
from .recording import RequestLog
from .tracing import stage_span

__all__ = ["JsonLines", "Metrics", "Served", "Service", "log", "refusal_of"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("onnx_gradcam.serve")
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
_REASONS: Final = {
    401: "token",
    403: "forbidden",
    404: "unknown",
    405: "method",
    406: "format",
    408: "slow",
    413: "large",
    415: "encoding",
    429: "busy",
    500: "internal",
    503: "draining",
    504: "late",
}
_MOST_CLASSES: Final = 1000
"""Classes per model whose heat is counted: each is a time series of its own."""
_FREE: Final = -1
"""The protocol's size of a free dimension."""
_GREY: Final = 128
_GREY_SIDE: Final = 64


class Metrics:
    """The Prometheus metrics of a server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Any:
            return Histogram(f"onnx_gradcam_{name}", text, labels, buckets=buckets, registry=registry)

        self.explanations: Any = Counter(
            "onnx_gradcam_explanations", "Heatmaps computed.", ["model", "kind"], registry=registry
        )
        self.refused: Any = Counter(
            "onnx_gradcam_refused", "Requests refused.", ["model", "status", "reason"], registry=registry
        )
        self.seconds = histogram(
            "request_seconds", "Time from the arrival of a request to its answer.", ["model"], _SECONDS
        )
        self.stages = histogram(
            "stage_seconds",
            "Time of a request in each stage: read, parse, answer, encode.",
            ["model", "stage"],
            _SECONDS,
        )
        self.batch_rows = histogram("batch_rows", "Rows that ran together.", ["model"], _ROWS)
        self.pending: Any = Gauge("onnx_gradcam_pending", "Requests in progress.", ["model"], registry=registry)
        self.waiting: Any = Gauge(
            "onnx_gradcam_waiting", "Requests that wait for a run of the model.", ["model"], registry=registry
        )
        self.heat: Any = Summary(
            "onnx_gradcam_heat", "Mean of the heatmap of an image, by its class.", ["model", "class"], registry=registry
        )

    def count_refusal(self, model: str, status: int) -> None:
        """Count a refused request; `model` is the name of a served one, or empty."""
        self.refused.labels(model, str(status), _REASONS.get(status, "malformed")).inc()


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, event, and what the record has beside; never what a request contains."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def log(event: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any) -> None:
    """Write a line to the server's log."""
    _LOG.log(level, event, exc_info=exc_info, extra={"fields": fields})


def refusal_of(error: Exception) -> tuple[int, str]:
    """The HTTP status and the sentence of an error; one that is not of this package is a bug, and logged."""
    if isinstance(error, ExplainError):
        return (error.status if isinstance(error, ServerError) else 400), str(error)
    log("a request failed", logging.ERROR, exc_info=True)
    return 500, "internal error; see the server's log"


class Served:
    """One version of a model, loaded.

    Attributes:
        source: where it comes from, and its settings.
        limits: upper bounds on its requests.
        inputs, outputs: name, datatype and shape of each tensor, as the protocol describes them.
    """

    def __init__(self, source: Source, metrics: Metrics, requests: RequestLog | None = None) -> None:
        self._requests = requests
        self.source, self.name, self.version, self.limits = source, source.name, source.version, source.limits
        self.metrics = metrics
        self.explainer = BatchingExplainer(
            source.path,
            batch=self.limits.batch,
            pixels=self.limits.input_pixels,
            on_batch=metrics.batch_rows.labels(self.name).observe,
            **source.settings,
        )
        self.explainer.check_feeds(self.explainer.missing())  # requests send what has no value here
        self.inputs, self.outputs = _described(self.explainer)
        self._answerer = Answerer(self.explainer, self.limits, self._note)
        self._threads = ThreadPoolExecutor(self.limits.workers, "onnx-gradcam-requests")
        self._pending = self._arriving = self._receiving = 0
        metrics.waiting.labels(self.name).set_function(lambda: self.explainer.waiting)
        self._lock = threading.Lock()
        self._stages = {
            stage: metrics.stages.labels(self.name, stage) for stage in ("read", "parse", "answer", "encode")
        }
        self._classes: set[str] = set()
        for warning in self.explainer.warnings:
            log(warning, logging.WARNING, model=self.name)

    @property
    def others(self) -> Mapping[str, Input]:
        """The model's inputs besides the image, class and box, by name."""
        return self._answerer.others

    @property
    def platform(self) -> str:
        """What the model is, as the protocol names it."""
        return "onnxruntime_onnx"

    @property
    def versions(self) -> list[str]:
        """The version in requests, if it has one, else that of the package that explained the model."""
        return [self.version or f"onnx-gradcam {self.explainer.metadata.version}"]

    @property
    def busy(self) -> int:
        """The number of requests that arrive or are pending."""
        return self._arriving + self._pending

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as pending, from its last byte to its answer; refuse it with status 429 if too many are."""
        if self._pending >= self.limits.pending:
            raise ServerError(f"{self._pending} requests are pending already; try again later", 429)
        self._pending += 1
        gauge, start = self.metrics.pending.labels(self.name), time.monotonic()
        gauge.inc()
        try:
            yield
            self.metrics.seconds.labels(self.name).observe(time.monotonic() - start)
        finally:
            self._pending -= 1
            gauge.dec()

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a body that arrives, which is not pending yet: slow clients hold no place of others.

        Refused with status 429 once all incomplete bodies together would not fit into the memory of pending requests.
        """
        received = 0

        def receive(size: int) -> None:
            nonlocal received
            if self._receiving + size > self.limits.pending * self.limits.request_bytes:
                raise ServerError("too many requests are being received; try again later", 429)
            self._receiving += size
            received += size

        self._arriving += 1
        try:
            with self.stage("read"):
                yield receive
        finally:
            self._arriving -= 1
            self._receiving -= received

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Observe the time of one stage of a request: `read`, `parse`, `answer` or `encode`."""
        start = time.monotonic()
        with stage_span(name):
            yield
        self._stages[name].observe(time.monotonic() - start)

    async def work(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, within the time of a request; status 504 if that is over."""
        context = contextvars.copy_context()
        context.run(DEADLINE.set, time.monotonic() + self.limits.seconds)
        work = asyncio.get_running_loop().run_in_executor(self._threads, context.run, function)
        try:
            return await asyncio.wait_for(work, self.limits.seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise ServerError("the request took too long because the server is busy; try again later", 504) from error

    def answer(self, query: Query) -> list[Result]:
        """Answer a query, in a thread of `work`."""
        with self.stage("answer"):
            results, kind, count = self._answerer.answer(query)
        self.metrics.explanations.labels(self.name, kind).inc(count)
        return results

    def baseline(self, index: int) -> float:
        """The score of a class for a grey image, 0 where a detector finds nothing in it or other inputs need values."""
        with self._lock:
            scores = self._baseline
        return float(scores[index]) if index < len(scores) and math.isfinite(scores[index]) else 0.0

    @cached_property
    def _baseline(self) -> npt.NDArray[Any]:
        if self.explainer.missing():
            return np.zeros(0)
        height, width = self.explainer.preprocessing.size or (_GREY_SIDE, _GREY_SIDE)
        try:
            return self.explainer(np.full((height, width, 3), _GREY, np.uint8)).scores
        except NothingFoundError:
            return np.zeros(0)

    def _note(self, explanation: Explanation, file: bytes) -> None:
        """Note what was answered about an image."""
        for class_map in explanation.maps:
            self._note_heat(class_map)
        if self._requests is not None:
            self._requests.note(self.name, self.version, explanation, file)

    def _note_heat(self, explained: ClassMap) -> None:
        """Note the mean of a heatmap, of which a drift of images shows."""
        name = explained.target.label
        if name in self._classes or len(self._classes) < _MOST_CLASSES:
            self._classes.add(name)
            self.metrics.heat.labels(self.name, name).observe(float(explained.heatmap.mean()))

    def close(self) -> None:
        """Finish the requests that are running, and release the session."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.explainer.close()


class Service:
    """All models of a server; `read` finds them, and requests have to send the `token`, if there is one.

    Answers are noted in `requests`, if there is such a log; closing it is up to the caller.

    Attributes:
        draining: whether the server is being stopped: requests are still answered, but it is not ready for more.
        problem: why the last reload failed, empty if it did not; the models before it are still served.
    """

    def __init__(
        self, read: Callable[[], list[Source]], token: str | None = None, requests: RequestLog | None = None
    ) -> None:
        self.metrics = Metrics()
        self._requests = requests
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self.draining = False
        self.problem = ""
        self._read = read
        self._models = {key: Served(source, self.metrics, requests) for key, source in _keyed(read()).items()}

    @property
    def models(self) -> list[Served]:
        """The models, each version of its own."""
        return list(self._models.values())

    @property
    def limits(self) -> Limits:
        """The largest limits of any model, which bound what is received before the model is known."""
        most = {name: max(getattr(one.limits, name) for one in self.models) for name in vars(self.models[0].limits)}
        return Limits(**most)

    def check_token(self, authorization: str) -> None:
        """Refuse what is not `Bearer TOKEN` with status 401, in a time that does not tell how much of it is right."""
        given = authorization.encode("utf-8", "replace")
        if self._authorization is not None and not hmac.compare_digest(given, self._authorization):
            raise ServerError("the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'", 401)

    def find(self, name: str | None, version: str | None = None) -> Served:
        """The model of a name, of the highest version if none is given; without a name, the only one.

        Raises:
            ServerError: there is no such model, status 404.
        """
        names = {one.name for one in self.models}
        if not name:
            if len(names) > 1:
                raise ServerError(f"this server has several models; name one of {_listed(names)}", 404)
            name = next(iter(names))
        if version:
            found = self._models.get((name, version))
        else:
            found = max((one for one in self.models if one.name == name), key=_version_number, default=None)
        if found is None:
            what = f"version {version[:40]!r} of the model {name[:99]!r}" if version else f"model {name[:99]!r}"
            raise ServerError(f"there is no {what}; available: {_listed(names)}", 404)
        return found

    def reload(self) -> None:
        """Read the models again: load new and changed ones, keep the others, and let go of those that are gone.

        Where one cannot be loaded, all stay as they are. Blocks until the requests of those that go are answered.
        """
        loaded: list[Served] = []
        try:
            models: dict[tuple[str, str], Served] = {}
            for key, source in _keyed(self._read()).items():
                present = self._models.get(key)
                if present is None or present.source != source:
                    present = Served(source, self.metrics, self._requests)
                    loaded.append(present)
                models[key] = present
        except ExplainError as error:
            for one in loaded:
                one.close()
            self.problem = f"the last reload failed: {error}"
            log("reload failed", logging.ERROR, error=str(error))
            return
        gone = [one for key, one in self._models.items() if models.get(key) is not one]
        self._models, self.problem = models, ""
        log("reloaded", models=[one.name for one in models.values()], loaded=len(loaded), gone=len(gone))
        for one in gone:
            end = time.monotonic() + one.limits.seconds
            while one.busy and time.monotonic() < end:
                time.sleep(0.01)
            one.close()

    def close(self) -> None:
        """Let go of all models."""
        for one in self.models:
            one.close()


def _keyed(sources: list[Source]) -> dict[tuple[str, str], Source]:
    return {(source.name, source.version): source for source in sources}


def _version_number(one: Served) -> int:
    return int(one.version or 0)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:20])


def _described(explainer: BatchingExplainer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inputs and the outputs of a model, of both kinds of requests."""
    session, metadata = explainer.session, explainer.metadata

    def row(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> dict[str, Any]:
        sizes = [size if isinstance(size, int) and size > 0 else _FREE for size in shape]
        return {"name": name, "datatype": datatype_of(dtype), "shape": sizes}

    # ONNX Runtime does not list optional inputs, which are also initializers.
    listed = {"", *(i.name for i in session.inputs)}
    optional = [name for name in (metadata.class_input, metadata.box_input) if name not in listed]
    inputs = [row(i.name, i.dtype, i.shape) for i in session.inputs]
    inputs += [row(name, "int64", (None,)) for name in optional]
    inputs.append({"name": IMAGES, "datatype": "BYTES", "shape": [_FREE]})
    ranks = {"scores": 2, "heatmap": 3, "cam": 3, "box": 2}
    tables = [name for name in (metadata.detection_scores, metadata.detection_boxes) if name]
    outputs = [row(o.name, o.dtype, o.shape) for o in (*explainer.results, *map(session.output, tables))]
    names = {output["name"] for output in outputs}
    outputs += [
        {"name": name, "datatype": IMAGE_OUTPUTS[name], "shape": [_FREE] * ranks.get(name, 1)}
        for name in image_outputs(metadata)
        if name not in names
    ]
    return inputs, outputs
