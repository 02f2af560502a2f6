"""Asking Kaggle: the user's credentials, and a download that goes on where it broke off.

The client's own SDK (`kagglesdk`) asks, not `import kaggle`: that import signs in at once, over a connection without a
time limit, and prints a page of advice where it finds no credentials.
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
ANSWER_SECONDS = 7.0  # until the first byte, looking up the name and signing in included
CONNECT_SECONDS, STALL_SECONDS = 4.0, 30.0
ATTEMPTS = 3  # each goes on where the one before broke off
CHUNK = 1 << 16  # what the last read held when the connection broke is lost


@dataclass(frozen=True)
class Credentials:
    """A token, or a name and a key; with neither, those that `kaggle auth login` left are asked for a token."""

    origin: str
    token: str | None = None
    username: str | None = None
    key: str | None = None


def credentials() -> Credentials | None:
    """From where the client looks, in its order."""
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
    """The name and key in a kaggle.json; it may hold settings and neither of them."""
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
    """Whether this is a Colab notebook, where a key can be uploaded."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def uploaded() -> Credentials:
    """In Google Colab, the kaggle.json that the user picks in the browser; kept for the session."""
    files: dict[str, bytes] = {}
    if in_colab():
        log.warning("no Kaggle credentials: choose your kaggle.json (from %s)", SETTINGS)
        try:
            files = importlib.import_module("google.colab").files.upload()
        except Exception:  # outside a notebook cell there is no browser to ask
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
    """Leaves `target` whole, or `target.part` for another time."""
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
    """A signed-in client whose requests never wait without end."""
    from kagglesdk import KaggleClient, KaggleCredentials

    def bounded(**secrets: str | None) -> Any:
        client = KaggleClient(user_agent="tl_research", **secrets)
        session = client.__enter__().http_client()._session
        send = session.send
        limits = {"timeout": (CONNECT_SECONDS, STALL_SECONDS), "stream": True}
        session.send = lambda request, **options: send(request, **{**options, **limits})
        session.headers["Accept-Encoding"] = "identity"  # or byte counts would mean something else
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
    """Appends what comes before the connection ends; how many bytes there are now, and of how many."""
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
        response, have = _within(ANSWER_SECONDS, lambda: _rest(client, response, have))
    with response, part.open("ab" if have else "wb") as file, bar() as progress:
        _stamp_file(part).write_text(stamp)  # once the bytes of any other version are gone
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


def _rest(client: Any, response: requests.Response, start: int) -> tuple[requests.Response, int]:
    """The same file from byte `start` on, if it is still the same; else from its beginning."""
    response.close()
    request = response.request.copy()  # the last one of the redirects, with what it was signed by
    request.headers["Range"] = f"bytes={start}-"
    request.headers["If-Range"] = response.headers.get("ETag") or response.headers["Last-Modified"]
    answer = client.http_client()._session.send(request)
    answer.raise_for_status()
    partial = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    return answer, start if partial else 0


def _stamp(response: requests.Response) -> str:
    """Which version of the file this is, empty where the server does not say or cannot resume."""
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
    """`call()`, or TimeoutError: name look-ups have no time limit, and a socket's starts anew with every byte."""
    box: Future[Any] = Future()

    def run() -> None:
        try:
            box.set_result(call())
        except BaseException as error:
            box.set_exception(error)

    Thread(target=run, daemon=True).start()
    return box.result(seconds)


def no_credentials() -> str:
    """What to say where there are none."""
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
