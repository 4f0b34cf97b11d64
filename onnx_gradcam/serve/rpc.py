"""gRPC transport: tensors remain raw bytes, and malformed requests get INVALID_ARGUMENT.

The messages are those of the Open Inference Protocol
(https://github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto). Generated modules
register them for the whole process, once: tritonclient and others do. These are in a pool of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from onnx_gradcam import __version__
from onnx_gradcam.errors import ServerError

from .limits import release
from .query import Query, Tensor, check_counts
from .service import Served, Service, log, refusal_of
from .tracing import End, no_span, request_span

__all__ = ["MESSAGES", "message_class", "rpc_server"]

_CODES: Final = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS: Final = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{kind: f"{kind.lower()}_contents" for kind in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
}
_LOAD: Final = "models are loaded and unloaded by the server's operator alone"
_SERVICE: Final = "inference.GRPCInferenceService"

MESSAGES: Final = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1:bool",
    "ModelReadyRequest": "name=1:string version=2:string",
    "ModelReadyResponse": "ready=1:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name=1:string version=2:string extensions=3:string*",
    "ModelMetadataRequest": "name=1:string version=2:string",
    "ModelMetadataResponse": "name=1:string versions=2:string* platform=3:string inputs=4:.TensorMetadata* "
    "outputs=5:.TensorMetadata*",
    "ModelMetadataResponse.TensorMetadata": "name=1:string datatype=2:string shape=3:int64*",
    "InferParameter": "bool_param=1:bool? int64_param=2:int64? string_param=3:string? "
    "double_param=4:double? uint64_param=5:uint64?",
    "InferTensorContents": "bool_contents=1:bool* int_contents=2:int32* int64_contents=3:int64* "
    "uint_contents=4:uint32* uint64_contents=5:uint64* fp32_contents=6:float* fp64_contents=7:double* "
    "bytes_contents=8:bytes*",
    "ModelInferRequest": "model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter} "
    "inputs=5:.InferInputTensor* outputs=6:.InferRequestedOutputTensor* raw_input_contents=7:bytes*",
    "ModelInferRequest.InferInputTensor": "name=1:string datatype=2:string shape=3:int64* "
    "parameters=4:{InferParameter} contents=5:InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name=1:string parameters=2:{InferParameter}",
    "ModelInferResponse": "model_name=1:string model_version=2:string id=3:string parameters=4:{InferParameter} "
    "outputs=5:.InferOutputTensor* raw_output_contents=6:bytes*",
    "ModelInferResponse.InferOutputTensor": "name=1:string datatype=2:string shape=3:int64* "
    "parameters=4:{InferParameter} contents=5:InferTensorContents",
}
"""The messages. Fields are `name=number:type`, with `*` for repeated ones and `?` for those of the only `oneof`; a dot
is before messages inside the message itself, and braces are a map from text."""


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for full, fields in MESSAGES.items():
        outer, _, name = full.rpartition(".")
        message = made[full] = made[outer].nested_type.add(name=name) if outer else file.message_type.add(name=name)
        for field in fields.split():
            _add_field(message, field, f".inference.{full}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(message: Any, text: str, path: str) -> None:
    name, _, rest = text.partition("=")
    number, _, kind = rest.partition(":")
    fields = descriptor_pb2.FieldDescriptorProto
    added = message.field.add(name=name, number=int(number), label=fields.LABEL_OPTIONAL)
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key=1:string", f"{path}.{entry.name}")
        _add_field(entry, f"value=2:{kind[1:-1]}", f"{path}.{entry.name}")
        kind = f".{entry.name}*"
    if kind.endswith("*"):
        added.label = fields.LABEL_REPEATED
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        added.oneof_index = 0
    kind = kind.rstrip("*?")
    if kind[0].isupper() or kind.startswith("."):
        added.type, added.type_name = fields.TYPE_MESSAGE, path + kind if kind.startswith(".") else f".inference.{kind}"
    else:
        added.type = fields.Type.Value(f"TYPE_{kind.upper()}")


_POOL: Final = _pool()


def message_class(name: str) -> Any:
    """The class of a message of the protocol."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


_RESPONSES: Final = {name: message_class(name) for name in MESSAGES if name.endswith("Response")}


def rpc_server(service: Service) -> Any:
    """A server that answers the calls of the protocol, without a port."""
    limits = service.limits
    options = {
        "grpc.max_receive_message_length": limits.request_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": 0,  # else a second server on the port would get half of the requests
    }
    server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=2 * limits.pending)
    calls = _Calls(service)
    handlers = {
        "ModelInfer": calls.handler("ModelInferRequest", calls.infer),
        "ServerLive": calls.handler("ServerLiveRequest", calls.live, public=True),
        "ServerReady": calls.handler("ServerReadyRequest", calls.ready, public=True),
        "ModelReady": calls.handler("ModelReadyRequest", calls.model_ready, public=True),
        "ServerMetadata": calls.handler("ServerMetadataRequest", calls.server_metadata),
        "ModelMetadata": calls.handler("ModelMetadataRequest", calls.model_metadata),
        **{
            f"Repository{name}": grpc.unary_unary_rpc_method_handler(_refuse_loading)
            for name in ("Index", "ModelLoad", "ModelUnload")
        },
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, handlers)])
    return server


async def _refuse_loading(_message: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, _LOAD)


class _Calls:
    """The calls of the protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def handler(self, request: str, call: Callable[[Any], Any], *, public: bool = False) -> Any:
        """The handler of a call: errors become a status and a sentence, and so do messages that are malformed."""
        kind = message_class(request)

        def parse(message: bytes) -> Any:
            try:
                return kind.FromString(message)
            except DecodeError as error:
                return error

        async def answer(message: Any, context: Any) -> Any:
            headers = dict(context.invocation_metadata() or ())
            with no_span() if public else request_span(request.removesuffix("Request"), headers, "grpc") as end:
                return await answered(message, context, headers, end)

        async def answered(message: Any, context: Any, headers: Mapping[str, Any], end: End) -> Any:
            name = getattr(message, "model_name", getattr(message, "name", ""))
            try:
                if not public:
                    self._service.check_token(headers.get("authorization", ""))
                response = await call(_sound(message))
            except Exception as error:  # noqa: BLE001 - a bug must not stop the server
                status, text = refusal_of(error)
            else:
                end(name, 200)
                return response
            served = name if any(one.name == name for one in self._service.models) else ""
            end(served, status)
            self._service.metrics.count_refusal(served, status)
            log("refused", transport="grpc", model=served, status=status, error=text)
            return await context.abort(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), text)

        return grpc.unary_unary_rpc_method_handler(answer, parse, lambda response: response.SerializeToString())

    async def infer(self, request: Any) -> Any:
        """Answer an inference request."""
        model = self._service.find(request.model_name, request.model_version)
        start = time.monotonic()
        try:
            with model.admitted():
                response = await model.work(lambda: _infer(model, request))
            log("answered", transport="grpc", verb="infer", model=model.name, ms=_milliseconds(start))
            return response
        finally:
            release(request.ByteSize())

    async def live(self, _request: Any) -> Any:
        """Answer that the server runs."""
        return _RESPONSES["ServerLiveResponse"](live=True)

    async def ready(self, _request: Any) -> Any:
        """Answer whether it takes requests."""
        return _RESPONSES["ServerReadyResponse"](ready=not self._service.draining)

    async def model_ready(self, request: Any) -> Any:
        """Answer whether the model is ready; NOT_FOUND for any other model."""
        self._service.find(request.name, request.version)
        return _RESPONSES["ModelReadyResponse"](ready=not self._service.draining)

    async def server_metadata(self, _request: Any) -> Any:
        """Name the server."""
        return _RESPONSES["ServerMetadataResponse"](
            name="onnx-gradcam", version=__version__, extensions=["binary_tensor_data"]
        )

    async def model_metadata(self, request: Any) -> Any:
        """Describe inputs and outputs; NOT_FOUND for any other model."""
        model = self._service.find(request.name, request.version)
        response = _RESPONSES["ModelMetadataResponse"](
            name=model.name, versions=model.versions, platform=model.platform
        )
        for rows, tensors in ((response.inputs, model.inputs), (response.outputs, model.outputs)):
            for tensor in tensors:
                rows.add(**tensor)
        return response


def _sound(message: Any) -> Any:
    if isinstance(message, DecodeError):
        raise ServerError(f"the message is malformed ({message})")
    return message


def _milliseconds(start: float) -> float:
    return round(1000 * (time.monotonic() - start), 2)


def _infer(model: Served, request: Any) -> Any:
    with model.stage("parse"):
        query = _query(request)
    results = model.answer(query)
    with model.stage("encode"):
        response = _RESPONSES["ModelInferResponse"](model_name=model.name, model_version=model.version, id=request.id)
        for result in results:
            response.outputs.add(name=result.name, datatype=result.datatype, shape=result.shape)
            response.raw_output_contents.append(result.raw())
        return response


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
