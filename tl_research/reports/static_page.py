"""Pages in the report's look that need no script: they open offline and may fetch nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from tl_research.data.pixel_range import AS_STORED, PixelRange
from tl_research.evaluation.evaluate import thumbnail

STYLE = Path(__file__).parent / "templates" / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MORE_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
.cards figure { margin: 0 } .cards img { max-width: 100% } .cards figcaption { overflow-wrap: anywhere }
.wide { overflow-x: auto }
.wide :is(td, th) { overflow-wrap: anywhere; padding: 0.2rem 1rem 0.2rem 0; text-align: start }
"""


def static_page(title: str, *sections: str, files: bool = False) -> str:
    """Make a page of a title and sections of HTML; what they show must have gone through `html.escape`. With `files` it
    may show pictures that lie beside it."""
    policy = POLICY.replace("img-src", "img-src 'self' file:") if files else POLICY
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>{escape(title)}</title>\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}{MORE_STYLE}</style>\n</head>\n<body>\n"
        f'<header class="page"><h1>{escape(title)}</h1></header>\n<main>\n'
        + "\n".join(sections)
        + "\n</main>\n</body>\n"
    )


def section(title: str, *parts: str) -> str:
    """Make a section with a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str) -> str:
    """Make a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table of plain text."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def image_cards(
    cards: Iterable[tuple[Path, Sequence[str]]], *, pictures: bool = True, pixel_range: PixelRange = AS_STORED
) -> str:
    """Make a grid of photographs, each with lines of plain text below; without `pictures` only the text."""
    figures = []
    for path, lines in cards:
        data = thumbnail(path, pixel_range) if pictures else ""
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(path.name)}">' if data else ""
        figures.append(f"<figure>{picture}<figcaption>{'<br>'.join(map(escape, lines))}</figcaption></figure>")
    return '<div class="cards">\n' + "\n".join(figures) + "\n</div>"
