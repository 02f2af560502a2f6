"""`serve`: a page and an endpoint that answer for photographs."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from tl_research.commands.arguments import RunArgument, folder_beside, open_run
from tl_research.errors import InputError
from tl_research.system.console import show, show_error
from tl_research.system.interruption import raise_if_interrupted


def serve_command(
    run: RunArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1, the default, is reached from this machine alone")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on, 0 for a free one")] = 8000,
    max_mb: Annotated[float, typer.Option(help="Largest file that is taken, in megabytes")] = 25,
    max_megapixels: Annotated[float, typer.Option(help="Largest image that is decoded")] = 64,
) -> None:
    """Serve a run's model until Ctrl-C: a page to drop a photograph on, and JSON for programs (openapi.json says how).
    Nothing that is sent in is kept.

    Example: python -m tl_research serve outputs/2026-01-31/12-00-00-0
    """
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise InputError(f'serve needs {", ".join(missing)}: pip install "tl_research[serve]"')
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port}: should be from 0 to 65535")
    for name, value in (("--max-mb", max_mb), ("--max-megapixels", max_megapixels)):
        if not 0 < value <= 10_000:
            raise InputError(f"{name} {value:g}: should be above 0, and at most 10000")
    from tl_research.backend.start import start_backend
    from tl_research.serving.admission import Admission, is_loopback
    from tl_research.serving.answerer import Answerer
    from tl_research.serving.server import bind, build_server

    opened = open_run(run)
    with bind(host, port) as listener:
        address, bound = listener.getsockname()[:2]
        start_backend()
        answerer = Answerer(opened, folder_beside(run).absolute().name, round(max_megapixels * 1e6))
        if not is_loopback(address):
            show_error(f"--host {host}: whoever reaches this machine may ask the model, there is no password")
            address = socket.gethostname() if address in ("0.0.0.0", "::") else address
        show(f"http://{f'[{address}]' if ':' in address else address}:{bound}/  (Ctrl-C ends it)")
        server = build_server(
            answerer, Admission(max_bytes=round(max_mb * 1e6)), is_loopback(listener.getsockname()[0])
        )
        server.run([listener])
        raise_if_interrupted()
