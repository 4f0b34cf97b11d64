"""HTTP connections: time and size of headers are bounded, and who is refused early can still read why.

uvicorn waits for headers without end, and a socket that is closed with unread input resets, so that the client never
sees the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from onnx_gradcam.errors import ServerError

from .limits import Limits

__all__ = ["BoundedProtocol", "Refusal", "Upload", "closing_connections"]

_HEAD_SECONDS: Final = 5.0
_HEAD_BYTES: Final = 1 << 16
_DISCARD_SECONDS: Final = 2.0
_FIRST_SECONDS: Final = 2.0
_LEAST_RATE: Final = 16 << 10
"""Bytes per second that a body has to arrive with, after its first seconds."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on a request's line and headers; uvicorn itself closes idle connections."""

    head_timer: asyncio.TimerHandle | None = None
    head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first headers."""
        super().connection_made(transport)
        self.await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self.end_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the headers of a request that has begun."""
        super().on_message_begin()
        self.await_head()

    def on_headers_complete(self) -> None:
        """Stop waiting."""
        self.end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of headers that are not complete."""
        super().data_received(data)
        if self.head_timer is not None:
            self.head_bytes += len(data)
            if self.head_bytes > _HEAD_BYTES:
                self.refuse_head("431 Request Header Fields Too Large", f"the headers exceed {_HEAD_BYTES} bytes")

    def await_head(self) -> None:
        """Start the time of the headers."""
        self.end_head()
        late = ("408 Request Timeout", "the headers did not arrive in time")
        self.head_timer = asyncio.get_running_loop().call_later(_HEAD_SECONDS, self.refuse_head, *late)

    def end_head(self) -> None:
        """Stop the time of the headers."""
        if self.head_timer is not None:
            self.head_timer.cancel()
        self.head_timer, self.head_bytes = None, 0

    def refuse_head(self, status: str, message: str) -> None:
        """Answer, and close the connection; one on which nothing was sent is closed without an answer."""
        begun = self.head_bytes > 0
        self.end_head()
        if self.transport.is_closing():
            return
        if not begun:
            self.transport.close()
            return
        content = json.dumps({"error": message})
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n{content}".encode())
        self.transport.close()


class Upload:
    """The body of a request, read within limits.

    Attributes:
        received: number of bytes so far.
        complete: whether nothing more is to come.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.received = 0
        self.complete = False

    async def read(self, limits: Limits, receive: Callable[[int], None]) -> bytes:
        """The whole body; `receive` is called with the size of every piece, and may refuse it.

        Raises:
            ServerError: it is compressed (415), too large (413), too slow (408) or cut off (400).
        """
        headers, most = self._request.headers, limits.request_bytes
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ServerError("bodies with a Content-Encoding are not supported; send the body uncompressed", 415)
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > most:
            raise ServerError(
                f"the body has {length[:20]} bytes, which exceeds the limit of {most}; send a smaller one", 413
            )
        start, pieces = time.monotonic(), []
        while not self.complete:
            seconds = min(limits.seconds, _FIRST_SECONDS + self.received / _LEAST_RATE)
            piece = await self._piece(start + seconds - time.monotonic())
            receive(len(piece))
            self.received += len(piece)
            pieces.append(piece)
            if self.received > most:
                raise ServerError(f"the body exceeds the limit of {most} bytes; send a smaller one", 413)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _piece(self, seconds: float) -> bytes:
        try:
            message = await asyncio.wait_for(self._request.receive(), max(0.0, seconds))
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise ServerError("the body did not arrive in time", 408) from error
        if message["type"] == "http.disconnect":
            self.complete = True
            raise ServerError("the connection was closed before the body had arrived")
        self.complete = not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece


class Refusal(Response):
    """A refusal in one sentence. Where the body has not arrived, what still comes is thrown away for two seconds."""

    def __init__(
        self, message: str, status: int, *, complete: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        close = {} if complete else {"connection": "close"}
        content = json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")
        super().__init__(content, status, {**(headers or {}), **close}, "application/json")
        self._complete = complete

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, and throw away the rest of the body."""
        if self._complete:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(_discard(receive), _DISCARD_SECONDS)
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def closing_connections(app: Any, when: Callable[[], bool]) -> Any:
    """An application whose answers ask clients to connect anew, while `when` says so: another server may take over."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def closing(message: Any) -> None:
            if message["type"] == "http.response.start" and when():
                headers = [one for one in message.get("headers", ()) if one[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, closing if scope["type"] == "http" else send)

    return wrapped
