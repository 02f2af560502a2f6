"""Decide which connections and requests a server takes: who asks, how long it may take, how much it may send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Admission:
    """Limits of a server: bytes of an image, such images in memory, images that wait for the model, connections;
    seconds for a request's headers, its body, its answer, the whole of a connection, and what comes after an answer."""

    max_bytes: int = 25_000_000
    max_held: int = 20
    max_waiting: int = 16
    max_connections: int = 256
    header_seconds: float = 10
    body_seconds: float = 30
    answer_seconds: float = 30
    connection_seconds: float = 120
    linger_seconds: float = 5


class RefusedError(Exception):
    """A request is not answered: HTTP status, and the reason in one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    def response(self) -> JSONResponse:
        """Make the answer; who finds the server busy may come back after a second."""
        busy = {"Retry-After": "1"} if self.status == 503 else None
        return JSONResponse({"error": str(self)}, self.status, busy)


class BodyReader:
    """Reads images from requests, in memory."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self._num_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of a request, which counts as held until the block ends. Raises `RefusedError`."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RefusedError(415, "send the image itself as the body, not a form: curl --data-binary @PHOTO URL")
        self._check(int(request.headers.get("content-length", 0)), 0)
        content, image = bytearray(), b""
        try:
            await self._fill(content, request)
            image = bytes(content)
            content.clear()
            yield image
        finally:
            self._num_bytes -= len(content) + len(image)

    async def _fill(self, content: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(self._admission.body_seconds):
                async for chunk in request.stream():
                    self._check(len(content) + len(chunk), len(chunk))
                    self._num_bytes += len(chunk)
                    content += chunk
        except TimeoutError:
            raise RefusedError(408, f"the image did not arrive in {self._admission.body_seconds:g} seconds") from None
        except ClientDisconnect:
            raise RefusedError(400, "the connection was closed") from None

    def _check(self, length: int, more: int) -> None:
        if length > self._admission.max_bytes:
            raise RefusedError(413, f"more than {self._admission.max_bytes / 1e6:g} MB, the most that is taken")
        if self._num_bytes + more > self._admission.max_held * self._admission.max_bytes:
            raise RefusedError(503, "too many images at once; try again")


def is_loopback(host: str | None) -> bool:
    """Tell whether a name or address reaches this machine alone."""
    with suppress(ValueError):
        return ip_address(host or "").is_loopback
    return host == "localhost"


class Doorkeeper:
    """ASGI middleware that refuses what other sites make a browser send: requests for a name that leads to `loopback`
    only by DNS rebinding, and posts from their pages. It reads what a client still sends when it has its answer, for
    closing the connection at once could destroy that."""

    def __init__(self, app: ASGIApp, loopback: bool, linger_seconds: float):
        self._app, self._loopback, self._linger_seconds = app, loopback, linger_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the application do it."""
        headers = Headers(scope=scope)
        unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._linger_seconds):
                        while unread:
                            await received()
                message = {"type": "http.response.body"}
            await send(message)

        problem = self._problem(scope["method"], headers)
        await (RefusedError(403, problem).response() if problem else self._app)(scope, received, sent)

    def _problem(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        try:
            name, origin = urlsplit(f"//{host}").hostname, urlsplit(headers.get("origin", f"//{host}")).netloc
        except ValueError:
            return "Host or Origin: not an address"
        if self._loopback and not is_loopback(name):
            return f"Host {host[:100]!r}: this server answers for localhost alone; see --host"
        foreign = origin != host or headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        return "images may be sent from this server's own page only" if foreign and method == "POST" else None


def protocol_of(admission: Admission) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol close connections that are too many, that send no request, or that never end."""

    class TimedProtocol(H11Protocol):
        @override
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timers = [
                self.loop.call_later(admission.header_seconds, self._end_without_request),
                self.loop.call_later(admission.connection_seconds, transport.abort),
            ]
            if len(self.connections) > admission.max_connections:
                self._say_and_close("503 Service Unavailable", "too many connections; try again")

        @override
        def connection_lost(self, exc: Exception | None) -> None:
            for timer in self._timers:
                timer.cancel()
            super().connection_lost(exc)

        def _end_without_request(self) -> None:
            if self.cycle is None:
                self._say_and_close("408 Request Timeout", "no request arrived")

        def _say_and_close(self, status: str, message: str) -> None:
            body = f'{{"error": "{message}"}}'
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nretry-after: 1\r\nconnection: close"
            )
            self.transport.write(f"HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}".encode())
            self.transport.close()

    return TimedProtocol
