"""A data set from Kaggle, once: downloaded with the user's credentials, or from a zip fetched by hand.

The client's own SDK (`kagglesdk`) asks, not `import kaggle`: that import signs in at once, over a connection without a
time limit, and prints a page of advice where it finds no credentials.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tl_research.data.archive import BadArchiveError, claim, fingerprint, unpack
from tl_research.data.check import IMAGE_SUFFIXES, is_image_name, visible
from tl_research.data.tree import SPLIT_NAMES
from tl_research.errors import InputError
from tl_research.progress import bar

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9_-]*")
SETTINGS = "https://www.kaggle.com/settings/api"
ANSWER_SECONDS = 7.0  # until the first byte, looking up the name and signing in included
CONNECT_SECONDS, STALL_SECONDS = 4.0, 30.0
ATTEMPTS = 3  # each goes on where the one before broke off
CHUNK = 1 << 16  # what the last read held when the connection broke is lost


def fetch(dataset: str, cache: Path, archive: Path | None = None) -> Path:
    """The folder with the unpacked data set `owner/name`; a second call finds it there and asks nobody.

    `archive` is a zip fetched by hand: the folder is then named after it and its content. Otherwise the zip comes from
    Kaggle, an interrupted download is continued, and of several processes one downloads. Raises InputError with what
    is missing, where it would come from, how to fetch it by hand, and what works without it.
    """
    if archive:
        return unpack(archive, cache / "kaggle" / f"{archive.stem}-{fingerprint(archive)[:12]}")
    folder = _folder(dataset, cache)
    if _is_filled(folder):
        return folder
    target = folder.with_name(f".{folder.name}.zip")
    with _explained(dataset, cache), claim(folder.with_name(f".{folder.name}.lock")):
        if not _is_filled(folder) and not target.is_file():
            _download(dataset, _credentials() or _uploaded(), target)
        try:
            unpack(target, folder)
        except BadArchiveError:
            target.unlink(missing_ok=True)  # or every later run would trip over it
            raise
        target.unlink(missing_ok=True)
    return folder


def available(dataset: str, cache: Path, archive: Path | None = None) -> str | None:
    """One line that says what `fetch` would miss, None when it can be tried. Touches neither network nor images."""
    try:
        if archive:
            fingerprint(archive)
        elif not _is_filled(_folder(dataset, cache)) and not _in_colab() and not _credentials():
            raise InputError(_no_credentials())
    except (InputError, OSError) as error:
        if archive:
            return f"data.archive={error}. The zip is at {_page(dataset)}"
        return f"data.dataset={dataset}: {error}. {_otherwise(dataset)}"
    return None


def find_root(folder: Path) -> Path:
    """The shallowest folder with `train/CLASS/` images, or with two or more class folders of images.

    Archives may hold the same tree twice; a deeper one is ignored and logged. Raises InputError where there is none,
    or several side by side.
    """
    found: list[tuple[int, Path]] = []
    waiting, seen = [(0, folder)], []
    while waiting:
        depth, place = waiting.pop(0)
        inner = [path for path in visible(place.iterdir()) if path.is_dir()]
        seen += inner
        parts = _data_folders(inner)
        if parts:
            found.append((depth, place))
        waiting += [(depth + 1, path) for path in inner if path not in parts and path.name.lower() not in SPLIT_NAMES]
    if not found:
        names = ", ".join(f"{path.relative_to(folder)}/" for path in seen[:8]) or "no folders"
        raise InputError(
            f"{folder}: holds no train/CLASS/*.jpg and no two folders CLASS/*.jpg side by side; found {names}. "
            "Put the images in such folders by hand and use data=folder data.root=FOLDER"
        )
    (depth, root), *others = found
    rivals = [path for level, path in others if level == depth]
    if rivals:
        names = " or ".join(f"data.root={path}" for path in (root, *rivals))
        raise InputError(f"{folder}: holds more than one data set; choose with data=folder {names}")
    for _, path in others:
        log.info("%s: another copy of the data set is ignored; %s is used", path, root)
    return root


def _data_folders(inner: list[Path]) -> list[Path]:
    """Those of a folder's folders that make it a data set: its splits where it has `train/`, else its classes."""
    splits = [path for path in inner if path.name.lower() in SPLIT_NAMES]
    for path in splits:
        if SPLIT_NAMES[path.name.lower()] == "train" and any(_has_images(p) for p in path.iterdir() if p.is_dir()):
            return splits
    classes = [path for path in inner if path not in splits and _has_images(path)]
    return classes if len(classes) > 1 else []


def _has_images(folder: Path) -> bool:
    paths = visible(folder.iterdir())
    named = any(path.suffix.lower() in IMAGE_SUFFIXES for path in paths)
    return named or any(
        path.is_file() and is_image_name(path) for path in paths[:20]
    )  # those are opened: a few will do


def _folder(dataset: str, cache: Path) -> Path:
    if not NAME.fullmatch(dataset):
        inside = NAME.search(dataset.partition("/datasets/")[2])
        raise InputError(f"not of the form OWNER/NAME{f'; did you mean {inside[0]}?' if inside else ''}")
    return cache / "kaggle" / dataset


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


# What a failure says


def _page(dataset: str) -> str:
    return "https://www.kaggle.com/datasets" + (f"/{dataset}" if NAME.fullmatch(dataset) else "")


def _otherwise(dataset: str) -> str:
    hot_dog = dataset == "dansbecker/hot-dog-not-hot-dog"
    data = "data=hot_dog" if hot_dog else f"data=kaggle data.dataset={shlex.quote(dataset)}"
    return (
        f"By hand: download the zip from {_page(dataset)}, then python train.py {data} data.archive=/path/archive.zip. "
        "Without Kaggle: python train.py data=hot_dog_demo"
    )


def _no_credentials() -> str:
    return (
        "it is on Kaggle, and there are no Kaggle credentials on this machine: create a token at "
        f"{SETTINGS} and save it as ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_API_TOKEN"
    )


@contextmanager
def _explained(dataset: str, cache: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, InputError) as error:
        words = str(error) if isinstance(error, InputError) else _words(error, cache)
        raise InputError(f"data.dataset={dataset}: {words}. {_otherwise(dataset)}") from None


def _words(error: OSError, cache: Path) -> str:
    """Requests' errors are OSErrors too."""
    import requests

    if isinstance(error, (TimeoutError, requests.Timeout)):
        return "Kaggle does not answer; is the network slow, or is there a proxy to set (HTTPS_PROXY)?"
    if isinstance(error, requests.exceptions.SSLError):
        return "the certificate of Kaggle's server is not trusted here (REQUESTS_CA_BUNDLE names those that are)"
    if isinstance(error, requests.ConnectionError):
        return "no connection to Kaggle; is there a network?"
    if isinstance(error, requests.RequestException):
        return f"what Kaggle answered is not understood ({error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full at {cache}; free some space and run again to go on, or set data.cache=FOLDER"
    return f"no use of {error.filename or cache} ({error.strerror or error}); data.cache=FOLDER chooses another place"


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


# Credentials


@dataclass(frozen=True)
class Credentials:
    """A token, or a name and a key; with neither, those that `kaggle auth login` left are asked for a token."""

    origin: str
    token: str | None = None
    username: str | None = None
    key: str | None = None


def _credentials() -> Credentials | None:
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


def _in_colab() -> bool:
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def _uploaded() -> Credentials:
    """In Google Colab, the kaggle.json that the user picks in the browser; kept for the session."""
    files: dict[str, bytes] = {}
    if _in_colab():
        log.warning("no Kaggle credentials: choose your kaggle.json (from %s)", SETTINGS)
        try:
            files = importlib.import_module("google.colab").files.upload()
        except Exception:  # outside a notebook cell there is no browser to ask
            log.debug("Colab's upload failed", exc_info=True)
    if not files:
        raise InputError(_no_credentials())
    key = _key(next(iter(files.values())), "what was uploaded")
    if len(key) < 2:
        raise InputError(_no_credentials())
    path = _config_folder() / "kaggle.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(key, file)
    return Credentials(str(path), **key)


# The download


def _download(dataset: str, credentials: Credentials, target: Path) -> None:
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
