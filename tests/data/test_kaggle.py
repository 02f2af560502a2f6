"""Test the real Kaggle client against a local server: downloads, requests, and error messages."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tl_research.data.kaggle import kaggle, kaggle_client
from tl_research.errors import InputError

NAME = "dansbecker/hot-dog-not-hot-dog"
ASK = "/api/v1/datasets.DatasetApiService/DownloadDataset"
REFRESH = "/api/v1/users.AccountService/GenerateAccessToken"
PICTURE = random.Random(0).randbytes(60_000)
FILES = {f"seefood/{split}/{name}/1.jpg": PICTURE for split in ("train", "test") for name in ("hot_dog", "not_hot_dog")}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Server(ThreadingHTTPServer):
    """Simulate Kaggle: the API redirects to a storage host, which supports ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = zipped(FILES)
        self.headers = {"ETag": '"one"', "Accept-Ranges": "bytes"}
        self.status = 200  # of the API
        self.ends: list[int | None] = []  # where each response breaks off, None for complete
        self.stalls = False  # a broken response keeps its connection open
        self.over = threading.Event()
        self.delay = 0.0
        self.prefix = b""  # of the body
        self.direct = False  # the API sends the file itself
        self.asked: list[tuple[str, dict[str, str], bytes]] = []

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def of(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers, _ in self.asked if asked == path]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), body))
        if self.path == REFRESH:
            self.send({"token": "fresh", "expiresIn": 3600, "userName": "me"})
        elif self.server.status != 200:
            self.send({"code": self.server.status, "message": "Permission 'datasets.get' was denied"})
        elif self.server.direct:
            self.file()
        else:
            self.send_response(302)  # another host, as on Kaggle
            self.send_header("Location", f"http://localhost:{self.server.server_port}/storage")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers), b""))
        self.file()

    def send(self, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def file(self) -> None:
        """Send the content or its requested range; the range of a complete file is empty."""
        time.sleep(self.server.delay)
        content, start, wanted = self.server.content, 0, self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == self.server.headers.get("ETag"):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {"Content-Length": str(len(content) - start), **self.server.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = self.server.ends.pop(0) if self.server.ends else None
        self.close_connection = True
        try:
            self.wfile.write(self.server.prefix + content[start:end])
            if end and self.server.stalls:
                self.server.over.wait(20)
        except ConnectionError:
            pass  # the client disconnects when it only needs a range

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield server
        server.over.set()
        server.shutdown()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the server as the client's test environment, on a free port."""
    from kagglesdk import kaggle_env  # type: ignore[import-untyped]

    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, url)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a home folder without credentials."""
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kaggle_client, "CHUNK", 1000)  # so that downloads break off at exact positions
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")


def failure(cache: Path, name: str = NAME) -> str:
    """Return the message of a failed `fetch`: one line with alternatives; assert that nothing has its final name."""
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


def basic(name: str, key: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()


@pytest.mark.usefixtures("signed_in")
def test_a_data_set_is_downloaded_once(
    server: Server, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kaggle.fetch(NAME, cache)
    assert folder == cache / "kaggle" / NAME
    assert tree(cache) == {f"kaggle/{NAME}/{name}": content for name, content in FILES.items()}
    assert server.paths() == [ASK, "/storage"]
    assert server.of("/storage")[0]["Accept-Encoding"] == "identity"  # or bytes would be those of compressed data
    asked = json.loads(server.asked[0][2])
    assert (asked["ownerSlug"], asked["datasetSlug"]) == tuple(NAME.split("/"))
    monkeypatch.setattr(kaggle, "claim", None)  # nothing is written: the cache may be read-only
    assert kaggle.fetch(NAME, cache) == folder
    assert len(server.asked) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("signed_in")
def test_the_key_is_sent_to_kaggle_only(server: Server, cache: Path) -> None:
    server.ends = [100_000]
    kaggle.fetch(NAME, cache)
    assert [headers.get("Authorization") for headers in server.of(ASK)] == [basic("me", "secret")] * 2
    assert [headers.get("Authorization") for headers in server.of("/storage")] == [None] * 3


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("direct", [False, True])
def test_an_interrupted_download_is_continued(direct: bool, server: Server, cache: Path) -> None:
    server.direct = direct
    server.ends = [100_000]
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    resumed = [headers for _, headers, _ in server.asked if "Range" in headers]
    assert [(headers["Range"], headers["If-Range"]) for headers in resumed] == [("bytes=100000-", '"one"')]


@pytest.mark.usefixtures("signed_in")
def test_the_next_run_continues_the_download(server: Server, cache: Path) -> None:
    server.ends = [50_000, None, 60_000, None, 70_000]
    message = failure(cache)
    assert f"broke off after 70,000 of {len(server.content):,} bytes; run again to go on" in message
    server.asked.clear()
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert [headers.get("Range") for headers in server.of("/storage")] == [None, "bytes=70000-"]
    assert not list(cache.rglob(".*"))


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("headers", [{"ETag": 'W/"one"'}, {"ETag": ""}, {"Accept-Ranges": ""}])
def test_without_a_version_nothing_is_resumed(headers: dict[str, str], server: Server, cache: Path) -> None:
    server.headers |= headers
    server.ends = [50_000]
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert not any("Range" in headers for _, headers, _ in server.asked)


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("length", ["all", "more"])
def test_a_download_killed_at_its_end_is_completed(length: str, server: Server, cache: Path) -> None:
    server.ends = [50_000, None, 60_000, None, 70_000]
    failure(cache)
    (part,) = cache.rglob("*.part")
    part.write_bytes(server.content + (b"x" if length == "more" else b""))
    server.asked.clear()
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert not any("Range" in headers for _, headers, _ in server.asked)


@pytest.mark.usefixtures("signed_in")
def test_a_complete_zip_is_not_downloaded_again(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(server.content) + 10))
        assert "unpacking needs" in failure(cache)
    server.asked.clear()
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert server.asked == []


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("change", [{"ETag": '"two"'}, {"ETag": 'W/"one"'}, {"Accept-Ranges": "none"}])
def test_bytes_of_another_version_are_never_joined(change: dict[str, str], server: Server, cache: Path) -> None:
    server.ends = [50_000, None, 50_001, None, 50_002]
    failure(cache)
    server.content = zipped({name: bytes(reversed(content)) for name, content in FILES.items()})
    server.headers |= change
    server.asked.clear()
    assert set(tree(kaggle.fetch(NAME, cache)).values()) == {bytes(reversed(PICTURE))}
    assert server.paths() == [ASK, "/storage"]


@pytest.mark.usefixtures("signed_in")
def test_a_server_that_ignores_ranges_sends_the_whole_file(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ends = [50_000]
    partial = kaggle_client.request_rest
    monkeypatch.setattr(
        kaggle_client, "request_rest", lambda *args: (server.headers.update(ETag='"new"'), partial(*args))[1]
    )  # changed between the two requests: If-Range does not match
    assert tree(kaggle.fetch(NAME, cache)) == FILES
    assert len(server.of("/storage")) == 3


@pytest.mark.usefixtures("signed_in")
def test_a_download_without_a_length_works(server: Server, cache: Path) -> None:
    server.headers = {"Content-Length": ""}
    assert tree(kaggle.fetch(NAME, cache)) == FILES


@pytest.mark.usefixtures("signed_in")
def test_a_broken_stream_without_a_length_is_reported(server: Server, cache: Path) -> None:
    server.headers = {"Content-Length": "", "Transfer-Encoding": "chunked"}
    server.prefix, server.ends = b"FFFFF\r\n", [50_000]
    assert "the download broke off; run again" in failure(cache)


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize("content", [b"<html>", zipped(FILES)[:-400]])
def test_a_download_that_is_no_zip_is_deleted(content: bytes, server: Server, cache: Path) -> None:
    good, server.content = server.content, content
    assert "not a zip" in failure(cache)
    assert tree(cache) == {}
    server.content = good
    assert tree(kaggle.fetch(NAME, cache)) == FILES


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the credentials in KAGGLE_USERNAME and KAGGLE_KEY; create a new token at https"),
        (403, "accept the licence or the rules"),
        (404, "no such data set on Kaggle"),
        (429, "too many requests"),
        (503, "try again later"),
    ],
)
def test_kaggles_refusals_are_explained(status: int, words: str, server: Server, cache: Path) -> None:
    server.status = status
    message = failure(cache)
    assert words in message
    assert f"(HTTP {status})" in message
    assert "python train.py data=hot_dog data.archive=" in message
    assert len(server.asked) == 1


@pytest.mark.usefixtures("signed_in")
def test_the_command_for_a_zip_names_the_data_set(server: Server, cache: Path) -> None:
    server.status = 404
    assert "python train.py data=kaggle data.dataset=a/b data.archive=" in failure(cache, "a/b")


@pytest.mark.usefixtures("signed_in")
def test_a_networks_login_page_is_recognized(server: Server, cache: Path) -> None:
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    assert "is a web page" in failure(cache)


@pytest.mark.usefixtures("signed_in")
def test_a_missing_network_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{unused.getsockname()[1]}", monkeypatch)
        assert "no connection to Kaggle" in failure(cache)

    def nowhere(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert "no connection to Kaggle" in failure(cache)


@pytest.mark.usefixtures("signed_in")
@pytest.mark.slow
def test_a_silent_server_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        began = time.monotonic()
        message = failure(cache)
        assert time.monotonic() - began < 8
    assert "Kaggle does not answer" in message


@pytest.mark.usefixtures("signed_in")
def test_an_endless_name_lookup_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(kaggle_client, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait(20) and [])
    point_at("http://kaggle.invalid", monkeypatch)
    assert "Kaggle does not answer" in failure(cache)
    over.set()


@pytest.mark.usefixtures("signed_in")
def test_a_stalled_download_is_given_up(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle_client, "STALL_SECONDS", 0.2)
    server.stalls = True
    server.ends = [50_000, None, 60_000, None, 70_000]
    assert "broke off after 70,000" in failure(cache)


@pytest.mark.usefixtures("signed_in")
def test_a_full_disk_is_reported(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parent)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert "the download needs 0.00 GB and" in failure(cache)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kaggle_client, "_demand_space", full)
    assert "the disk is full" in failure(cache)


@pytest.mark.usefixtures("signed_in")
def test_a_cache_that_is_a_file_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "data.cache=FOLDER" in failure(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "hot-dog", "a/b/c", "/a", "../x", "a/..", "a/b c", "a/b\n", "https://x/y"])
def test_invalid_data_set_names_are_refused(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="not of the form OWNER/NAME"):
        kaggle.fetch(name, cache)
    assert "not of the form OWNER/NAME" in (kaggle.available(name, cache) or "")
    assert not cache.exists()


def test_a_pages_address_suggests_the_name(cache: Path) -> None:
    said = kaggle.available(f"https://www.kaggle.com/datasets/{NAME}/data", cache) or ""
    assert f"did you mean {NAME}?" in said


def test_missing_credentials_are_explained(server: Server, cache: Path) -> None:
    message = failure(cache)
    assert "no Kaggle credentials" in message
    assert "~/.kaggle/kaggle.json" in message
    assert server.asked == []
    assert kaggle.available(NAME, cache) == message


def test_preflight_uses_no_network(server: Server, cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t")
    assert kaggle.available(NAME, cache) is None
    assert server.asked == []
    kaggle.fetch(NAME, cache)
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert kaggle.available(NAME, cache) is None  # it exists


def put(path: Path, content: object, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


KEY = {"username": "file", "key": "k"}


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({".kaggle/kaggle.json": KEY}, {}, basic("file", "k")),
        ({".config/kaggle/kaggle.json": KEY}, {}, basic("file", "k")),
        ({".kaggle/kaggle.json": KEY}, {"KAGGLE_KEY": "env"}, basic("file", "env")),
        ({".kaggle/kaggle.json": "no json"}, {"KAGGLE_USERNAME": "e", "KAGGLE_KEY": "v"}, basic("e", "v")),
        ({"elsewhere/kaggle.json": KEY}, {"KAGGLE_CONFIG_DIR": "elsewhere"}, basic("file", "k")),
        ({".kaggle/kaggle.json": KEY}, {"KAGGLE_API_TOKEN": "t"}, "Bearer t"),
        ({".kaggle/access_token": "t2\n"}, {}, "Bearer t2"),
        (
            {".kaggle/kaggle.json": {"path": "/x"}, ".kaggle/credentials.json": {"refresh_token": "r"}},
            {},
            "Bearer fresh",
        ),
        (
            {
                ".kaggle/credentials.json": {
                    "refresh_token": "r",
                    "access_token": "old",
                    "access_token_expiration": "2999-01-01T00:00:00+00:00",
                }
            },
            {},
            "Bearer old",
        ),
    ],
)
def test_credentials_are_found_where_the_client_looks(
    files: dict[str, object],
    variables: dict[str, str],
    expected: str,
    home: Path,
    server: Server,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, content in files.items():
        put(home / name, content)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(home / value) if name == "KAGGLE_CONFIG_DIR" else value)
    assert kaggle.available(NAME, cache) is None
    kaggle.fetch(NAME, cache)
    assert server.of(ASK)[0]["Authorization"] == expected
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["kaggle.json", "access_token", "credentials.json"])
def test_a_key_that_others_can_read_is_warned_about(
    name: str, home: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(home / ".kaggle" / name, {**KEY, "refresh_token": "r"}, mode=0o644)
    kaggle.available(NAME, cache)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [f"chmod 600 {path}"]


def test_invalid_credentials_are_reported(home: Path, cache: Path, server: Server) -> None:
    path = put(home / ".kaggle" / "kaggle.json", "no json")
    assert f"{path} is not a kaggle.json" in failure(cache)
    put(path, {"username": "me", "key": "\u201ckey\u201d"})
    assert f"no key has such characters as that in {path}" in failure(cache)
    put(path, {})
    put(home / ".kaggle" / "credentials.json", "{}")
    assert "kaggle auth login" in failure(cache)
    assert server.asked == []


def test_the_file_of_stale_credentials_is_named(home: Path, cache: Path, server: Server) -> None:
    server.status = 401
    path = put(home / ".kaggle" / "access_token", "old")
    assert f"does not accept the credentials in {path}" in failure(cache)


def colab(monkeypatch: pytest.MonkeyPatch, upload: Any) -> None:
    import importlib.machinery

    module: Any = ModuleType("google.colab")
    module.__spec__ = importlib.machinery.ModuleSpec("google.colab", None)
    module.files = SimpleNamespace(upload=upload)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)


def test_in_colab_the_key_is_uploaded(home: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colab(monkeypatch, lambda: {"kaggle (1).json": json.dumps(KEY).encode()})
    assert kaggle.available(NAME, cache) is None
    kaggle.fetch(NAME, cache)
    assert server.of(ASK)[0]["Authorization"] == basic("file", "k")
    path = home / ".config" / "kaggle" / "kaggle.json"
    assert json.loads(path.read_text()) == KEY
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("upload", [dict, lambda: {"x": b"{}"}, lambda: None.kernel])  # type: ignore[attr-defined]
def test_in_colab_a_missing_upload_is_explained(
    upload: Any, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colab(monkeypatch, upload)
    assert "no Kaggle credentials" in failure(cache)


@pytest.mark.usefixtures("signed_in")
def test_of_two_processes_one_downloads(server: Server, cache: Path) -> None:
    code = (
        "import sys, pathlib; from kagglesdk import kaggle_env as e\n"
        "e._env_to_endpoint[e.KaggleEnv.TEST] = sys.argv[1]\n"
        "from tl_research.data.kaggle import kaggle; print(kaggle.fetch(sys.argv[2], pathlib.Path(sys.argv[3])))\n"
        "assert not {'tensorflow', 'keras', 'kaggle'} & set(sys.modules)"
    )
    server.delay = 0.5  # so that the second starts during the first's download
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-W", "error", "-c", code, url, NAME, str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(cache / "kaggle" / NAME)] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert server.paths() == [ASK, "/storage"]
    assert tree(cache / "kaggle" / NAME) == FILES


def test_a_zip_downloaded_by_hand_is_unpacked(home: Path, cache: Path, server: Server) -> None:
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
    assert server.asked == []


@pytest.mark.parametrize("content", [None, b"no zip"])
def test_a_missing_or_damaged_zip_is_reported(content: bytes | None, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.zip"
    if content:
        path.write_bytes(content)
    said = kaggle.available(NAME, cache, path) or ""
    assert said.startswith(f"data.archive={path}: ")
    assert f"https://www.kaggle.com/datasets/{NAME}" in said
    with pytest.raises(InputError, match=str(path)):
        kaggle.fetch(NAME, cache, path)


def grow(root: Path, *images: str) -> Path:
    for name in images:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("images", "root"),
    [
        (["train/a/1.jpg", "train/b/1.jpg"], "."),
        (["seefood/train/a/1.jpg", "seefood/test/a/1.jpg"], "seefood"),
        (["x/y/Training/a/1.PNG", "x/notes.txt", ".hidden/train/a/1.jpg"], "x/y"),
        (["pets/cat/1.jpg", "pets/dog/1.jpg", "pets/readme.md"], "pets"),
        (["train/a/1.jpg", "test/a/1.jpg", "seefood/train/a/1.jpg"], "."),
        (
            ["x/train/1.jpg", "x/test/1.jpg", "x/y/cat/1.jpg", "x/y/dog/1.jpg"],
            "x/y",
        ),  # not classes, but unsorted splits
        (["a/1.txt", "b/1.txt", "c/cat/1.jpg", "c/dog/1.jpg"], "c"),
    ],
)
def test_the_root_of_a_data_set_is_found(images: list[str], root: str, tmp_path: Path) -> None:
    assert kaggle.find_root(grow(tmp_path / "data", *images)) == tmp_path / "data" / root


def test_images_without_a_suffix_are_found(tmp_path: Path, colours: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(next((colours / "train" / "red").iterdir()), tmp_path / "data" / name / "picture")
    assert kaggle.find_root(tmp_path / "data") == tmp_path / "data"


def test_another_copy_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grow(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "seefood/train/a/1.jpg", "seefood/test/a/1.jpg")
    with caplog.at_level(logging.INFO, kaggle.log.name):
        kaggle.find_root(tmp_path)
    (message,) = caplog.messages
    assert str(tmp_path / "seefood") in message
    assert "ignored" in message


def test_folders_inside_a_class_are_not_a_copy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grow(tmp_path, "cat/1.jpg", "cat/old/1.jpg", "cat/new/1.jpg", "dog/1.jpg")
    with caplog.at_level(logging.INFO, kaggle.log.name):
        assert kaggle.find_root(tmp_path) == tmp_path
    assert caplog.messages == []


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found docs/, one/, one/two/\. .*data=folder data\.root="):
        kaggle.find_root(grow(tmp_path / "x", "docs/a.txt", "one/two/1.jpg"))
    with pytest.raises(InputError, match="found no folders"):
        kaggle.find_root(tmp_path / "x" / "docs")
    with pytest.raises(InputError, match="found test/"):
        kaggle.find_root(grow(tmp_path / "y", "test/cat/1.jpg", "test/dog/1.jpg"))


def test_two_data_sets_side_by_side_are_refused(tmp_path: Path) -> None:
    grow(tmp_path, "large/train/a/1.jpg", "small/train/a/1.jpg")
    with pytest.raises(InputError, match="more than one data set") as caught:
        kaggle.find_root(tmp_path)
    assert f"data.root={tmp_path / 'large'} or data.root={tmp_path / 'small'}" in str(caught.value)
