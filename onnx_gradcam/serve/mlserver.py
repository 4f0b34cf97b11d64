"""Prometheus metrics of explanations.

They are in the registry that MLServer's /metrics shows, that of `prometheus_client` itself; what
`mlserver.register` makes is in another one, which is not shown unless MLServer runs parallel workers.
Made when a model is loaded, not at import: MLServer's workers switch `prometheus_client` to files before that.

An inference runtime for MLServer that explains: the Open Inference Protocol over REST and gRPC.

`onnx-gradcam serve` starts it behind transports of its own (`rest`, `rpc`), which refuse what is too large before it is
parsed. Under plain `mlserver start` it does the same work, but bodies are limited by whatever stands in front.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import functools
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mlserver import MLModel
from mlserver.errors import InvalidModelURI, MLServerError
from mlserver.settings import ModelSettings
from mlserver.types import (
    Datatype,
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    Parameters,
    ResponseOutput,
    TensorData,
)
from mlserver.utils import get_model_uri
from prometheus_client import Counter, Gauge, Histogram

from onnx_gradcam.errors import ExplainError, ModelError, ServerError

from .answering import IMAGE_OUTPUTS, IMAGES, Answerer
from .limits import Limits
from .query import Query, Result, Tensor, datatype_of
from .queueing import DEADLINE, BatchingExplainer

__all__ = ["ExplainRuntime", "Metrics", "metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics; one instance a process, of `metrics`."""

    def __init__(self) -> None:
        self.explanations: Any = Counter("onnx_gradcam_explanations", "Heatmaps made.", ["model", "kind"])
        self.refused: Any = Counter("onnx_gradcam_refused", "Requests refused, by HTTP status.", ["model", "status"])
        self.seconds: Any = Histogram(
            "onnx_gradcam_request_seconds", "From a request's arrival to its answer.", ["model"], buckets=_SECONDS
        )
        self.batch_rows: Any = Histogram("onnx_gradcam_batch_rows", "Rows that ran together.", ["model"], buckets=_ROWS)
        self.pending: Any = Gauge(
            "onnx_gradcam_pending", "Requests that are being served.", ["model"], multiprocess_mode="livesum"
        )


@functools.cache
def metrics() -> Metrics:
    """The process's metrics."""
    return Metrics()


_LOG: Final = logging.getLogger("mlserver.onnx_gradcam")
_FREE: Final = -1
"""The protocol's word for a dimension of any size."""


class ExplainRuntime(MLModel):
    """Serves an ONNX classifier with its explanation; one that is not explained yet is attached when it is loaded.

    `parameters.uri` of the model's settings is the ONNX file; `parameters.extra` may hold `limits` (the fields of
    `onnx_gradcam.serve.limits.Limits`) and the options of `onnx_gradcam.Explainer`: `labels`, `preprocess`,
    `provider`, `threads`, `layer`, `method` ...

    Tensors: the model's own inputs; the class by its class input or by the request's parameter `target`. The outputs
    are the model's. Images: files (JPEG, PNG, WebP) in the BYTES input `image_bytes`, as base64 in JSON; the
    parameter `target` is a class's number or name, `top3`, or a list of them. Outputs, one row a heatmap: `scores`
    [images, classes], `image`, `heatmap_class`, `label`, `score`, `heatmap`, `cam`, `heatmap_png`, `overlay_png`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._pending = 0
        self._explainer: BatchingExplainer | None = None

    async def load(self) -> bool:
        """Make the session, once.

        Raises:
            ExplainError: the model, the options or the limits cannot be used.
        """
        extra = dict((self._settings.parameters and self._settings.parameters.extra) or {})
        self.limits = Limits.from_settings(extra.pop("limits", {}))
        self._metrics = metrics()
        try:
            path = await get_model_uri(self._settings, wellknown_filenames=["model.onnx"])
        except InvalidModelURI as error:
            raise ModelError(f"there is no model file for {self.name!r} ({error}); check the path") from error
        make = functools.partial(
            BatchingExplainer,
            path,
            batch=self.limits.batch,
            pixels=self.limits.input_pixels,
            on_batch=self._metrics.batch_rows.labels(self.name).observe,
            **extra,
        )
        explainer = await asyncio.get_running_loop().run_in_executor(None, make)
        self._explainer = explainer
        self._answerer = Answerer(explainer, self.limits)
        self._threads = ThreadPoolExecutor(self.limits.workers, "onnx-gradcam-requests")
        for warning in explainer.warnings:
            _LOG.warning(warning)
        self._describe(explainer)
        return True

    async def unload(self) -> bool:
        """Finish what runs, and let the session go."""
        if self._explainer is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            await asyncio.get_running_loop().run_in_executor(None, self._explainer.close)
            self._explainer = None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request.

        Raises:
            MLServerError: it is refused; the status says why.
        """
        passed = isinstance(payload.inputs, Query)
        try:
            if passed:  # by a transport of this package, which has let the request in
                outputs: list[Any] = await self._answer(payload.inputs)
            else:
                with self.admitted():
                    outputs = [_listed(result) for result in await self._answer(_query(payload))]
        except ExplainError as error:
            status = error.status if isinstance(error, ServerError) else 400
            self.count_refusal(status)
            raise MLServerError(str(error), status) from error
        return InferenceResponse.model_construct(
            model_name=self.name, model_version=self.version, id=payload.id, parameters=None, outputs=outputs
        )

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Let a request in, from its first byte to its answer.

        Raises:
            ServerError: too many are there already, status 429.
        """
        if self._pending >= self.limits.pending:
            raise ServerError(f"{self._pending} requests are here already; try again later", 429)
        self._pending += 1
        self._metrics.pending.labels(self.name).inc()
        try:
            yield
        finally:
            self._pending -= 1
            self._metrics.pending.labels(self.name).dec()

    def count_refusal(self, status: int) -> None:
        """Count a refused request; a transport does so for what it refuses itself."""
        self._metrics.refused.labels(self.name, str(status)).inc()

    async def _answer(self, query: Query) -> list[Result]:
        start = time.monotonic()
        context = contextvars.copy_context()
        context.run(DEADLINE.set, start + self.limits.seconds)
        work = asyncio.get_running_loop().run_in_executor(self._threads, context.run, self._answerer.answer, query)
        try:
            results, kind, count = await asyncio.wait_for(work, self.limits.seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise ServerError("the request took too long, the server is busy; try again later", 504) from error
        self._metrics.explanations.labels(self.name, kind).inc(count)
        self._metrics.seconds.labels(self.name).observe(time.monotonic() - start)
        return results

    def _describe(self, explainer: BatchingExplainer) -> None:
        """Metadata of what may be sent and asked for."""
        session, facts = explainer.session, explainer.metadata
        # An optional class input is an initializer too, which ONNX Runtime does not list among the inputs.
        names = [facts.class_input] if facts.class_input not in {"", *(i.name for i in session.inputs)} else []
        self.inputs = [
            *(_described(i.name, i.dtype, i.shape) for i in session.inputs),
            *(_described(name, "int64", (None,)) for name in names),
            MetadataTensor(name=IMAGES, datatype=Datatype.BYTES, shape=[_FREE]),
        ]
        ranks = {"scores": 2, "heatmap": 3, "cam": 3}
        own = [_described(o.name, o.dtype, o.shape) for o in explainer.results]
        self.outputs = own + [
            MetadataTensor(name=name, datatype=Datatype(datatype), shape=[_FREE] * ranks.get(name, 1))
            for name, datatype in IMAGE_OUTPUTS.items()
            if name not in {output.name for output in own}
        ]
        self._settings.platform = "onnxruntime_onnx"
        self._settings.versions = [f"onnx-gradcam {facts.version}"]


def _query(payload: InferenceRequest) -> Query:
    """A query of what MLServer's own transports parsed."""
    given = payload.parameters.model_dump() if payload.parameters else {}
    tensors = [
        Tensor(
            one.name,
            str(getattr(one.datatype, "value", one.datatype)),
            list(one.shape),
            _values(one.data),
            (one.parameters.content_type if one.parameters else None) or "",
        )
        for one in payload.inputs
    ]
    return Query(tensors, given, [one.name for one in payload.outputs or []])


def _values(data: Any) -> list[Any]:
    values = getattr(data, "root", data)
    if not isinstance(values, list):
        raise ServerError("'data' has to be a list")
    return values


def _listed(result: Result) -> ResponseOutput:
    """An output as MLServer's own transports take it; byte strings as base64, for JSON has no place for them."""
    values = result.data if isinstance(result.data, list) else result.data.reshape(-1).tolist()
    binary = any(isinstance(one, bytes) for one in values)
    return ResponseOutput(
        name=result.name,
        datatype=Datatype(result.datatype),
        shape=result.shape,
        data=TensorData(
            root=[base64.b64encode(one).decode() for one in values if isinstance(one, bytes)] if binary else values
        ),
        parameters=Parameters(content_type="base64") if binary else None,
    )


def _described(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> MetadataTensor:
    sizes = [size if isinstance(size, int) and size > 0 else _FREE for size in shape]
    return MetadataTensor(name=name, datatype=Datatype(datatype_of(dtype)), shape=sizes)
