import contextlib
import http.server
import logging
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from tl_research.errors import InputError
from tl_research.system import download

BODY = bytes(range(256)) * 4096  # 1 MiB


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.plan.body` with ranges, and misbehaves as the plan says."""

    def do_GET(self):
        plan = self.server.plan
        plan.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        time.sleep(plan.delay)
        body, start = plan.body, 0
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == plan.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        status = plan.status or (206 if start else 200)
        if start > len(body):
            status = 416
        self.send_response(status)
        self.send_header("Content-Type", plan.kind)
        self.send_header("ETag", plan.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if plan.location:
            self.send_header("Location", plan.location)
        self.send_header("Content-Length", str(len(body) - start if plan.length is None else plan.length))
        self.end_headers()
        if status in (200, 206):
            self.wfile.write(body[start : plan.breaks])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.plan = SimpleNamespace(body=BODY, kind="application/octet-stream", etag='"1"', requests=[], delay=0.0)
        server.plan.__dict__.update(breaks=None, status=None, length=None, location=None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}/weights.h5"
        yield server
        server.shutdown()
        thread.join()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(url, target, **options):
    with pytest.raises(InputError) as caught:
        download.download(url, target, **options)
    message = str(caught.value)
    assert url in message
    assert "\n" not in message
    return message


def test_a_file_arrives_whole_in_a_folder_that_was_not_there(server, tmp_path):
    target = tmp_path / "models" / "weights.h5"
    assert download.download(server.url, target) == target
    assert target.read_bytes() == BODY
    assert files(target.parent) == ["weights.h5"]


def test_a_broken_download_is_resumed(server, tmp_path):
    target = tmp_path / "weights.h5"
    server.plan.breaks = 300_000
    assert "300,000 of 1,048,576 bytes" in refusal(server.url, target)
    assert not target.exists()
    server.plan.breaks = None
    download.download(server.url, target)
    assert target.read_bytes() == BODY
    assert [ask[1:] for ask in server.plan.requests] == [(None, None), ("bytes=300000-", '"1"')]
    assert files(tmp_path) == ["weights.h5"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server, tmp_path):
    target = tmp_path / "weights.h5"
    server.plan.breaks = 300_000
    refusal(server.url, target)
    server.plan.breaks, server.plan.etag, server.plan.body = None, '"2"', BODY[::-1]
    download.download(server.url, target)
    assert target.read_bytes() == BODY[::-1]


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    target = tmp_path / "weights.h5"
    (tmp_path / "weights.h5.part").write_bytes(BODY + b"more")
    (tmp_path / "weights.h5.part.tag").write_text('"1"')
    download.download(server.url, target)
    assert target.read_bytes() == BODY


def test_a_part_of_unknown_origin_is_dropped(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(b"something else")
    download.download(server.url, tmp_path / "weights.h5")
    assert (tmp_path / "weights.h5").read_bytes() == BODY
    assert server.plan.requests[0][1] is None


def test_a_web_page_is_no_file(server, tmp_path):
    server.plan.kind = "text/html; charset=utf-8"
    assert "web page" in refusal(server.url, tmp_path / "weights.h5")
    assert not (tmp_path / "weights.h5").exists()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_the_servers_refusal_is_passed_on(server, tmp_path, status):
    server.plan.status = status
    assert str(status) in refusal(server.url, tmp_path / "weights.h5")
    assert files(tmp_path) == []


def test_a_redirect_stays_on_the_web(server, tmp_path):
    server.plan.status, server.plan.length, server.plan.location = 302, 0, "ftp://127.0.0.1/weights.h5"
    assert "ftp" in refusal(server.url, tmp_path / "weights.h5")


def test_a_file_larger_than_the_disk_is_refused_at_once(server, tmp_path):
    server.plan.length = 10**18
    assert "free" in refusal(server.url, tmp_path / "weights.h5")
    assert files(tmp_path) == []


def test_a_proxy_from_the_environment_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    download.download("http://somewhere.invalid/weights.h5", tmp_path / "weights.h5")
    assert server.plan.requests[0][0] == "http://somewhere.invalid/weights.h5"
    assert (tmp_path / "weights.h5").read_bytes() == BODY


def test_of_two_downloads_of_one_file_one_waits_for_the_other(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    server.plan.delay = 0.5
    target = tmp_path / "weights.h5"
    threads = [threading.Thread(target=download.download, args=(server.url, target)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == BODY
    assert len(server.plan.requests) == 1
    assert "waiting for another process" in caplog.text
    assert files(tmp_path) == ["weights.h5"]


@pytest.mark.timeout(60)
def test_a_port_that_never_answers_times_out(tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.h5"
        assert "no answer within 0.5 seconds" in refusal(url, tmp_path / "weights.h5", timeout=0.5)
    assert files(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_silent_server_times_out_and_the_part_stays(tmp_path):
    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 1000\r\n\r\n' + b"x" * 100)
            over.wait(50)

    over = threading.Event()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/weights.h5"
        assert "no answer" in refusal(url, tmp_path / "weights.h5", timeout=0.5)
        over.set()
        thread.join()
    assert (tmp_path / "weights.h5.part").stat().st_size == 100


@pytest.mark.timeout(60)
def test_an_unanswered_name_lookup_times_out(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(50) and [])
    assert "no answer" in refusal("http://somewhere.invalid/weights.h5", tmp_path / "weights.h5", timeout=0.2)
    over.set()


def test_an_unknown_host_is_named(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "name is not found" in refusal("http://somewhere.invalid/weights.h5", tmp_path / "weights.h5")


def test_a_closed_port_is_told(tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as closed:
        port = closed.getsockname()[1]
    assert "refused" in refusal(f"http://127.0.0.1:{port}/weights.h5", tmp_path / "weights.h5")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "weights.h5", "http://"])
def test_only_web_addresses_are_taken(tmp_path, url):
    assert "http://" in refusal(url, tmp_path / "weights.h5")
