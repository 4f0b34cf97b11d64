"""The server: Starlette on uvicorn for REST, grpc.aio for gRPC, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import uvicorn

from onnx_gradcam.errors import ServerError, reason
from onnx_gradcam.files import read_file, read_text

from .connections import BoundedProtocol
from .hosting import Source, read_sources
from .limits import Limits
from .recording import Recording, RequestLog
from .rest import application
from .rpc import rpc_server
from .service import JsonLines, Service, log

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["Address", "Security", "serve"]

_M_MMAP_THRESHOLD: Final = -3  # malloc.h of glibc
_NOTICE: Final = 1.0
"""Seconds between the end of readiness and that of the listening: balancers and clients have to notice."""
_BACKLOG: Final = 2048
_LOGGERS: Final = ("onnx_gradcam.serve", "uvicorn.error", "asyncio", "grpc")
_TOKEN_LENGTH: Final = 16
_LARGEST: Final = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens: an IP address or name, `0.0.0.0` for all networks, and two different ports."""

    host: str = "127.0.0.1"
    http: int = 8080
    grpc: int = 8081

    @property
    def ports(self) -> dict[str, int]:
        """The ports by the options that choose them."""
        return {"--port": self.http, "--grpc-port": self.grpc}

    @property
    def family(self) -> socket.AddressFamily:
        """The kind of the host's address."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __post_init__(self) -> None:
        for option, port in self.ports.items():
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise ServerError(f"{port!r} is not a port; choose 1 to 65535 with {option}")
        if len(set(self.ports.values())) < len(self.ports):
            ports = ", ".join(map(str, self.ports.values()))
            raise ServerError(f"the ports {ports} for REST and gRPC have to differ; choose others")

    def check_free(self) -> None:
        """Refuse ports that are in use, and a host that is not an address of this computer."""
        for option, port in self.ports.items():
            with socket.socket(self.family, socket.SOCK_STREAM) as probe:
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
class Security:
    """Who may ask, and how it is encrypted.

    Attributes:
        token_file: a file with the token that requests have to send as `Authorization: Bearer TOKEN`, 16 characters or
            more; health checks need none.
        tls_cert: the certificate of the server and its chain, PEM; both ports speak TLS then.
        tls_key: its private key, PEM.

    Raises:
        ServerError: only one of certificate and key, or files that are none.
    """

    token_file: str | Path | None = None
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ServerError("a certificate needs its key, and a key its certificate; give --tls-cert and --tls-key")

    def token(self) -> str | None:
        """The token, read from its file."""
        if self.token_file is None:
            return None
        token = read_text(self.token_file, _LARGEST, "a token").strip()
        if len(token) < _TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
            raise ServerError(
                f"the token in {self.token_file} is no word of {_TOKEN_LENGTH} or more ASCII characters; make one with "
                "`openssl rand -hex 32`"
            )
        return token

    def credentials(self) -> Any:
        """The credentials of gRPC, `None` without TLS; REST reads the same files."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key)
        except OSError as error:  # SSLError is one
            raise ServerError(
                f"cannot use the certificate {self.tls_cert} with the key {self.tls_key} ({reason(error)}); give PEM "
                "files"
            ) from error
        pair = read_file(self.tls_key, _LARGEST), read_file(self.tls_cert, _LARGEST)
        return grpc.ssl_server_credentials([pair])


class _Http(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again when the server has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield


def serve(
    model: str | Path,
    *,
    name: str | None = None,
    address: Address | None = None,
    limits: Limits | None = None,
    security: Security | None = None,
    recording: Recording | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    **choices: Unpack[Choices],
) -> None:
    """Serve a model and its heatmaps over REST and gRPC until a signal arrives.

    SIGTERM and SIGINT end it: readiness first, then listening, then what is in progress. SIGHUP reads a folder of
    models again.

    Args:
        model: path of a model, or of a folder of them (`hosting.read_sources`); one that is not explained yet is
            attached when the server starts.
        name: name of the model in requests; by default, that of the file.
        address: host and ports; by default, 127.0.0.1, 8080 and 8081.
        limits: upper bounds on requests.
        security: token and TLS; by default, none.
        recording: where a sample of the answers is logged; by default, nowhere.
        provider: execution provider, `cpu`, `cuda` ...
        threads: number of CPU threads; by default, chosen by ONNX Runtime.
        feeds: values of the model's other inputs for requests that do not send them, as for `Explainer`.
        choices: fields of `onnx_gradcam.Options`; for an explained model, only `labels` and `preprocess`.

    Raises:
        ServerError: a port is in use.
        InputError: answers cannot be logged into the folder, or pyarrow is missing.
        ExplainError: the model cannot be served; see `onnx_gradcam.errors`.

    Example::

        serve("explained.onnx", address=Address(http=9000), limits=Limits(rows=8))
    """
    address, limits, security = address or Address(), limits or Limits(), security or Security()
    settings = {"provider": provider, "threads": threads, "feeds": feeds, **choices}
    address.check_free()
    credentials = security.credentials()
    _return_large_blocks()
    _log_lines()

    def read() -> list[Source]:
        return read_sources(model, name=name, limits=limits, settings=settings)

    with contextlib.ExitStack() as stack:
        requests = None
        if recording is not None:
            requests = stack.enter_context(RequestLog(recording, apart=Path(model).is_dir(), stopped=_log_stopped))
        service = Service(read, security.token(), requests)
        stack.callback(service.close)
        gc.collect()
        gc.freeze()  # what was loaded stays: collections after large requests look at the rest alone
        asyncio.run(_run(service, address, security, credentials))


async def _run(service: Service, address: Address, security: Security, credentials: Any) -> None:
    """Answer requests until a signal arrives, and then those in progress."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, one, stop.set)
    reloading = asyncio.Lock()
    tasks: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        async with reloading:
            await loop.run_in_executor(None, service.reload)

    def on_hangup() -> None:
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if hasattr(signal, "SIGHUP"):  # Windows has none
        _on_signal(loop, signal.SIGHUP, on_hangup)
    rpc = rpc_server(service)
    _open_rpc(rpc, address, credentials)
    # Vertex AI names the routes that it will ask.
    routes = {"predict_route": os.environ.get("AIP_PREDICT_ROUTE"), "health_route": os.environ.get("AIP_HEALTH_ROUTE")}
    for route in routes.values():
        if route and (not route.startswith("/") or "{" in route):
            raise ServerError(f"the route {route!r} of AIP_PREDICT_ROUTE or AIP_HEALTH_ROUTE has to start with /")
    http = _Http(
        uvicorn.Config(
            application(service, **routes),
            http=BoundedProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(service.limits.seconds)),
            ssl_certfile=security.tls_cert,
            ssl_keyfile=security.tls_key,
        )
    )
    with _listening(address) as listening:
        await rpc.start()
        serving = loop.create_task(http.serve([listening]))
        scheme = "http" if security.tls_cert is None else "https"
        log(
            "serving",
            rest=f"{scheme}://{address.host}:{address.http}",
            grpc=f"{address.host}:{address.grpc}",
            models=_names(service),
        )
        await stop.wait()
        service.draining = True
        log("draining", pending=sum(one.busy for one in service.models))
        await asyncio.sleep(_NOTICE)
        http.should_exit = True
        await asyncio.gather(rpc.stop(service.limits.seconds), serving)
    log("stopped")


def _on_signal(loop: asyncio.AbstractEventLoop, number: int, action: Callable[[], None]) -> None:
    """Call `action` in the loop when a signal arrives."""
    try:
        loop.add_signal_handler(number, action)
    except NotImplementedError:  # the loop of Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(action))


def _listening(address: Address) -> socket.socket:
    """The socket of REST. asyncio turns delays off only where TCP is named: else an answer waits 40 ms for an ACK."""
    made = socket.socket(address.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address.host, address.http))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ServerError(f"cannot listen on port {address.http} ({error.strerror}); choose another --port") from error
    return made


def _names(service: Service) -> list[str]:
    return [f"{one.name} {one.version}".strip() for one in service.models]


def _open_rpc(rpc: Any, address: Address, credentials: Any) -> None:
    host = f"[{address.host}]" if ":" in address.host else address.host
    try:
        if credentials is None:
            rpc.add_insecure_port(f"{host}:{address.grpc}")
        else:
            rpc.add_secure_port(f"{host}:{address.grpc}", credentials)
    except RuntimeError as error:
        raise ServerError(f"cannot listen on port {address.grpc} of {host}; check --host and --grpc-port") from error


def _log_stopped(error: Exception) -> None:
    log("the log of requests has stopped", logging.ERROR, error=reason(error))


def _log_lines() -> None:
    """Write the logs of the server and of its libraries to standard error, one JSON object per line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == _LOGGERS[0] else logging.WARNING)


def _return_large_blocks() -> None:
    """Make glibc return large blocks to the system when they are freed.

    With each large block that it frees, glibc raises its threshold for this, up to 32 MB, and then keeps the bodies of
    large requests in the arenas of several threads.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
