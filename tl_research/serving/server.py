"""Serve a run's model: a page for people, JSON for programs. Nothing that is sent in is kept."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import Annotated, Any, Protocol, TypeVar

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tl_research import __version__
from tl_research.data.decode import UndecodableError
from tl_research.errors import InputError
from tl_research.serving.admission import Admission, BodyReader, Doorkeeper, RefusedError, protocol_of
from tl_research.serving.answerer import Answer, ModelFacts

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("cache-control", "no-store"),
    ("connection", "close"),  # one request each, so that the limits of a connection are those of a request
]
GRACE = 2
"""Seconds that requests under way have at the end."""

T = TypeVar("T")


class Answering(Protocol):
    """What a server asks, see `Answerer`."""

    class_names: list[str]

    def facts(self, max_bytes: int) -> ModelFacts:
        """Say what the model is."""

    def answer(self, content: bytes, coverage: float) -> Answer:
        """Classify an image."""

    def explain(self, content: bytes, class_name: str | None) -> bytes:
        """Draw a map."""


class Problem(BaseModel):
    """Why a request is not answered."""

    error: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body did not arrive"},
    403: {"model": Problem, "description": "Sent by the page of another site"},
    408: {"model": Problem, "description": "The body arrived too slowly"},
    413: {"model": Problem, "description": "Too many bytes"},
    415: {"model": Problem, "description": "A form, not an image"},
    422: {"model": Problem, "description": "No image that can be read, or a parameter that is wrong"},
    503: {"model": Problem, "description": "Too many requests at once: Retry-After says when to come back"},
}
BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


class Worker:
    """One thread that answers, since the engine uses all cores for an image, and a queue in which few may wait."""

    def __init__(self, admission: Admission):
        self._thread = ThreadPoolExecutor(1, "answers")
        self._slots = BoundedSemaphore(admission.max_waiting)
        self._seconds = admission.answer_seconds

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread. Raises `RefusedError`."""
        if not self._slots.acquire(blocking=False):
            raise RefusedError(503, "too many images are waiting; try again")
        future = self._thread.submit(function, *arguments)
        future.add_done_callback(lambda _: self._slots.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            raise RefusedError(503, f"no answer within {self._seconds:g} seconds; try again") from None
        except UndecodableError as error:
            raise RefusedError(422, f"cannot be read: {error}") from None
        except InputError as error:
            raise RefusedError(500, str(error)) from None


def build_app(answerer: Answering, admission: Admission) -> FastAPI:
    """Build the application: the page, `GET /model`, `POST /predict`, `POST /explain`, `openapi.json`."""
    app = FastAPI(title="tl_research serve", version=__version__, docs_url=None, redoc_url=None)
    body, worker = BodyReader(admission), Worker(admission)

    @app.get("/model", summary="The model that answers")
    async def model() -> ModelFacts:
        return answerer.facts(admission.max_bytes)

    @app.post("/predict", summary="Classify an image, the body of the request", responses=PROBLEMS, openapi_extra=BODY)
    async def predict(request: Request, coverage: Annotated[float, Query(gt=0, lt=1)] = 0.9) -> Answer:
        async with body.read(request) as image:
            return await worker.run(answerer.answer, image, coverage)

    @app.post(
        "/explain",
        summary="Draw where an image speaks for a class, by default the predicted one",
        response_class=Response,
        responses={**PROBLEMS, 200: {"content": {"image/png": {}}}},
        openapi_extra=BODY,
    )
    async def explain(request: Request, class_name: str | None = None) -> Response:
        if class_name not in (None, *answerer.class_names):
            raise RefusedError(422, f"class_name: {class_name!r:.100} is no class of this model")
        async with body.read(request) as image:
            return Response(await worker.run(answerer.explain, image, class_name), media_type="image/png")

    for path, (name, kind) in FILES.items():
        app.get(path, include_in_schema=False)(_sends(PAGE / name, kind))
    _add_problems(app)
    return app


def _sends(path: Path, kind: str) -> Callable[[], Response]:
    """Make a handler without parameters, which FastAPI would fill from the query."""
    content = path.read_bytes()
    return lambda: Response(content, media_type=kind)


def _add_problems(app: FastAPI) -> None:
    """Answer every problem as JSON with one key, `error`."""

    @app.exception_handler(RefusedError)
    async def refuse(_: Request, error: RefusedError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def name_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return RefusedError(422, f"{first['loc'][-1]}: {first['msg']}").response()

    @app.exception_handler(HTTPException)
    async def say_status(_: Request, error: HTTPException) -> Response:
        return RefusedError(error.status_code, error.detail).response()

    @app.exception_handler(Exception)
    async def report(_: Request, error: Exception) -> Response:
        log.error("an error of ours; the server goes on", exc_info=error)
        return RefusedError(500, "an error of the server's own; its terminal shows it").response()


def bind(host: str, port: int) -> socket.socket:
    """Open the socket to listen on. Raises `InputError` if that is impossible."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        if isinstance(error, UnicodeError | socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            here = "127.0.0.1 is this machine alone, 0.0.0.0 all of its addresses"
            raise InputError(f"--host {host}: no address of this machine; {here}") from None
        reason = os.strerror(error.errno or 0).lower()
        raise InputError(f"--port {port} at {host}: {reason}; give another port, or 0 for a free one") from None


def build_server(answerer: Answering, admission: Admission, loopback: bool) -> uvicorn.Server:
    """Build the server; `run([socket])` serves until Ctrl-C. On `loopback` it answers for this machine alone."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would print a line for each bad request
    config = uvicorn.Config(
        Doorkeeper(build_app(answerer, admission), loopback, admission.linger_seconds),
        http=protocol_of(admission),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=HEADERS,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(config)
