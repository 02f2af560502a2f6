"""Kaggle's real client against a server on this machine: the files that arrive, requests, and error messages."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tl_research.data.kaggle import kaggle, kaggle_client
from tl_research.errors import InputError

NAME = "dansbecker/hot-dog-not-hot-dog"
API = "/v1/datasets.DatasetApiService/"
METADATA, DOWNLOAD = API + "GetDatasetMetadata", API + "DownloadDataset"
PICTURE = random.Random(0).randbytes(600_000)
FILES = {f"seefood/{split}/{name}/1.jpg": PICTURE for split in ("train", "test") for name in ("hot_dog", "not_hot_dog")}
MIB = 1 << 20  # the client writes a MiB at a time
REDIRECT = """
import os
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = os.environ["LOCAL_KAGGLE"]
"""


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Server(ThreadingHTTPServer):
    """Kaggle as its client knows it: metadata, then a redirect to a storage host that serves ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = zipped(FILES)
        self.headers = {"ETag": '"one"', "Accept-Ranges": "bytes"}
        self.status = 200  # of the API's answer
        self.ends: list[int] = []  # the byte at which each next download breaks off
        self.stalls = False  # a download that breaks off keeps its connection open
        self.page = False  # the API answers with a web page
        self.stalled, self.hung_up = threading.Event(), threading.Event()
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]

    def header(self, path: str, name: str) -> list[str | None]:
        return [headers.get(name) for requested, headers, _ in self.requests if requested == path]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        if self.server.page:
            self.answer(200, {"Content-Type": "text/html"}, b"<html>")
        elif self.server.status != 200:
            message = {"code": self.server.status, "message": "Permission 'datasets.get' was denied"}
            self.answer(self.server.status, {"Content-Type": "application/json"}, json.dumps(message).encode())
        elif self.path == METADATA:
            self.answer(200, {"Content-Type": "application/json"}, b'{"info": {}}')
        else:  # another host, as on Kaggle
            self.answer(302, {"Location": f"http://localhost:{self.server.server_port}/storage"})

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers), {}))
        content, start, wanted = self.server.content, 0, self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == self.server.headers["ETag"]:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.answer(206 if start else 200, {"Content-Length": str(len(content) - start), **self.server.headers})
        end = self.server.ends.pop(0) if self.server.ends else None
        self.close_connection = True
        with suppress(ConnectionError):  # the client hangs up once it knows that it needs the rest only
            self.wfile.write(content[start:end])
            if end and self.server.stalls:
                self.server.stalled.set()
                self.rfile.read(1)
        self.server.hung_up.set()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("LOCAL_KAGGLE", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, in which the client asks this machine in place of Kaggle, and reaches no other."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "VERBOSE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    home = tmp_path / "home"
    (home / "python").mkdir(parents=True)
    (home / "python" / "sitecustomize.py").write_text(REDIRECT)
    paths = [str(home / "python"), str(Path(kaggle.__file__).parents[3])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HOME", str(home))
    closed = "http://127.0.0.1:1"
    for name, value in {"LOCAL_KAGGLE": closed, "HTTPS_PROXY": closed, "NO_PROXY": "127.0.0.1,localhost"}.items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def failure(cache: Path, name: str = NAME) -> str:
    """The message of a failed `fetch`: one line with the ways out; nothing under a final name."""
    with pytest.raises(InputError) as caught:
        kaggle.fetch(name, cache)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"data.dataset={name}: ")
    assert "python train.py data=hot_dog_demo" in message
    assert "data.archive=/path/archive.zip" in message
    assert "https://www.kaggle.com/datasets" in message
    assert not (cache / "kaggle" / name).exists()
    return message


@pytest.fixture
def part(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The message of a download that stands still after its first MiB, which stays in the cache."""
    server.stalls, server.ends = True, [MIB + 500_000]
    with monkeypatch.context() as patched:
        patched.setattr(kaggle_client, "STALL_SECONDS", 1.5)
        message = failure(cache)
    server.stalls = False
    server.requests.clear()
    return message


def test_a_data_set_arrives_once_and_needs_no_account(
    server: Server, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERBOSE", "1")  # with it the client would print the zip
    assert kaggle.available(NAME, cache) is None
    assert server.requests == []
    folder = kaggle.fetch(NAME, cache)
    assert folder == cache / "kaggle" / NAME
    assert tree(cache) == {f"kaggle/{NAME}/{name}": content for name, content in FILES.items()}
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    assert server.paths() == [METADATA, DOWNLOAD, "/storage"]
    assert server.header(DOWNLOAD, "Authorization") == [None]
    names = server.requests[1][2]
    assert (names["ownerSlug"], names["datasetSlug"]) == tuple(NAME.split("/"))
    monkeypatch.setattr(kaggle, "claim", None)  # nothing is written the second time: the cache may be read-only
    assert kaggle.fetch(NAME, cache) == folder
    assert len(server.requests) == 3
    assert capfd.readouterr() == ("", "")


def test_credentials_go_to_kaggle_and_to_nobody_else(
    server: Server, cache: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = home / ".kaggle" / "kaggle.json"
    path.parent.mkdir()
    path.write_text('{"username": "me", "key": "secret"}')
    path.chmod(0o644)
    kaggle.fetch(NAME, cache)
    expected = "Basic " + base64.b64encode(b"me:secret").decode()
    assert server.header(METADATA, "Authorization") == server.header(DOWNLOAD, "Authorization") == [expected]
    assert server.header("/storage", "Authorization") == [None]
    (message,) = caplog.messages  # others can read the key
    assert f"chmod 600 {path}" in message


def test_the_client_continues_a_download_that_breaks_off(server: Server, cache: Path) -> None:
    server.ends = [MIB + 500_000]
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert server.header("/storage", "Range")[0] is None
    assert server.header("/storage", "If-Range") == [None, '"one"']


@pytest.mark.parametrize(
    "change",
    [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in ({"ETag": '"two"'}, {"Accept-Ranges": "none"}))],
)
def test_the_next_run_continues_with_the_same_version_only(
    change: dict[str, str], server: Server, cache: Path, part: str
) -> None:
    assert f"broke off after {MIB:,} of {len(server.content):,} bytes; run again to go on" in part
    files = {name: bytes(reversed(content)) for name, content in FILES.items()} if change else FILES
    server.content = zipped(files)
    server.headers |= change
    assert tree(kaggle.fetch(NAME, cache)) == files
    assert server.header("/storage", "Range") == ([None] if change else [None, f"bytes={MIB}-"])
    assert not list(cache.rglob(".*"))


@pytest.mark.usefixtures("part")
def test_a_part_that_the_client_takes_for_complete(server: Server, cache: Path) -> None:
    """The data set has become smaller than what arrived of its former version, and has an old date."""
    server.content = zipped({"train/a/1.jpg": b"1", "train/b/1.jpg": b"2"})
    server.headers |= {"ETag": '"two"', "Last-Modified": "Mon, 06 Jan 2020 10:00:00 GMT"}
    assert "run again to go on" in failure(cache)
    assert len(tree(kaggle.fetch(NAME, cache))) == 2


def test_a_zip_that_was_not_unpacked_is_not_fetched_again(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies where version 0.1 left it, whose unfinished parts go when they are of no use any more."""
    usage = shutil.disk_usage(cache.parent)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(server.content) + 10))
        assert "unpacking needs" in failure(cache)
    owner, name = NAME.split("/")
    assert (cache / "kaggle" / owner / f".{name}.zip").read_bytes() == server.content
    (cache / "kaggle" / owner / f".{name}.zip.part").touch()
    server.requests.clear()
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert server.requests == []
    assert not list(cache.rglob(".*"))


@pytest.mark.parametrize("content", [b"PK no zip", zipped(FILES)[:-400]])
def test_a_damaged_zip_is_thrown_away(content: bytes, server: Server, cache: Path) -> None:
    complete, server.content = server.content, content
    assert "not a zip" in failure(cache)
    assert tree(cache) == {}
    server.content = complete
    assert tree(kaggle.fetch(NAME, cache)) == FILES


@pytest.mark.parametrize("page", [True, False])
def test_a_web_page_in_place_of_an_answer_or_the_zip(page: bool, server: Server, cache: Path) -> None:
    server.page, server.content = page, b"\n<!doctype html>"
    assert "is a web page" in failure(cache)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "asks for an account, or does not accept the credentials"),
        (403, "accept the licence or the rules"),
        (404, "no such data set on Kaggle"),
        (429, "too many requests"),
        (503, "try again later"),
    ],
)
def test_refusals_of_kaggle(status: int, words: str, server: Server, cache: Path) -> None:
    server.status = status
    message = failure(cache)
    assert words in message
    assert f"(HTTP {str(status).replace('503', '5xx')})" in message
    assert ("~/.kaggle/kaggle.json" in message and "KAGGLE_API_TOKEN" in message) == (status in (401, 403))
    assert "python train.py data=hot_dog data.archive=" in message
    assert len(server.requests) == 1
    assert "python train.py data=kaggle data.dataset=a/b data.archive=" in failure(cache, "a/b")


def test_no_network(cache: Path) -> None:
    assert "no connection to Kaggle" in failure(cache)


def test_a_server_that_never_answers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle_client, "ANSWER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("LOCAL_KAGGLE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "Kaggle does not answer" in failure(cache)


BROKEN = """
import sys; path = sys.argv[5] + '/hot-dog-not-hot-dog.zip'; open(path, 'w').write('12345')
open(path + '.kaggle-partial', 'w').write('{"size": 9}'); print('Connection broken')
"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('HTTPSConnectionPool: Max retries exceeded (Caused by SSLError(...))')", "is not trusted here"),
        ("print('HTTPSConnectionPool(...): Read timed out.')", "does not answer"),
        ("print('[Errno 28] No space left on device')", "the disk is full"),
        ("print('\\'latin-1\\' codec can\\'t encode character')", "copy it again"),
        ("print('Dataset URL: x\\nOddError: 17\\n\\nIf this is unexpected')", "is not understood (OddError: 17)"),
        ("print('Traceback (most recent call last):\\n  File\\nOddError: 18')", "is not understood (OddError: 18)"),
        ("", "is not understood (nothing)"),
        (BROKEN, "the download broke off after 5 of 9 bytes; run again to go on"),
    ],
)
def test_other_failures_of_the_client(script: str, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle_client, "CLIENT", f"{script}\nexit(1)")  # the real one retries for a minute
    assert words in failure(cache)


def test_a_full_disk(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stalls, server.ends = True, [1000]
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "the download needs 0.00 GB and" in failure(cache)


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data.cache=FOLDER" in failure(tmp_path / "file")


ADDRESS = f"https://www.kaggle.com/datasets/{NAME}/data"


@pytest.mark.parametrize(
    "name", ["", "hot-dog", "a/b/c", "/a", "../x", "a/..", "a/b c", "a/b\n", "https://x/y", ADDRESS]
)
def test_names_that_are_none(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="not of the form OWNER/NAME"):
        kaggle.fetch(name, cache)
    message = kaggle.available(name, cache) or ""
    assert "not of the form OWNER/NAME" in message
    assert (f"did you mean {NAME}?" in message) == (name == ADDRESS)
    assert not cache.exists()


FETCH = (
    "import sys, pathlib; from tl_research.data.kaggle import kaggle\n"
    "print(kaggle.fetch(sys.argv[1], pathlib.Path(sys.argv[2])))\n"
    "assert not {'tensorflow', 'keras', 'kaggle'} & set(sys.modules)"
)


def test_two_at_once_download_once(server: Server, cache: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FETCH, NAME, str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(cache / "kaggle" / NAME)] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert server.paths() == [METADATA, DOWNLOAD, "/storage"]
    assert tree(cache / "kaggle" / NAME) == FILES


def test_the_client_ends_when_the_program_is_killed(server: Server, cache: Path) -> None:
    """Else it would write into the file that the next run continues."""
    server.stalls, server.ends = True, [MIB + 500_000]
    with subprocess.Popen([sys.executable, "-c", FETCH, NAME, str(cache)]) as process:
        assert server.stalled.wait(60)
        assert not server.hung_up.is_set()
        process.kill()
    assert server.hung_up.wait(60)


def test_a_zip_fetched_by_hand(home: Path, cache: Path, server: Server) -> None:
    path = home / "hot dogs.zip"
    path.write_bytes(server.content)
    folder = kaggle.fetch(NAME, cache, Path("~/hot dogs.zip"))
    assert tree(folder) == FILES
    assert folder.parent == cache / "kaggle"
    assert folder.name.startswith("hot dogs-")
    path.touch()
    assert kaggle.fetch(NAME, cache, path) == folder
    assert kaggle.available(NAME, cache, path) is None
    path.write_bytes(zipped({"a/1.jpg": b"1", "b/1.jpg": b"2"}))
    assert tree(kaggle.fetch(NAME, cache, path)) == {"a/1.jpg": b"1", "b/1.jpg": b"2"}
    assert server.requests == []


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_a_zip_that_is_not_there(content: bytes | None, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.zip"
    if content:
        path.write_bytes(content)
    message = kaggle.available(NAME, cache, path) or ""
    assert message.startswith(f"data.archive={path}: ")
    assert f"https://www.kaggle.com/datasets/{NAME}" in message
    with pytest.raises(InputError, match=str(path)):
        kaggle.fetch(NAME, cache, path)
