"""Write and show what a full check has found: tables, a page, and a summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from pathlib import Path

from tl_research.data.check_findings import CheckFindings, DuplicatePair, Growth
from tl_research.data.data_check import path_below
from tl_research.data.ignore_list import HEADER, LABEL_IS_RIGHT, NO_DUPLICATE
from tl_research.errors import InputError
from tl_research.reports.check_tables import (
    duplicates_table,
    findings_as_dict,
    labels_table,
    leaks_table,
    manifest_table,
)
from tl_research.reports.static_page import html_table, image_cards, paragraph, section, static_page
from tl_research.runs.run import as_csv
from tl_research.system.console import make_table, show, show_table
from tl_research.system.files import write_atomically

MOST_CARDS = 60
NOTHING = "None found."


def write_check(findings: CheckFindings, folder: Path, *, pictures: bool = True) -> None:
    """Write `manifest.csv`, `duplicates.csv`, `labels.csv`, `leaks.csv`, `check.json` and `check.html`, which may show
    `pictures`, each atomically. Raises `InputError` if the folder cannot be written."""
    tables = {
        "manifest": manifest_table(findings),
        "duplicates": duplicates_table(findings),
        "labels": labels_table(findings),
        "leaks": leaks_table(findings),
    }
    contents = {f"{name}.csv": as_csv(*table) for name, table in tables.items()}
    contents["check.json"] = json.dumps(findings_as_dict(findings), indent=2) + "\n"
    contents["check.html"] = check_page(findings, pictures=pictures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


def show_check(findings: CheckFindings, folder: Path) -> None:
    """Show a summary on the terminal."""
    table = make_table(f"{len(findings.data)} images in {findings.data.root}", "checked", "found", "such as")
    for what, examples in _summary(findings).items():
        shown = "; ".join(examples[:2])
        table.add_row(what, str(len(examples)), shown if len(shown) < 100 else f"{shown[:97]}...")
    show_table(table)
    show(*_growth_lines(findings.growth), folder / "check.html")


def _summary(findings: CheckFindings) -> dict[str, list[str]]:
    """List what was found, in words."""
    names, data = findings.names, findings.data
    return {
        "set aside, cannot be read": [f"{path_below(bad.path, data.root)}: {bad.reason}" for bad in data.quarantined],
        "odd (blank, tiny, extreme, wrong ending)": [f"{names[i]}: {note}" for i, note in findings.odd.items()],
        "sets of equal images": [_joined(findings, each.members) for each in data.found.equal],
        "pairs of near duplicates": [_joined(findings, (pair.first, pair.second)) for pair in findings.near],
        "pairs across the folder's own splits (leaks)": [_pair(findings, pair) for pair in findings.leaks],
        "pairs with different labels (conflicts)": [_pair(findings, pair) for pair in findings.conflicts],
        "doubtful labels": [
            f"{names[doubt.index]}: {findings.class_of(doubt.index)}, or {data.class_names[doubt.suggested]}?"
            for doubt in findings.doubts
            if doubt.is_confident
        ],
        "shortcuts": [
            f"{each.fact} alone predicts the class: {each.balanced_accuracy:.2f} balanced accuracy "
            f"(chance {each.chance:.2f})"
            for each in findings.shortcuts
            if each.is_found
        ],
    }


def _joined(findings: CheckFindings, members: Iterable[int]) -> str:
    return " = ".join(findings.names[index] for index in members)


def _pair(findings: CheckFindings, pair: DuplicatePair) -> str:
    return _joined(findings, (pair.first, pair.second))


def _growth_lines(growth: Growth | None) -> list[str]:
    if growth is None:
        return ["too few images for a learning curve: it takes 10 of each class"]
    lines = [
        f"{more} more a class: {x:.2f} ({low:.2f} - {high:.2f})" for more, (x, low, high) in growth.expected.items()
    ]
    return [f"expected accuracy of a solved head: {'; '.join(lines)}"]


def check_page(findings: CheckFindings, *, pictures: bool = True) -> str:
    """Make the page: what was found, with small `pictures`, and the lines to paste into `data.ignore`."""
    images = partial(_images, findings, pictures)
    summary = [[what, str(len(examples))] for what, examples in _summary(findings).items()]
    growth = [paragraph(line) for line in _growth_lines(findings.growth)]
    if findings.growth:
        rows = [[str(size), f"{accuracy:.3f}"] for size, accuracy in findings.growth.measured.items()]
        growth.append(html_table(["images of a class learned from", "accuracy on others"], rows))
    tested = [
        [each.fact, *(f"{number:.3f}" for number in (each.balanced_accuracy, each.chance, each.p_value))]
        for each in findings.shortcuts
    ]
    kinds = {index: pair for pair in reversed(findings.pairs) for index in (pair.first, pair.second)}
    duplicates = [index for members in findings.groups for index in members]
    names = findings.data.class_names
    doubted = {each.index: (names[each.suggested], each.score) for each in findings.doubts if each.is_confident}
    crossing = [index for pair in findings.leaks for index in (pair.first, pair.second)]
    return static_page(
        f"Check of {findings.data.root.name}",
        section("Summary", html_table(["checked", "found"], summary)),
        images("Doubtful labels", list(doubted), lambda i: [f"or {doubted[i][0]}? {doubted[i][1]:.2f}"]),
        images("Leaks across the folder's own splits", crossing, lambda i: [findings.data.split_of[i]]),
        images("Duplicates", duplicates, lambda i: [f"{kinds[i].kind}, {kinds[i].score:.2f}"]),
        images("Odd images", list(findings.odd), lambda i: [findings.odd[i]]),
        section("Shortcuts", html_table(["fact alone", "balanced accuracy", "chance", "p (Holm)"], tested)),
        section("How many more images", *growth),
        _ignore_lines(findings),
    )


def _images(
    findings: CheckFindings, pictures: bool, title: str, indices: list[int], lines: Callable[[int], list[str]]
) -> str:
    cards = (
        (findings.data.paths[i], [findings.names[i], f"class {findings.class_of(i)}", *lines(i)])
        for i in indices[:MOST_CARDS]
    )
    left_out = len(indices) - MOST_CARDS
    more = [paragraph(f"{left_out} more are in the tables.")] if left_out > 0 else []
    shown = (
        image_cards(cards, pictures=pictures, pixel_range=findings.data.pixel_range) if indices else paragraph(NOTHING)
    )
    return section(f"{title} ({len(indices)} images)", shown, *more)


def _ignore_lines(findings: CheckFindings) -> str:
    """Make the lines that say of each finding that it is none."""
    names = findings.names
    rows = [[NO_DUPLICATE, names[pair.first], names[pair.second]] for pair in findings.near]
    rows += [[LABEL_IS_RIGHT, names[doubt.index], ""] for doubt in findings.doubts if doubt.is_confident]
    if not rows:
        return ""
    note = "Paste the lines of findings that are none into a file, and give it as data.ignore=FILE."
    return section("Lines for data.ignore", paragraph(note), f"<pre><code>{escape(as_csv(HEADER, rows))}</code></pre>")
