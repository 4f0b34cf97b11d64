"""MLServer with one explained model behind guarded transports, in one call."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from grpc import aio
from mlserver import MLServer, ModelSettings, Settings
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.interceptors import PromServerInterceptor
from mlserver.settings import ModelParameters

from onnx_gradcam.errors import ServerError

from .limits import Limits
from .mlserver import ExplainRuntime
from .rest import inference_routes
from .rpc import ExplainServicer, Malformed

__all__ = ["Address", "serve_model"]

_M_MMAP_THRESHOLD: Final = -3  # malloc.h of glibc
_IMPLEMENTATION: Final = "onnx_gradcam.serve.mlserver.ExplainRuntime"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens: one host, three ports."""

    host: str = "127.0.0.1"
    http: int = 8080
    grpc: int = 8081
    metrics: int = 8082

    def check(self) -> None:
        """See that the ports are free.

        Raises:
            ServerError: one of them is not, or two of them are the same.
        """
        ports = (self.http, self.grpc, self.metrics)
        if len(set(ports)) < len(ports):
            raise ServerError(f"the ports {', '.join(map(str, ports))} for REST, gRPC and metrics have to differ")
        for port in ports:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As the servers do: a port that is only left over from a server before is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise ServerError(
                        f"port {port} of {self.host!r} cannot be listened on ({error.strerror}); choose another"
                    ) from error


@dataclass(frozen=True, kw_only=True)
class _Served:
    model: Path
    name: str
    address: Address
    limits: Limits
    options: dict[str, Any] = field(default_factory=dict)


class _Server(MLServer):
    """MLServer for one model, which is there before the first port opens."""

    def __init__(self, served: _Served) -> None:
        address = served.address
        super().__init__(
            Settings(
                debug=False,
                parallel_workers=0,
                load_models_at_startup=False,
                model_repository_root="",
                host=address.host,
                http_port=address.http,
                grpc_port=address.grpc,
                metrics_port=address.metrics,
                grpc_max_message_length=served.limits.request_bytes,
                gzip_enabled=False,
                server_name="onnx-gradcam",
            )
        )
        self._served = served

    async def run(self) -> None:
        """Load the model and serve it until a signal comes.

        Raises:
            ExplainError: the model cannot be served.
        """
        served = self._served
        runtime = await self._model_registry.load(
            ModelSettings(
                name=served.name,
                implementation=_IMPLEMENTATION,
                parameters=ModelParameters(
                    uri=str(served.model),
                    extra={**served.options, "limits": vars(served.limits)},
                ),
            )
        )
        self._guard(runtime)
        await self.start([])

    def _guard(self, runtime: ExplainRuntime) -> None:
        """Put this package's transports in the place of MLServer's for whatever takes a body."""
        router = self._rest_server._app.router  # noqa: SLF001 - MLServer has no hook for this
        # Of MLServer's pages of documentation, which tell of its own contract, a browser would load parts elsewhere.
        kept = [r for r in router.routes if "POST" not in (getattr(r, "methods", None) or ()) and "/docs" not in r.path]
        router.routes[:] = inference_routes(self._data_plane, runtime) + kept
        grpc_server = self._grpc_server
        address, limits = self._served.address, self._served.limits

        def create() -> Any:
            options = {
                "grpc.max_receive_message_length": limits.request_bytes,
                "grpc.max_send_message_length": -1,
                "grpc.so_reuseport": 0,  # a second server on the same port is an error, not half of the requests
            }
            server = aio.server(
                interceptors=[PromServerInterceptor(enable_handling_time_histogram=True), Malformed()],
                options=list(options.items()),
                maximum_concurrent_rpcs=2 * limits.pending,
            )
            add_GRPCInferenceServiceServicer_to_server(ExplainServicer(self._data_plane, runtime), server)
            host = f"[{address.host}]" if ":" in address.host else address.host
            server.add_insecure_port(f"{host}:{address.grpc}")
            grpc_server._server = server  # noqa: SLF001 - as MLServer's own method does
            return server

        grpc_server._create_server = create  # noqa: SLF001


def serve_model(
    model: str | Path,
    *,
    name: str | None = None,
    address: Address | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> None:
    """Serve a model until a signal comes: REST, gRPC and metrics.

    Args:
        model: an explained model, or one that is attached when the server starts.
        name: of the model in requests; by default that of the file.
        address: host and ports; loopback by default.
        limits: what a request may ask for.
        options: those of `onnx_gradcam.Explainer`.

    Raises:
        ExplainError: the model cannot be served, or a port is taken.
    """
    served = _Served(
        model=Path(model),
        name=name or Path(model).stem,
        address=address or Address(),
        limits=limits or Limits(),
        options=options,
    )
    served.address.check()
    _return_large_blocks()
    # MLServer reads a .env file of the current folder and variables of its own; what is said here counts.
    for variable in [key for key in os.environ if key.startswith("MLSERVER_")]:
        del os.environ[variable]
    asyncio.run(_main(served))


def _return_large_blocks() -> None:
    """Have the C library give large blocks back to the system when they are freed.

    glibc raises its bound for that with every large block it frees, up to 32 MB; the bodies of a few large requests,
    each in the arena of another thread, then stay for good. Other C libraries have no such bound.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


async def _main(served: _Served) -> None:
    await _Server(served).run()
