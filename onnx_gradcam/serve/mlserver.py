"""An inference runtime for MLServer that explains models, and its Prometheus metrics.

`onnx-gradcam serve` runs it behind transports of its own (`rest`, `rpc`), which refuse large requests before parsing
them. It also runs under plain `mlserver start`, where a gateway must limit the size of requests.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import functools
import logging
import time
from collections.abc import Callable, Iterator
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

from onnx_gradcam.errors import ExplainError, ModelError, ServerError, reason
from onnx_gradcam.options import check_choices

from .answering import IMAGE_OUTPUTS, IMAGES, Answerer, image_outputs
from .limits import Limits
from .query import Query, Result, Tensor, datatype_of
from .queueing import DEADLINE, BatchingExplainer

__all__ = ["ExplainRuntime", "Metrics", "metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of a process; `metrics` returns its only instance.

    They are registered with `prometheus_client`, because MLServer shows what `mlserver.register` creates only when it
    runs parallel workers. They are created when a model is loaded, after MLServer has configured the registry.
    """

    def __init__(self) -> None:
        self.explanations: Any = Counter("onnx_gradcam_explanations", "Heatmaps computed.", ["model", "kind"])
        self.refused: Any = Counter("onnx_gradcam_refused", "Requests refused, by HTTP status.", ["model", "status"])
        self.seconds: Any = Histogram(
            "onnx_gradcam_request_seconds",
            "Time from the arrival of a request to its answer.",
            ["model"],
            buckets=_SECONDS,
        )
        self.batch_rows: Any = Histogram("onnx_gradcam_batch_rows", "Rows that ran together.", ["model"], buckets=_ROWS)
        self.pending: Any = Gauge(
            "onnx_gradcam_pending", "Requests in progress.", ["model"], multiprocess_mode="livesum"
        )


@functools.cache
def metrics() -> Metrics:
    """The metrics of this process."""
    return Metrics()


_LOG: Final = logging.getLogger("mlserver.onnx_gradcam")
_SETTINGS: Final = ("provider", "threads", "region", "augment", "seed")
"""Arguments of `Explainer` in the settings, beside fields of `Options`."""
_FREE: Final = -1
"""The protocol's size of a free dimension."""


class ExplainRuntime(MLModel):
    """Serves a model and its heatmaps; a model that is not explained yet is attached when it is loaded.

    In the model's settings, `parameters.uri` is the ONNX file. `parameters.extra` may contain `limits` (fields of
    `onnx_gradcam.serve.limits.Limits`), `provider`, `threads`, and fields of `onnx_gradcam.Options`.

    Requests with tensors use the model's own inputs and outputs; the class is chosen with the class input or with the
    parameter `target`. Requests with images have JPEG, PNG or WebP files in the BYTES input `image_bytes`, base64 in
    JSON; `target` is the index or name of a class, `top3`, or a list of these. Their outputs have one row per heatmap
    (`image`, `heatmap_class`, `label`, `score`, `heatmap`, `cam`, `heatmap_png`, `overlay_png`), except for `scores`
    [images, classes].
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._pending = self._receiving = 0
        self._explainer: BatchingExplainer | None = None

    async def load(self) -> bool:
        """Create the session."""
        extra = dict((self._settings.parameters and self._settings.parameters.extra) or {})
        self.limits = Limits.from_settings(extra.pop("limits", {}))
        check_choices(extra, more=_SETTINGS)
        self._metrics = metrics()
        try:
            path = await get_model_uri(self._settings, wellknown_filenames=["model.onnx"])
        except InvalidModelURI as error:
            raise ModelError(f"no model file for {self.name!r} ({reason(error)}); check the path") from error
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
        """Finish the requests that are running, and release the session."""
        if self._explainer is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            await asyncio.get_running_loop().run_in_executor(None, self._explainer.close)
            self._explainer = None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request; an `MLServerError` refuses it, with an HTTP status."""
        admitted = isinstance(payload.inputs, Query)
        try:
            if admitted:  # by a transport of this package
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
        """Count a request as pending, from its last byte to its answer; refuse it with status 429 if too many are."""
        if self._pending >= self.limits.pending:
            raise ServerError(f"{self._pending} requests are pending already; try again later", 429)
        self._pending += 1
        self._metrics.pending.labels(self.name).inc()
        try:
            yield
        finally:
            self._pending -= 1
            self._metrics.pending.labels(self.name).dec()

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

        try:
            yield receive
        finally:
            self._receiving -= received

    def count_refusal(self, status: int) -> None:
        """Count a refused request; transports call it for those that they refuse."""
        self._metrics.refused.labels(self.name, str(status)).inc()

    async def _answer(self, query: Query) -> list[Result]:
        start = time.monotonic()
        context = contextvars.copy_context()
        context.run(DEADLINE.set, start + self.limits.seconds)
        work = asyncio.get_running_loop().run_in_executor(self._threads, context.run, self._answerer.answer, query)
        try:
            results, kind, count = await asyncio.wait_for(work, self.limits.seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise ServerError("the request took too long because the server is busy; try again later", 504) from error
        self._metrics.explanations.labels(self.name, kind).inc(count)
        self._metrics.seconds.labels(self.name).observe(time.monotonic() - start)
        return results

    def _describe(self, explainer: BatchingExplainer) -> None:
        """Set the metadata of inputs and outputs."""
        session, metadata = explainer.session, explainer.metadata
        # ONNX Runtime does not list optional inputs, which are also initializers.
        listed = {"", *(i.name for i in session.inputs)}
        names = [name for name in (metadata.class_input, metadata.box_input) if name not in listed]
        self.inputs = [
            *(_described(i.name, i.dtype, i.shape) for i in session.inputs),
            *(_described(name, "int64", (None,)) for name in names),
            MetadataTensor(name=IMAGES, datatype=Datatype.BYTES, shape=[_FREE]),
        ]
        ranks = {"scores": 2, "heatmap": 3, "cam": 3, "box": 2}
        tables = [name for name in (metadata.detection_scores, metadata.detection_boxes) if name]
        outputs = [*explainer.results, *map(session.output, tables)]
        own = [_described(o.name, o.dtype, o.shape) for o in outputs]
        self.outputs = own + [
            MetadataTensor(name=name, datatype=Datatype(IMAGE_OUTPUTS[name]), shape=[_FREE] * ranks.get(name, 1))
            for name in image_outputs(metadata)
            if name not in {output.name for output in own}
        ]
        self._settings.platform = "onnxruntime_onnx"
        self._settings.versions = [f"onnx-gradcam {metadata.version}"]


def _query(payload: InferenceRequest) -> Query:
    """Make a query of a request that MLServer's own transports parsed."""
    parameters = payload.parameters.model_dump() if payload.parameters else {}
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
    return Query(tensors, parameters, [one.name for one in payload.outputs or []])


def _values(data: Any) -> list[Any]:
    values = getattr(data, "root", data)  # of pydantic
    if not isinstance(values, list):
        raise ServerError("'data' is not a list; send the values as a list")
    return values


def _listed(result: Result) -> ResponseOutput:
    """An output for MLServer's own transports; byte strings become base64, as JSON cannot contain them."""
    values: list[Any] = result.data if isinstance(result.data, list) else result.data.reshape(-1).tolist()
    parameters = None
    if any(isinstance(one, bytes) for one in values):
        values, parameters = [base64.b64encode(one).decode() for one in values], Parameters(content_type="base64")
    kind, data = Datatype(result.datatype), TensorData(root=values)
    return ResponseOutput(name=result.name, datatype=kind, shape=result.shape, data=data, parameters=parameters)


def _described(name: str, dtype: str, shape: tuple[int | str | None, ...]) -> MetadataTensor:
    sizes = [size if isinstance(size, int) and size > 0 else _FREE for size in shape]
    return MetadataTensor(name=name, datatype=Datatype(datatype_of(dtype)), shape=sizes)
