"""The server over real connections, in front of a stub: whom it answers, what it refuses, that it goes on answering.
Modules: server, admission."""

from __future__ import annotations

import json
import logging
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT

pytest.importorskip("uvicorn", reason="needs tl_research[serve]")
pytest.importorskip("fastapi", reason="needs tl_research[serve]")

from tl_research import InputError
from tl_research.__main__ import app
from tl_research.data.decode import UndecodableError
from tl_research.serving.admission import Admission, is_loopback
from tl_research.serving.answerer import Answer, ModelFacts
from tl_research.serving.server import bind, build_server

LIMITS = Admission(
    max_bytes=1000,
    max_held=3,
    max_waiting=2,
    max_connections=8,
    header_seconds=0.5,
    body_seconds=0.3,
    answer_seconds=5,
    linger_seconds=2,
)


class Stub:
    """Answers at once, or when `gate` opens."""

    class_names = ("cat", "dog")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def facts(self, max_bytes: int) -> ModelFacts:
        return ModelFacts(name="stub", class_names=[*self.class_names], calibrated=True, max_bytes=max_bytes)

    def answer(self, content: bytes, coverage: float) -> Answer:
        self.gate.wait(20)
        if content == b"broken":
            raise UndecodableError("truncated")
        if content == b"ours":
            raise ZeroDivisionError
        chances = {"cat": 0.8, "dog": 0.2}
        return Answer(
            prediction="cat", probability=0.8, probabilities=chances, coverage=coverage, prediction_set=["cat"]
        )

    def explain(self, content: bytes, class_name: str | None) -> bytes:
        return f"map of {class_name}".encode()


class Idle:
    """A server that ends at once."""

    def __init__(self, *_: object) -> None:
        self.run = list


class Site:
    """A server in a thread of this process, and a client of it."""

    def __init__(self, loopback: bool = True):
        self.stub = Stub()
        self._listener = bind("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self._server = build_server(self.stub, LIMITS, loopback)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self.stub.gate.set()
        self._thread.join()
        self._listener.close()

    def send(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes | None))
        return connection.getresponse()

    def connect(self, text: str = "") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(text.encode())
        return connection


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    opened = Site()
    yield opened
    opened.stop()


@pytest.fixture(autouse=True)
def _goes_on_answering(site: Site) -> Iterator[None]:
    """Whatever a test has done, the next photograph is answered."""
    yield
    assert json.load(site.send("POST", "/predict", b"photo"))["prediction"] == "cat"


def test_a_photograph_is_answered(site: Site) -> None:
    answer = json.load(site.send("POST", "/predict?coverage=0.8", b"photo"))
    assert answer["probabilities"] == {"cat": 0.8, "dog": 0.2}
    assert (answer["coverage"], answer["prediction_set"]) == (0.8, ["cat"])
    drawn = site.send("POST", "/explain?class_name=dog", b"photo")
    assert (drawn.headers["content-type"], drawn.read()) == ("image/png", b"map of dog")
    assert json.load(site.send("GET", "/model"))["max_bytes"] == 1000


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/page.css", "/model", "/openapi.json", "/nothing", "/docs", "/redoc"]
)
def test_every_response_forbids_what_it_can(site: Site, path: str) -> None:
    response = site.send("GET", path)
    assert response.status == (404 if path in ("/nothing", "/docs", "/redoc") else 200)
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    wanted = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}
    assert {name: response.headers[name] for name in wanted} == wanted
    assert "server" not in response.headers


def test_the_page_fetches_and_inlines_nothing() -> None:
    page, script, style = (
        (ROOT / "tl_research/serving/page" / f"page.{end}").read_text() for end in ("html", "js", "css")
    )
    assert not re.search(r"https?://|//\w|@import|url\(", page + style)
    assert not re.search(r"https?://|eval|innerHTML", script)
    assert re.findall(r"<script[^>]*>[^<]*", page) == ['<script src="page.js" defer>']
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)


def test_a_query_changes_nothing_of_the_page(site: Site) -> None:
    for path in ("/", "/page.js", "/page.css"):
        asked = [site.send("GET", path + query) for query in ("", "?content=alert(1)&kind=text/html&path=/etc/passwd")]
        first, second = ((response.read(), response.headers["content-type"]) for response in asked)
        assert first == second


def test_openapi_describes_body_and_problems(site: Site) -> None:
    paths = json.load(site.send("GET", "/openapi.json"))["paths"]
    assert set(paths) == {"/model", "/predict", "/explain"}
    assert "image/*" in paths["/predict"]["post"]["requestBody"]["content"]
    assert {"413", "422", "503"} < set(paths["/explain"]["post"]["responses"])


REFUSALS = [
    (413, "MB, the most", "/predict", b"x" * 1001, {}),
    (413, "MB, the most", "/predict", [b"x" * 600] * 2, {}),  # in chunks, without a length
    (413, "MB, the most", "/explain", b"x" * 3_000_000, {}),
    (415, "not a form", "/predict", b"x", {"Content_Type": "multipart/form-data; boundary=b"}),
    (422, "truncated", "/predict", b"broken", {}),
    (422, "coverage", "/predict?coverage=1.5", b"x", {}),
    (422, "'bird' is no class", "/explain?class_name=bird", b"x", {}),
    (403, "localhost alone", "/predict", b"x", {"Host": "evil.example"}),
    (403, "localhost alone", "/predict", b"x", {"Host": "127.0.0.1.evil.example:80"}),
    (403, "not an address", "/predict", b"x", {"Host": "[::1"}),
    (403, "own page only", "/predict", b"x", {"Origin": "http://evil.example"}),
    (403, "own page only", "/explain", b"x", {"Origin": "null"}),
    (403, "own page only", "/predict", b"x", {"Sec_Fetch_Site": "cross-site"}),
    (404, "Not Found", "/nothing", b"x", {}),
    (405, "Not Allowed", "/model", b"x", {}),
]


@pytest.mark.parametrize(("status", "words", "path", "body", "headers"), REFUSALS)
def test_what_is_refused_is_told(
    site: Site, status: int, words: str, path: str, body: bytes | list[bytes], headers: dict[str, str]
) -> None:
    response = site.send("POST", path, body if isinstance(body, bytes) else iter(body), **headers)
    assert response.status == status
    assert words in json.load(response)["error"]


def test_a_large_file_is_refused_before_it_is_sent(site: Site) -> None:
    with site.connect("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_an_error_of_ours_is_logged_and_says_so(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "tl_research"):
        response = site.send("POST", "/predict", b"ours")
    assert (response.status, *json.load(response)) == (500, "error")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    "sent",
    ["", "POST /predict HTTP/1.1\r\n", "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"],
)
def test_slow_clients_are_told_and_left(site: Site, sent: str) -> None:
    with site.connect(sent) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_flood_is_told_to_come_back(site: Site) -> None:
    site.stub.gate.clear()
    request = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"
    with ExitStack() as stack:
        opened = [stack.enter_context(site.connect(request)) for _ in range(LIMITS.max_waiting + 1)]
        (late,), _, _ = select.select(opened, [], [], 20)
        response = late.recv(2000).decode()
        assert response.startswith("HTTP/1.1 503")
        assert "retry-after: 1" in response
        site.stub.gate.set()
        assert all(connection.recv(100).startswith(b"HTTP/1.1 200") for connection in opened if connection != late)


def test_connections_are_limited(site: Site) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(site.connect()) for _ in range(LIMITS.max_connections + 1)]
        assert opened[-1].recv(100).startswith(b"HTTP/1.1 503")
        assert all(connection.recv(100).startswith(b"HTTP/1.1 408") for connection in opened[:-1])


def test_images_in_memory_are_limited(site: Site) -> None:
    request = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + 999 * "x"
    with ExitStack() as stack:
        opened = [stack.enter_context(site.connect(request)) for _ in range(LIMITS.max_held + 1)]
        (late,), _, _ = select.select(opened, [], [], 20)
        assert late.recv(100).startswith(b"HTTP/1.1 503")


def test_off_loopback_any_name_may_be_asked() -> None:
    opened = Site(loopback=False)
    try:
        host = {"Host": "lab.example", "Origin": "http://lab.example"}
        assert opened.send("POST", "/predict", b"x", **host).status == 200
        assert opened.send("POST", "/predict", b"x", Host="lab.example", Origin="http://evil.example").status == 403
    finally:
        opened.stop()


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback_is_recognized(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_address_that_cannot_be_had_is_named(site: Site) -> None:
    with pytest.raises(InputError, match=f"--port {site.port} at 127.0.0.1: .*in use; give another port"):
        bind("127.0.0.1", site.port)
    for host in ("a..b", "192.0.2.1"):
        with pytest.raises(InputError, match=f"--host {host}: no address of this machine"):
            bind(host, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--port", "70000"], "0 to 65535"), (["--max-mb", "0"], "--max-mb"), ([], "not a run directory")],
)
def test_bad_options_are_named(options: list[str], words: str, tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["serve", str(tmp_path), *options]).exception
    assert isinstance(error, InputError)
    assert words in str(error)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tl_research.commands.serve.find_spec", lambda name: None)
    error = CliRunner().invoke(app, ["serve", str(tmp_path)]).exception
    assert str(error) == 'serve needs fastapi, uvicorn: pip install "tl_research[serve]"'


def test_who_may_ask_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, stand_in in (("answerer.Answerer", lambda *_: Stub()), ("server.build_server", Idle)):
        monkeypatch.setattr(f"tl_research.serving.{name}", stand_in)
    run = ROOT / "tests" / "fixtures" / "aeace94" / "finished"
    for host, words in (("127.0.0.1", ""), ("0.0.0.0", "there is no password")):
        result = CliRunner().invoke(app, ["serve", str(run), "--host", host, "--port", "0"])
        assert (result.exit_code, words in result.stderr, bool(result.stderr)) == (0, True, bool(words))
        assert re.match(r"http://[^:]+:\d+/ ", capsys.readouterr().out or result.stdout)
