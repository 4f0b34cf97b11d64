"""The studio as a web application: one model, one computer, one address that only its user knows.

Every request must come for 127.0.0.1, from the page itself, and carry the token of this run in its path. Files are
served from a list made at the start, so no path of a request reaches the disk.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import resources
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onnx_gradcam.errors import ExplainError, ServerError

from .jobs import Jobs, Ticket
from .recipes import Recipe
from .workbench import Workbench, png_of

__all__ = ["application", "run_studio"]

HOST: Final = "127.0.0.1"

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src "
    "'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every response: browsers load nothing from other sites, show the page in no frame, and cache nothing."""

_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
}
_SHARED: Final = ("drawing.js", "style.css", "theme.js")
"""Files of the page that `web` writes."""
_DISCONNECTED: Final = 0.25
"""Seconds between two looks whether somebody still waits for an answer."""


def application(workbench: Workbench, token: str, port: int, *, pending: int = 8) -> ASGIApp:
    """The ASGI application of a workbench, for requests whose path begins with the token.

    Args:
        workbench: the model and its images.
        token: secret of this run, one segment of a path.
        port: port of 127.0.0.1 on which it is served.
        pending: how many explanations may wait.
    """
    studio = _Studio(workbench, Jobs(pending))
    routes = [
        *(Route(f"/{name}", _file(data, kind)) for name, (data, kind) in _assets().items()),
        Route("/api/model", studio.model),
        Route("/api/images", studio.add, methods=["POST"]),
        Route("/api/sample", studio.sample, methods=["POST"]),
        Route("/api/images/{key}.png", studio.image),
        Route("/api/images/{key}/file", studio.original),
        Route("/api/explain", studio.explain, methods=["POST"]),
        Route("/api/thumbnail", studio.thumbnail, methods=["POST"]),
        Route("/api/reproduce", studio.reproduce, methods=["POST"]),
        Route("/api/attach", studio.attach, methods=["POST"]),
        Route("/api/heat/{key}.png", studio.heat),
        Route("/api/sheets/{key}.png", studio.sheet),
        Route("/api/sheets/{key}.npz", studio.numbers),
    ]
    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        ExplainError: _refused,
        HTTPException: lambda _, error: _sentence(str(error.detail).lower(), error.status_code),  # type: ignore[attr-defined]
    }
    inner = Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers=handlers)
    return _Guard(inner, token, port)


class _Guard:
    """Refuses what does not come from the page itself, and adds headers to every response."""

    def __init__(self, inner: ASGIApp, token: str, port: int) -> None:
        self._inner, self._token = inner, token.encode()
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        refusal = self._refusal(scope)
        await (self._inner if refusal is None else _sentence(refusal, 403))(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> str | None:
        """Why a request is refused; `None` if it is not."""
        values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name, []).append(value)
        hosts = values.get(b"host", [])
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "this studio answers requests to 127.0.0.1 only; open the address that it printed"
        strange = [origin for origin in values.get(b"origin", []) if origin not in self._origins]
        if strange or values.get(b"sec-fetch-site", [b"none"])[0] not in {b"same-origin", b"none"}:
            return "this studio answers its own page only; open the address that it printed"
        token = scope["path"].split("/")[1] if "/" in scope["path"] else ""
        if not secrets.compare_digest(token.encode(errors="replace"), self._token):
            return "the token in the address is wrong; open the address that the studio printed"
        return None


class _Studio:
    """The answers, each a method."""

    def __init__(self, workbench: Workbench, jobs: Jobs) -> None:
        self._workbench, self._jobs = workbench, jobs

    async def model(self, _: Request) -> Response:
        """What the page has to know at first."""
        return JSONResponse({**self._workbench.description, "images": self._workbench.images()})

    async def add(self, request: Request) -> Response:
        """Keep an image: its file is the body, its name a parameter."""
        data = await _body(request, self._workbench.limits.image_bytes, "the image")
        name = request.query_params.get("name", "")
        return JSONResponse(await run_in_threadpool(self._workbench.add, name, data))

    async def sample(self, _: Request) -> Response:
        """Keep the sample image."""
        return JSONResponse(await run_in_threadpool(self._workbench.add_sample))

    async def image(self, request: Request) -> Response:
        """An image as it is shown."""
        picture = self._workbench.picture(request.path_params["key"])
        return Response(await run_in_threadpool(png_of, picture.pixels), media_type="image/png")

    async def original(self, request: Request) -> Response:
        """The file of an image, to be saved."""
        picture = self._workbench.picture(request.path_params["key"])
        return Response(picture.data, media_type="application/octet-stream", headers=_ATTACHED)

    async def explain(self, request: Request) -> Response:
        """Explain an image, with events on the way."""
        key, recipe = await self._asked(request)
        return self._streamed(request, lambda ticket: self._workbench.explain(key, recipe, ticket))

    async def thumbnail(self, request: Request) -> Response:
        """Show what a layer sees, with events on the way."""
        key, recipe = await self._asked(request)
        return self._streamed(request, lambda ticket: self._workbench.thumbnail(key, recipe, ticket))

    async def reproduce(self, request: Request) -> Response:
        """The commands and the code that make what is shown."""
        key, recipe = await self._asked(request)
        return JSONResponse(self._workbench.reproduce(key, recipe))

    async def attach(self, request: Request) -> Response:
        """The explained model."""
        _, recipe = await self._asked(request)
        events: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        ticket = self._submit(lambda ticket: self._workbench.attached(recipe, ticket), events)
        async for event in _events(request, ticket, events):
            if "error" in event:
                return _sentence(event["error"], 400)
            if "answer" in event:
                return Response(event["answer"], media_type="application/octet-stream", headers=_ATTACHED)
        return Response(status_code=499)

    async def heat(self, request: Request) -> Response:
        """The heatmap over the image."""
        made = await run_in_threadpool(self._workbench.heat, request.path_params["key"], _look(request))
        return Response(made, media_type="image/png")

    async def sheet(self, request: Request) -> Response:
        """The picture to be saved."""
        made = await run_in_threadpool(self._workbench.sheet, request.path_params["key"], _look(request))
        return Response(made, media_type="image/png", headers=_ATTACHED)

    async def numbers(self, request: Request) -> Response:
        """The arrays to be saved."""
        made = await run_in_threadpool(self._workbench.numbers, request.path_params["key"])
        return Response(made, media_type="application/octet-stream", headers=_ATTACHED)

    async def _asked(self, request: Request) -> tuple[str, Recipe]:
        """The image and the recipe of a request."""
        body = await _body(request, self._workbench.limits.request_bytes, "the request")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerError("the request is not JSON; reload the page") from error
        if not isinstance(values, dict) or not isinstance(values.get("image"), str):
            raise ServerError("the request names no image; choose one")
        return values.pop("image"), Recipe.read(values)

    def _submit(self, work: Callable[[Ticket], Any], events: asyncio.Queue[Mapping[str, Any]]) -> Ticket:
        loop = asyncio.get_running_loop()
        return self._jobs.submit(work, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))

    def _streamed(self, request: Request, work: Callable[[Ticket], Any]) -> Response:
        """A line of JSON for every event of a job; the job is cancelled when the page no longer waits."""
        events: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        ticket = self._submit(work, events)

        async def lines() -> AsyncIterator[str]:
            async for event in _events(request, ticket, events):
                yield json.dumps(event, allow_nan=False) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


_ATTACHED: Final = {"Content-Disposition": "attachment"}


async def _events(
    request: Request, ticket: Ticket, events: asyncio.Queue[Mapping[str, Any]]
) -> AsyncIterator[Mapping[str, Any]]:
    """The events of a job until its last one, or until nobody waits for it."""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), _DISCONNECTED)
            except asyncio.TimeoutError:
                if await request.is_disconnected():
                    return
                continue
            yield event
            if "progress" not in event:
                return
    finally:
        ticket.cancel()


async def _body(request: Request, limit: int, what: str) -> bytes:
    """The body, refused before it is read if it says that it is too large, else as soon as it is."""
    message = f"{what} has more than {limit >> 20 or limit} {'MB' if limit >> 20 else 'bytes'}; choose a smaller one"
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise ServerError(message, 413)
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise ServerError(message, 413)
    return b"".join(parts)


def _look(request: Request) -> Recipe:
    """Colours and opacity of a picture, from the address."""
    opacity = request.query_params.get("opacity")
    try:
        return Recipe(
            colormap=request.query_params.get("colormap"), opacity=None if opacity is None else float(opacity)
        )
    except ValueError as error:
        raise ServerError("'opacity' is not a number; reload the page") from error


def _refused(_: Request, error: Exception) -> Response:
    return _sentence(str(error), error.status if isinstance(error, ServerError) else 400)


def _sentence(text: str, status: int) -> Response:
    # Whoever sends too much is not listened to any longer.
    return JSONResponse({"error": text}, status, {"Connection": "close"} if status == 413 else None)


def _file(data: bytes, kind: str) -> Callable[[Request], Response]:
    def answer(_: Request) -> Response:
        return Response(data, media_type=kind)

    return answer


def _assets() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, with their types; the page itself has the empty name."""
    own = list((resources.files(__package__) / "static").iterdir())
    shared = [resources.files("onnx_gradcam.web") / "static" / name for name in _SHARED]
    files = {entry.name: entry.read_bytes() for entry in (*shared, *own)}
    kinds = {name: kind for name in files for suffix, kind in _TYPES.items() if name.endswith(suffix)}
    return {"" if name == "index.html" else name: (files[name], kind) for name, kind in kinds.items()}


def run_studio(
    workbench: Workbench, *, port: int = 0, notify: Callable[[str], object] = print, browse: bool = False
) -> None:
    """Serve the studio on 127.0.0.1 until Ctrl-C.

    Args:
        workbench: the model and its images.
        port: the port; 0 for any free one.
        notify: called with the address.
        browse: open the address in the browser.

    Raises:
        ServerError: the port is in use or not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            raise ServerError(
                f"port {port} on {HOST} cannot be had ({error.strerror}); choose another with --port"
            ) from error
        token = secrets.token_urlsafe(24)
        address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
        notify(f"the studio is at {address}")
        if browse:
            webbrowser.open(address)
        app = application(workbench, token, listener.getsockname()[1])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, limit_concurrency=64, lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[listener])
