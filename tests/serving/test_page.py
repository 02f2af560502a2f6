"""`serve` as people meet it: the command in a process of its own, its page in a browser."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.reports.test_report_browser import browser  # noqa: F401
from tests.serving.test_answerer import PHOTO, calibrated_run, png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

DROP = """([name, content]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));
  return transfer;
}"""
ANSWERED = "#map[alt*='speaks for']"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server. It writes nothing but one line, and Ctrl-C ends it with another."""
    pytest.importorskip("uvicorn", reason="needs tl_research[serve]")
    folder = tmp_path_factory.mktemp("serve")
    run, cwd = calibrated_run(folder / "run"), folder / "cwd"
    cwd.mkdir()
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "tl_research", "serve", str(run), "--port", "0", "--max-mb", "1"]
    home = str(tmp_path_factory.mktemp("home"))  # where libraries keep their caches
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": home, "TMPDIR": str(cwd)}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True)
    assert process.stdout
    address = process.stdout.readline().split()
    yield address[0] if address else pytest.fail(process.communicate()[1])
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "interrupted\n", 130)
    assert sorted(folder.rglob("*")) == before, "nothing is kept"


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:  # noqa: F811
    context = browser.new_context(color_scheme="dark", viewport={"width": 1000, "height": 900})
    wrong: list[str] = []
    context.on("console", lambda said: wrong.append(said.text) if "status of 4" not in said.text else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on(
        "request", lambda asked: None if asked.url.startswith((url, "blob:", "data:")) else wrong.append(asked.url)
    )
    opened = context.new_page()
    opened.goto(url)
    yield opened
    context.close()
    assert not wrong


def drop(page: Page, name: str, content: bytes) -> None:
    transfer = page.evaluate_handle(DROP, [name, base64.b64encode(content).decode()])
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def test_a_dropped_photograph_is_answered_with_its_map(page: Page) -> None:
    drop(page, "photo.png", PHOTO.read_bytes())
    page.wait_for_selector(ANSWERED)
    name, chance = page.locator("#answer").inner_text().split(": ")
    assert chance.endswith(" %")
    assert re.match(f"Prediction set: ({name}|any of its classes)", page.locator("#set").inner_text())
    assert page.locator("#map").evaluate("image => image.naturalWidth") >= 224
    assert page.locator("#photo").evaluate("image => image.naturalWidth") == 20
    assert page.locator("#classes button").count() == 2
    assert page.locator("#classes [aria-pressed=true] span").first.inner_text() == name
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)", "dark"


def test_everything_is_reached_by_keyboard_and_named(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "choose"  # by now the browser tells of choosers, too
        page.keyboard.press("Enter")
    chooser.value.set_files(PHOTO)
    page.wait_for_selector(ANSWERED)
    other = page.locator("#classes button").nth(1)
    for _ in range(2):
        page.keyboard.press("Tab")
    assert other.evaluate("button => button === document.activeElement")
    page.keyboard.press("Space")
    page.wait_for_selector("#classes li:nth-child(2) [aria-pressed=true]")
    assert page.get_by_role("button").count() == 3
    assert page.get_by_role("button", name="Choose a photograph").count() == 1
    assert page.get_by_role("status").inner_text()
    assert page.get_by_role("alert").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    assert not page.locator("img:not([alt])").count()
    assert page.locator("html[lang=en]").count() == 1


def huge(folder: Path) -> Path:
    path = folder / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    return path


def test_what_is_no_photograph_is_said_and_the_next_is_answered(page: Page, tmp_path: Path) -> None:
    files = {
        "broken.png": PHOTO.read_bytes()[:-200],
        "text.jpg": b"Dear Sir,\n",
        "bomb.png": png(12_000, 12_000),
        "": b"",
    }
    words = {"broken.png": "truncated", "text.jpg": "not an image", "bomb.png": "megapixels", "": "empty"}
    for name, content in files.items():
        drop(page, name, content)
        page.wait_for_selector("#error:not(:empty)")
        assert page.locator("#error").inner_text().startswith(f"{name}: cannot be read")
        assert words[name] in page.locator("#error").inner_text()
        drop(page, "photo.png", PHOTO.read_bytes())
        page.wait_for_selector(ANSWERED)
        assert not page.locator("#error").inner_text()
    page.set_input_files("#file", huge(tmp_path))
    page.wait_for_selector("#error:not(:empty)")
    assert page.locator("#error").inner_text() == "huge.jpg: 200 MB, more than 1.0 MB, the most that is taken."


def test_two_hundred_megabytes_are_refused_to_a_program(url: str, tmp_path: Path) -> None:
    for content, status in ((huge(tmp_path), 413), (PHOTO, 200)):
        connection = HTTPConnection(url.split("/")[2], timeout=60)
        with content.open("rb") as file:
            connection.request("POST", "/predict", file)
        response = connection.getresponse()
        assert (response.status, "error" in json.load(response)) == (status, status == 413)
