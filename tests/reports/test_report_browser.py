"""The report in a browser: from its file alone, with the network off, by mouse and by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.reports.test_html_report import HOSTILE, draw_answers, draw_history, draw_sweep
from tests.reports.test_leaderboard import draw_run
from tl_research.reports import html_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

pytestmark = pytest.mark.slow

VAL = "[aria-label^='Leaderboard'] thead button:text-is('val accuracy')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A window without a network, in which a request for anything but a file fails the test, as any error does."""
    opened = browser.new_context(offline=True, color_scheme="light", viewport={"width": 1280, "height": 900})
    wrong: list[str] = []

    def guard(route: Route) -> None:
        if route.request.url.startswith("file://"):
            route.continue_()
        else:
            wrong.append(route.request.url)
            route.abort()

    opened.route("**/*", guard)
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("weberror", lambda error: wrong.append(str(error.error)))
    yield opened
    opened.close()
    assert not wrong


def opened(context: BrowserContext, folder: Path) -> Page:
    page = context.new_page()
    page.goto(html_report.write_report(folder).as_uri())
    return page


@pytest.fixture
def page(context: BrowserContext, tmp_path: Path) -> Page:
    return opened(context, draw_sweep(tmp_path))


def column(page: Page, name: str) -> list[str]:
    """The texts of a column, from top to bottom."""
    heads = [text.strip() for text in page.locator("#table thead th").all_inner_texts()]
    cells = page.locator(f"#table tr.row td:nth-child({heads.index(name) + 1})").all_inner_texts()
    return [text.strip() for text in cells]


def test_the_page_is_complete(page: Page) -> None:
    assert page.locator("#table tr.row").count() == 7
    assert column(page, "val accuracy")[0] == "0.955"
    assert column(page, "val accuracy")[-1] == "–", "a missing value is a dash"
    assert page.locator("section:visible").count() == 8
    assert page.locator("#effects-charts figure").count() == 2
    labels = page.locator("#effects-charts text.label").evaluate_all("all => all.map(one => one.lastChild.textContent)")
    assert labels == ["mlp", "linear"]
    assert page.locator(".matrix tbody td:not(.recall)").all_inner_texts() == ["1", "1", "1", "2"]
    assert page.locator("table.scores tbody tr").all_inner_texts()[0].split()[:3] == ["cat", "2", "0.500"]
    assert page.locator("#trust figure").count() == 2, "ROC, precision and recall; nothing was calibrated"
    assert page.locator(".mistakes img").evaluate("image => image.naturalWidth") == 128
    assert "InputError: no weights" in page.locator("#failures").inner_text()


def test_sorting_by_click(page: Page) -> None:
    page.click(VAL)
    down = column(page, "val accuracy")
    assert down == [*sorted(down[:-1], reverse=True), "–"]
    head = page.locator("#table th", has_text="val accuracy")
    assert head.get_attribute("aria-sort") == "descending"
    page.click(VAL)
    assert column(page, "val accuracy") == [*reversed(down[:-1]), "–"], "what is missing stays last"
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator("#table th[aria-sort]").count() == 1


def test_random_weights_stay_apart_until_another_column_sorts(context: BrowserContext, tmp_path: Path) -> None:
    for name, accuracy, random in (("a", 0.8, False), ("b", 0.9, True), ("c", 0.7, False)):
        draw_run(tmp_path / name, [f"head={name}"], val_accuracy=accuracy, random_weights=random)
    draw_run(tmp_path / "d", ["head=d"], "failed", "InputError: no weights")
    page = opened(context, tmp_path)
    assert column(page, "head") == ["a", "c", "b", "d"]
    assert page.locator("#table tr:has(.badge)").inner_text().split()[:4] == ["▸", "1", "random", "weights"]
    page.click(VAL)
    assert column(page, "head") == ["b", "a", "c", "d"]


def test_sorting_by_keyboard(page: Page) -> None:
    page.locator("#table thead button").first.focus()
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "data.fraction"
    assert column(page, "data.fraction") == ["0.1", "0.1", "0.1", "0.3", "0.3", "1.0", "1.0"]
    page.keyboard.press("Space")
    assert column(page, "data.fraction")[0] == "1.0"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "who uses the keyboard sees where they are"


def test_filtering_by_value_and_by_text(page: Page) -> None:
    page.check("#filters label:has-text('mlp') input")
    assert set(column(page, "head")) == {"mlp"}
    page.check("#filters label:has-text('linear') input")
    page.check("#filters label:has-text('0.3') input")
    assert (column(page, "head"), column(page, "data.fraction")) == (["mlp", "linear"], ["0.3", "0.3"])
    assert page.locator("#count").inner_text() == "2 of 7"
    assert page.locator("#trade-charts .point.out").count() > 0, "the charts follow"
    page.fill("#filters input[type=search]", "SEED=1 ")
    assert page.locator("#table tr.row").count() == 2, "commands are searched, too, in either case"
    page.fill("#filters input[type=search]", "nothing has this")
    assert "No configuration matches" in page.locator("#table").inner_text()


def test_picking_rows_shows_their_curves(page: Page) -> None:
    box = page.get_by_role("checkbox", name="Curves of mlp · data.fraction=1.0")
    assert box.is_checked(), "what has curves is picked to begin with"
    picked = page.locator("#table td.pick input:checked")
    while picked.count():
        picked.first.uncheck()
    assert page.locator("#curves-charts figure").count() == 0
    assert "Tick a row" in page.locator("#curves-note").inner_text()
    box.focus()
    page.keyboard.press("Space")
    assert page.locator("#curves-charts figure h3").all_inner_texts() == ["accuracy", "loss"]
    assert page.locator("#curves-charts figure").first.locator("path.line:not(.train)").count() == 2, "a line a seed"
    assert "finetune" in page.locator("#curves-charts").text_content()
    page.get_by_role("checkbox", name="Curves of linear · data.fraction=1.0").check()
    assert "solved at once" in page.locator("#curves-note").inner_text()


def test_points_are_read_by_keyboard_and_picked(page: Page) -> None:
    points = page.locator("#trade-charts figure").first.locator(".point")
    assert points.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1, "one stop of the Tab key"
    points.first.focus()
    page.keyboard.press("ArrowRight")
    tooltip = page.locator("#tooltip")
    assert "val_accuracy 0." in tooltip.inner_text()
    name = tooltip.locator("b").inner_text()
    box = page.get_by_role("checkbox", name=f"Curves of {name}", exact=True)
    before = box.is_checked()
    page.keyboard.press("Enter")
    assert box.is_checked() is not before
    page.keyboard.press("Escape")
    assert tooltip.is_hidden()


def test_details_hold_the_command_of_each_run(page: Page) -> None:
    more = page.get_by_role("button", name="Runs and commands of mlp · data.fraction=1.0")
    more.click()
    assert more.get_attribute("aria-expanded") == "true"
    commands = page.locator("td.detail code").all_inner_texts()
    assert commands[1] == "python train.py head=mlp data.fraction=1.0 seed=1 'data.root=/my photos'"
    page.click(VAL)
    page.click(VAL)
    assert page.locator("tr.row:has(button[aria-expanded=true]) + tr td.detail").count() == 1, (
        "they move with their row"
    )
    more.click()
    assert page.locator("td.detail").count() == 0


def test_a_command_is_copied(context: BrowserContext, page: Page) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("#winner button.copy")
    button.click()
    page.wait_for_function("document.querySelector('#winner button.copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#winner code").inner_text()


def brightness(path: Path) -> float:
    with Image.open(path) as picture:
        return float(np.median(np.asarray(picture.convert("L"))))


def test_light_and_dark_by_system_and_by_button(page: Page, tmp_path: Path) -> None:
    shots = [tmp_path / f"{name}.png" for name in ("light", "dark", "toggled")]
    page.screenshot(path=shots[0], full_page=True)
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=shots[1], full_page=True)
    page.click("#theme")
    page.screenshot(path=shots[2], full_page=True)
    light, dark, toggled = map(brightness, shots)
    assert light > 230
    assert dark < 50
    assert toggled == light


@pytest.mark.parametrize("width", [320, 400, 768, 1440])
def test_no_width_scrolls_sideways(context: BrowserContext, tmp_path: Path, width: int) -> None:
    long = "a_name_without_any_break_" * 12
    for number, state in enumerate(("done", "done", "failed")):
        run = tmp_path / f"{long[:200]}{number}"
        draw_run(
            run,
            [f"head={long}{number}", f"backbone.{long}=1"],
            state,
            long,
            val_accuracy=0.9,
            dataset=f"{number}{long}",
        )  # type: ignore[arg-type]
        (run / "config.yaml").write_text(f"data: {{root: /{long}}}")
        draw_answers(run, (long, long[1:]))
    page = opened(context, draw_sweep(tmp_path))
    assert page.locator("#sets option").count() == 3
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("button", name="Runs and commands of").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.wait_for_function(
        "() => [...document.querySelectorAll('.plot')].every(p => p.firstChild.getAttribute('width') == p.clientWidth)"
    )


def test_one_data_set_is_shown_at_a_time(context: BrowserContext, tmp_path: Path) -> None:
    for name in ("x", "y"):
        draw_run(tmp_path / name, [f"data.root=/{name}", "head=a"], val_accuracy=0.9)
    page = opened(context, tmp_path)
    assert page.locator("#sets option").all_inner_texts() == ["/x", "/y"]
    page.get_by_role("button", name="Runs and commands of").click()
    assert page.locator("td.detail code").last.inner_text() == f"python -m tl_research predict {tmp_path / 'x'} PHOTOS"
    page.select_option("#sets", "/y")
    page.wait_for_function("document.getElementById('sets')?.value === '1'")
    page.get_by_role("button", name="Runs and commands of").click()
    assert str(tmp_path / "y") in page.locator("td.detail code").last.inner_text()


def test_hostile_names_are_shown_as_they_are(context: BrowserContext, tmp_path: Path) -> None:
    for name in ("x", "y"):
        draw_run(tmp_path / name, [f"head=<b>{name}</b>", f"data.root={HOSTILE[:40]}"], val_accuracy=0.9)
        draw_answers(tmp_path / name, ("<i>", "</script><script>throw 1</script>"))
    draw_run(tmp_path / "z", ["head=z"], "failed", HOSTILE)
    page = opened(context, tmp_path)
    assert page.locator("#table td.key").first.inner_text() == "<b>x</b>"
    assert page.locator("main b, main i, main script").count() == 0
    assert "alert(1)" in page.locator("#failures").inner_text()
    assert "is </script><script>throw 1</script>" in page.locator("#mistakes").inner_text()


def test_one_run_is_shown_without_comparisons(context: BrowserContext, tmp_path: Path) -> None:
    draw_run(tmp_path, ["head=mlp"], val_accuracy=0.9, num_parameters=10)
    draw_history(tmp_path, 4)
    page = opened(context, tmp_path)
    assert page.locator("#curves-charts figure").count() == 2
    needless = page.locator("#filters, #trade, #effects, #answers, #failures")
    assert needless.evaluate_all("all => all.every(one => one.hidden)")


def test_failures_alone_are_shown(context: BrowserContext, tmp_path: Path) -> None:
    for name in "abc":
        draw_run(tmp_path / name, [f"head={name}"], "failed", "InputError: the same for all")
    page = opened(context, tmp_path)
    assert "No run has come to a number" in page.locator("#winner").inner_text()
    assert page.locator(".failure").count() == 1, "what has one reason is told once"
    assert page.locator(".failure strong").inner_text() == "a, b, c"


def test_it_prints(page: Page) -> None:
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("#filters").is_hidden()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
