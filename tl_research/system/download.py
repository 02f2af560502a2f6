"""Downloads over HTTP, with resume and a time limit: the only place that opens a connection."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from rich.progress import DownloadColumn, TransferSpeedColumn

from tl_research.errors import InputError
from tl_research.system.locks import locked
from tl_research.system.progress import bar

CHUNK = 1 << 18


def download(url: str, target: Path, *, timeout: float = 4.0) -> Path:
    """Download `url` to `target`, which appears whole or not at all; returns `target`.

    An interrupted download stays in `<target>.part` and is resumed next time if the server's file is still the same.
    Proxies come from the environment; of several processes one downloads and the others wait for it.

    Args:
        url: http or https.
        target: the file to create.
        timeout: seconds to wait for an answer.

    Raises:
        InputError: with the URL and the reason in plain words.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InputError(f"{url} cannot be downloaded: give an address that begins with http:// or https://")
    before = _mark(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(target.name + ".part"), f"downloads {target.name}") as part, _tidied(part):
            if _mark(target) == before:  # else another process finished it while we waited
                _fetch(url, part, timeout)
                Path(part.name).replace(target)
    except (OSError, http.client.HTTPException, InputError) as error:
        raise InputError(f"{url} cannot be downloaded: {_words(error, timeout)}") from None
    return target


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@contextmanager
def _tidied(part: BinaryIO) -> Iterator[None]:
    """Remove an empty `part` afterwards, and the tag of one that is gone."""
    path = Path(part.name)
    try:
        yield
    finally:
        part.flush()
        if path.exists() and path.stat().st_size == 0:
            path.unlink()
        if not path.exists():
            _tag_of(path).unlink(missing_ok=True)


def _fetch(url: str, part: BinaryIO, timeout: float) -> None:
    """Append the missing bytes to `part`."""
    tag = _tag_of(Path(part.name))
    known = tag.read_text() if tag.is_file() else ""
    start = os.fstat(part.fileno()).st_size if known else 0
    headers = {"Range": f"bytes={start}-", "If-Range": known} if start else {}
    try:
        response = _open(url, headers, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        start = 0  # `part` is longer than the server's file: begin again
        response = _open(url, {}, timeout)
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        part.truncate(start)
        # A strong ETag or a date, by which a later request checks that the file has not changed.
        etag = response.headers.get("ETag", "")
        tag.write_text(etag if etag.startswith('"') else response.headers.get("Last-Modified", ""))
        _receive(response, part, start)


def _tag_of(part: Path) -> Path:
    """The file beside `part` that holds the server's tag of this version of the file."""
    return part.with_name(part.name + ".tag")


def _receive(response: http.client.HTTPResponse, part: BinaryIO, start: int) -> None:
    if response.headers.get_content_type() == "text/html":
        raise InputError("the answer is a web page, not the file (does this network want a login?)")
    rest = response.headers.get("Content-Length")
    total = start + int(rest) if rest else None
    free = shutil.disk_usage(Path(part.name).parent).free
    if total and total - start > free:
        raise InputError(f"it has {total:,} bytes and {Path(part.name).parent} has only {free:,} free")
    done = start
    with bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(Path(part.name).stem, total=total, completed=start)
        while chunk := response.read1(CHUNK):
            part.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)
    part.flush()
    if total and done != total:
        raise InputError(f"the connection broke off after {done:,} of {total:,} bytes. Run again to go on from there")


def _open(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    """Open a connection within about `timeout`. In a thread, because looking up a name has no time limit of its own."""
    opener = urllib.request.OpenerDirector()
    # Not build_opener, which would also follow a redirect to ftp.
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "tl_research", **headers})
    done: dict[str, Any] = {}
    late = threading.Event()

    def run() -> None:
        try:
            done["response"] = opener.open(request, timeout=timeout)
            if late.is_set():
                done["response"].close()
        except Exception as error:
            done["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout + 0.5)
    if thread.is_alive():
        late.set()
        raise TimeoutError
    if "error" in done:
        raise done["error"]
    return done["response"]


def _words(error: BaseException, timeout: float) -> str:
    """Put an error into words that need no knowledge of sockets."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _words(error.reason, timeout)
    words = {
        socket.gaierror: "the server's name is not found (no network, or no such host)",
        TimeoutError: f"no answer within {timeout:g} seconds",
        ConnectionRefusedError: "the connection is refused",
        ConnectionError: "the connection broke off. Run again to go on",
        ssl.SSLCertVerificationError: "the server's certificate is not trusted",
        http.client.HTTPException: "the answer is not HTTP",
    }
    known = next((text for kind, text in words.items() if isinstance(error, kind)), None)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return known or re.sub(r"\s+", " ", reason)
