"""Find the user's Kaggle credentials and download data sets, continuing interrupted downloads.

Uses the SDK (`kagglesdk`), because `import kaggle` signs in at once, without a time limit, and prints a page of advice
if there are no credentials.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shlex
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tl_research.errors import InputError
from tl_research.system.progress import bar

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

SETTINGS = "https://www.kaggle.com/settings/api"
ANSWER_SECONDS = 7.0  # until the first byte, including name lookup and signing in
CONNECT_SECONDS, STALL_SECONDS = 4.0, 30.0
ATTEMPTS = 3  # each continues where the last one stopped
CHUNK = 1 << 16  # at most this is lost when a connection breaks


@dataclass(frozen=True)
class Credentials:
    """A token, or a name and a key; with neither, `kaggle auth login`'s file provides a token."""

    origin: str
    token: str | None = None
    username: str | None = None
    key: str | None = None


def credentials() -> Credentials | None:
    """Find credentials where Kaggle's client looks for them, in its order."""
    from kagglesdk import get_access_token_from_env  # type: ignore[import-untyped]

    home = Path.home() / ".kaggle"
    token, origin = get_access_token_from_env()
    if token:
        if origin == "access_token":
            origin = str(home / origin)
            _warn_if_shared(*home.glob("access_token*"))
        return Credentials(origin, token=token)
    values, path = _environment(), _config_folder() / "kaggle.json"
    if len(values) == 2:
        return Credentials("KAGGLE_USERNAME and KAGGLE_KEY", **values)
    values = {**(_key(path.read_bytes(), str(path)) if path.is_file() else {}), **values}
    if len(values) == 2:
        _warn_if_shared(path)
        return Credentials(str(path), **values)
    if (home / "credentials.json").is_file():
        _warn_if_shared(home / "credentials.json")
        return Credentials(str(home / "credentials.json"))
    return None


def _environment() -> dict[str, str]:
    names = {"username": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}
    return {field: os.environ[name] for field, name in names.items() if os.environ.get(name)}


def _config_folder() -> Path:
    if os.environ.get("KAGGLE_CONFIG_DIR"):
        return Path(os.environ["KAGGLE_CONFIG_DIR"])
    home = Path.home() / ".kaggle"
    return home if home.exists() else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"


def _key(content: bytes, name: str) -> dict[str, str]:
    """Read name and key from a kaggle.json, which may have settings only."""
    try:
        values = json.loads(content)
        return {field: str(values[field]) for field in ("username", "key") if values.get(field)}
    except (ValueError, AttributeError):
        raise InputError(f"{name} is not a kaggle.json; create a token at {SETTINGS}") from None


def _warn_if_shared(*paths: Path) -> None:
    for path in paths:
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("others on this machine can read your Kaggle key: chmod 600 %s", shlex.quote(str(path)))


def in_colab() -> bool:
    """Tell whether this is a Colab notebook, where a key can be uploaded."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def uploaded() -> Credentials:
    """Let the user of Google Colab upload a kaggle.json, and save it for the session."""
    files: dict[str, bytes] = {}
    if in_colab():
        log.warning("no Kaggle credentials: choose your kaggle.json (from %s)", SETTINGS)
        try:
            files = importlib.import_module("google.colab").files.upload()
        except Exception:  # outside a notebook cell there is no browser
            log.debug("Colab's upload failed", exc_info=True)
    if not files:
        raise InputError(no_credentials())
    key = _key(next(iter(files.values())), "what was uploaded")
    if len(key) < 2:
        raise InputError(no_credentials())
    path = _config_folder() / "kaggle.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(key, file)
    return Credentials(str(path), **key)


def download(dataset: str, credentials: Credentials, target: Path) -> None:
    """Download to `target`; if interrupted, keep `target.part` to continue from."""
    import requests

    part = target.with_name(f"{target.name}.part")
    try:
        with _within(ANSWER_SECONDS, lambda: _client(credentials)) as client:
            for _ in range(ATTEMPTS):
                have, total = _receive(client, dataset, part)
                if total is None or have == total:
                    break
            else:
                raise InputError(f"the download broke off after {have:,} of {total:,} bytes; run again to go on")
    except requests.HTTPError as error:
        raise InputError(_refusal(error, credentials.origin)) from None
    except UnicodeEncodeError:
        raise InputError(f"no key has such characters as that in {credentials.origin}; copy it again") from None
    part.replace(target)
    _stamp_file(part).unlink(missing_ok=True)


def _client(credentials: Credentials) -> Any:
    """Sign in and return a client whose requests have time limits."""
    from kagglesdk import KaggleClient, KaggleCredentials

    def bounded(**secrets: str | None) -> Any:
        client = KaggleClient(user_agent="tl_research", **secrets)
        session = client.__enter__().http_client()._session
        send = session.send
        limits = {"timeout": (CONNECT_SECONDS, STALL_SECONDS), "stream": True}
        session.send = lambda request, **options: send(request, **{**options, **limits})
        session.headers["Accept-Encoding"] = "identity"  # or byte counts would be those of compressed data
        return client

    if credentials.token or credentials.key:
        return bounded(api_token=credentials.token, username=credentials.username, password=credentials.key)
    with bounded() as client:
        saved = KaggleCredentials.load(client)
        token = saved and saved.get_access_token()
    if not token:
        raise InputError("the login in ~/.kaggle/credentials.json is not usable; run kaggle auth login")
    return bounded(api_token=token)


def _receive(client: Any, dataset: str, part: Path) -> tuple[int, int | None]:
    """Append to `part` until the connection ends; return the bytes received so far and the total."""
    import requests

    response = _within(ANSWER_SECONDS, lambda: _ask(client, dataset))
    stamp, length = _stamp(response), response.headers.get("Content-Length")
    total = int(length) if length else None
    have = part.stat().st_size if part.is_file() and stamp and stamp == _stamped(part) else 0
    if total is None or have > total:
        have = 0
    if have and have == total:
        response.close()
        return have, total
    if have:
        response, have = _within(ANSWER_SECONDS, lambda: request_rest(client, response, have))
    with response, part.open("ab" if have else "wb") as file, bar() as progress:
        _stamp_file(part).write_text(stamp)  # only after bytes of another version were truncated
        _demand_space(part, (total or 0) - have)
        task = progress.add_task(f"downloading {dataset} (MB)", total=total and total >> 20, completed=have >> 20)
        try:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress.update(task, completed=have >> 20)
        except (requests.exceptions.ChunkedEncodingError, requests.ConnectionError):
            if total is None:
                raise InputError("the download broke off; run again") from None
    return have, total


def _ask(client: Any, dataset: str) -> requests.Response:
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest  # type: ignore[import-untyped]

    request = ApiDownloadDatasetRequest()
    request.owner_slug, request.dataset_slug = dataset.split("/")
    response = client.datasets.dataset_api_client.download_dataset(request)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        response.close()
        raise InputError("the answer is a web page, not the data set; does this network want a login?")
    return response


def request_rest(client: Any, response: requests.Response, start: int) -> tuple[requests.Response, int]:
    """Request the file from byte `start` on if it is unchanged, else from its beginning."""
    response.close()
    request = response.request.copy()  # the last of the redirects, with its signature
    request.headers["Range"] = f"bytes={start}-"
    request.headers["If-Range"] = response.headers.get("ETag") or response.headers["Last-Modified"]
    answer = client.http_client()._session.send(request)
    answer.raise_for_status()
    partial = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    return answer, start if partial else 0


def _stamp(response: requests.Response) -> str:
    """Identify the file's version; empty if the server does not state it or cannot resume."""
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if not version or version.startswith("W/") or response.headers.get("Accept-Ranges") != "bytes":
        return ""
    return f"{version} {response.headers.get('Content-Length')}"


def _stamp_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _stamped(part: Path) -> str:
    return _stamp_file(part).read_text() if _stamp_file(part).is_file() else ""


def _demand_space(part: Path, need: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if need > free:
        raise InputError(f"the download needs {need / 1e9:.2f} GB and {part.parent} has {free / 1e9:.2f} GB free")


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Run `call()` or raise TimeoutError: name lookups have no time limit, and a socket's restarts with every byte."""
    box: Future[Any] = Future()

    def run() -> None:
        try:
            box.set_result(call())
        except BaseException as error:
            box.set_exception(error)

    Thread(target=run, daemon=True).start()
    return box.result(seconds)


def no_credentials() -> str:
    """Return the message for missing credentials."""
    return (
        "it is on Kaggle, and there are no Kaggle credentials on this machine: create a token at "
        f"{SETTINGS} and save it as ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN"
    )


def _refusal(error: requests.HTTPError, origin: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    known = {
        401: f"Kaggle does not accept the credentials in {origin}; create a new token at {SETTINGS}",
        403: "Kaggle does not let this account download it; open its page, sign in and accept the licence or the rules "
        "(a private data set is refused in the same way)",
        404: "there is no such data set on Kaggle; check the name on its page",
        429: "Kaggle has had too many requests from this account; wait a while",
    }
    return f"{known.get(status, 'Kaggle cannot answer now; try again later')} (HTTP {status})"
