"""A server for one model: MLServer with the transports of this package."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["Address", "serve"]

_M_MMAP_THRESHOLD: Final = -3  # malloc.h of glibc
_IMPLEMENTATION: Final = "onnx_gradcam.serve.mlserver.ExplainRuntime"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens: an IP address or name, `0.0.0.0` for all networks, and three different ports."""

    host: str = "127.0.0.1"
    http: int = 8080
    grpc: int = 8081
    metrics: int = 8082

    @property
    def ports(self) -> dict[str, int]:
        """The ports by the options that choose them."""
        return {"--port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}

    def __post_init__(self) -> None:
        for option, port in self.ports.items():
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise ServerError(f"{port!r} is not a port; choose 1 to 65535 with {option}")
        if len(set(self.ports.values())) < len(self.ports):
            ports = ", ".join(map(str, self.ports.values()))
            raise ServerError(f"the ports {ports} for REST, gRPC and metrics have to differ; choose others")

    def check_free(self) -> None:
        """Refuse ports that are in use, and a host that is not an address of this computer."""
        for option, port in self.ports.items():
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As servers do: a port that a stopped server has left in TIME_WAIT is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        problem = f"port {port} on {self.host} is already in use; choose another with {option}"
                    else:
                        problem = (
                            f"cannot listen on port {port} of {self.host} ({error.strerror}); check --host and {option}"
                        )
                    raise ServerError(problem) from error


@dataclass(frozen=True, kw_only=True)
class _Service:
    model: Path
    name: str
    address: Address
    limits: Limits
    settings: dict[str, Any] = field(default_factory=dict)


class _Server(MLServer):
    """MLServer for one model, which is loaded before the first port opens."""

    def __init__(self, service: _Service) -> None:
        address = service.address
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
                grpc_max_message_length=service.limits.request_bytes,
                gzip_enabled=False,
                server_name="onnx-gradcam",
            )
        )
        self._service = service

    async def run(self) -> None:
        """Load the model and serve it until a signal arrives."""
        service = self._service
        runtime = await self._model_registry.load(
            ModelSettings(
                name=service.name,
                implementation=_IMPLEMENTATION,
                parameters=ModelParameters(
                    uri=str(service.model), extra={**service.settings, "limits": vars(service.limits)}
                ),
            )
        )
        self._guard(runtime)
        gc.collect()
        gc.freeze()  # what was loaded stays: collections after large requests look at the rest alone
        await self.start([])

    def _guard(self, runtime: ExplainRuntime) -> None:
        """Replace MLServer's transports for requests with a body by those of this package."""
        router = self._rest_server._app.router  # noqa: SLF001 - MLServer has no hook for this
        # MLServer's documentation pages describe its own endpoints and load scripts from other hosts.
        kept = [r for r in router.routes if "POST" not in (getattr(r, "methods", None) or ()) and "/docs" not in r.path]
        router.routes[:] = inference_routes(self._data_plane, runtime) + kept
        grpc_server = self._grpc_server
        address, limits = self._service.address, self._service.limits

        def create() -> Any:
            options = {
                "grpc.max_receive_message_length": limits.request_bytes,
                "grpc.max_send_message_length": -1,
                "grpc.so_reuseport": 0,  # else a second server on the port would get half of the requests
            }
            server = aio.server(
                interceptors=[PromServerInterceptor(enable_handling_time_histogram=True), Malformed()],
                options=list(options.items()),
                maximum_concurrent_rpcs=2 * limits.pending,
            )
            add_GRPCInferenceServiceServicer_to_server(ExplainServicer(self._data_plane, runtime), server)
            host = f"[{address.host}]" if ":" in address.host else address.host
            server.add_insecure_port(f"{host}:{address.grpc}")
            grpc_server._server = server  # noqa: SLF001 - as MLServer does
            return server

        grpc_server._create_server = create  # noqa: SLF001


def serve(
    model: str | Path,
    *,
    name: str | None = None,
    address: Address | None = None,
    limits: Limits | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    **choices: Unpack[Choices],
) -> None:
    """Serve a model and its heatmaps over REST and gRPC until a signal arrives.

    Args:
        model: path of a model; one that is not explained yet is attached when the server starts.
        name: name of the model in requests; by default, that of the file.
        address: host and ports; by default, 127.0.0.1 and 8080 to 8082.
        limits: upper bounds on requests.
        provider: execution provider, `cpu`, `cuda` ...
        threads: number of CPU threads; by default, chosen by ONNX Runtime.
        choices: fields of `onnx_gradcam.Options`; for an explained model, only `labels` and `preprocess`.

    Raises:
        ServerError: a port is in use.
        ExplainError: the model cannot be served; see `onnx_gradcam.errors`.

    Example::

        serve("explained.onnx", address=Address(http=9000), limits=Limits(rows=8))
    """
    service = _Service(
        model=Path(model),
        name=name or Path(model).stem,
        address=address or Address(),
        limits=limits or Limits(),
        settings={"provider": provider, "threads": threads, **choices},
    )
    service.address.check_free()
    _return_large_blocks()
    # MLServer reads a .env file in the current folder and variables of its own; only the arguments above count.
    for variable in [key for key in os.environ if key.startswith("MLSERVER_")]:
        del os.environ[variable]
    asyncio.run(_main(service))


def _return_large_blocks() -> None:
    """Make glibc return large blocks to the system when they are freed.

    With each large block that it frees, glibc raises its threshold for this, up to 32 MB, and then keeps the bodies of
    large requests in the arenas of several threads.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


async def _main(service: _Service) -> None:
    await _Server(service).run()
