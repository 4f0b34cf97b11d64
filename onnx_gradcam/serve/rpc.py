"""gRPC transport: tensors remain raw bytes, and malformed requests get INVALID_ARGUMENT.

MLServer's own servicer unpacks raw tensors into Python lists and answers a truncated tensor with INTERNAL.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.converters import ModelMetadataResponseConverter
from mlserver.grpc.servicers import InferenceServicer
from mlserver.handlers import DataPlane
from mlserver.types import InferenceRequest

from onnx_gradcam.errors import ServerError

from .limits import release
from .mlserver import ExplainRuntime
from .query import Query, Result, Tensor, check_counts

__all__ = ["ExplainServicer", "Malformed"]

_LOG: Final = logging.getLogger("mlserver.onnx_gradcam")
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS: Final = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{kind: f"{kind.lower()}_contents" for kind in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
}
_LOAD: Final = "this server serves one model; it cannot be loaded or unloaded"


class ExplainServicer(InferenceServicer):
    """Answers the calls of the Open Inference Protocol for one model."""

    def __init__(self, data_plane: DataPlane, runtime: ExplainRuntime) -> None:
        super().__init__(data_plane, None)
        self._runtime = runtime

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer an inference request."""
        try:
            return await self._guarded(context, self._infer(request))
        finally:
            release(request.ByteSize())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer whether the model is ready; NOT_FOUND for any other model."""
        return await self._guarded(context, super().ModelReady(request, context))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Describe inputs and outputs; NOT_FOUND for any other model."""
        return await self._guarded(context, self._metadata(request))

    async def ModelStreamInfer(self, _requests: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        """Not supported: explanations have no parts to stream."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "streaming is not supported; call ModelInfer")

    async def RepositoryIndex(self, _request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        """Not supported."""
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, _LOAD)

    RepositoryModelLoad = RepositoryModelUnload = RepositoryIndex

    async def _metadata(self, request: Any) -> Any:
        described = await self._data_plane.model_metadata(request.name, request.version or None)
        return ModelMetadataResponseConverter.from_types(described)

    async def _infer(self, request: Any) -> Any:
        name, version = request.model_name, request.model_version or None
        # Checked first, as MLServer keeps a metric for every model name that it receives.
        await self._data_plane.model_ready(name, version)
        with self._runtime.admitted():
            payload = InferenceRequest.model_construct(id=request.id or None, parameters=None, inputs=_query(request))
            answer = await self._data_plane.infer(payload, name, version)
            return _response(answer)

    async def _guarded(self, context: Any, work: Awaitable[Any]) -> Any:
        """Await the work, and turn errors into a status and a sentence."""
        try:
            return await work
        except ServerError as error:
            self._runtime.count_refusal(error.status)
            code, message = _CODES.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)
        except MLServerError as error:  # already counted
            code, message = _CODES.get(error.status_code, grpc.StatusCode.INTERNAL), str(error)
        except Exception:  # noqa: BLE001 - a bug must not stop the server
            self._runtime.count_refusal(500)
            _LOG.exception("a request failed")
            code, message = grpc.StatusCode.INTERNAL, "internal error; see the server's log"
        return await context.abort(code, message)


class Malformed(grpc.aio.ServerInterceptor):
    """Answers messages that are not protobuf, or contain invalid UTF-8, with INVALID_ARGUMENT."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Replace the parser of a method by one that does not raise."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.response_streaming:
            return handler

        def parse(message: bytes) -> Any:
            try:
                return handler.request_deserializer(message)
            except DecodeError as error:
                return error

        async def behaviour(request: Any, context: Any) -> Any:
            if isinstance(request, DecodeError):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is malformed ({request})")
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(behaviour, parse, handler.response_serializer)


def _query(request: Any) -> Query:
    raw = list(request.raw_input_contents)
    counted = {name: getattr(request, name) for name in ("inputs", "outputs", "parameters")}
    check_counts(**counted, **{"raw tensors": raw})
    if raw and len(raw) != len(request.inputs):
        raise ServerError(f"there are {len(raw)} raw tensors for {len(request.inputs)} inputs; send one per input")
    tensors = [
        Tensor(
            one.name,
            one.datatype,
            list(one.shape),
            raw[i] if raw else _contents(one),
            str(_parameter(one.parameters["content_type"]) if "content_type" in one.parameters else ""),
        )
        for i, one in enumerate(request.inputs)
    ]
    parameters = {name: _parameter(value) for name, value in request.parameters.items()}
    return Query(tensors, parameters, [one.name for one in request.outputs])


def _contents(tensor: Any) -> list[Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise ServerError(f"datatype {tensor.datatype[:40]!r} has no field for values; send the tensor as raw bytes")
    return list(getattr(tensor.contents, field))


def _parameter(value: Any) -> Any:
    kind = value.WhichOneof("parameter_choice")
    if kind is None:
        raise ServerError("a parameter has an unsupported type; send it as text")
    return getattr(value, kind)


def _response(answer: Any) -> Any:
    response = pb.ModelInferResponse(
        model_name=answer.model_name, model_version=answer.model_version or "", id=answer.id or ""
    )
    for result in answer.outputs:
        response.outputs.add(name=result.name, datatype=result.datatype, shape=result.shape)
        response.raw_output_contents.append(_raw(result))
    return response


def _raw(result: Result) -> bytes:
    if not isinstance(result.data, list):
        return result.data.astype(result.data.dtype.newbyteorder("<"), copy=False).tobytes()
    strings = [one.encode() if isinstance(one, str) else one for one in result.data]
    return b"".join(struct.pack("<I", len(one)) + one for one in strings)
