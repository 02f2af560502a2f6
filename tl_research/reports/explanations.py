"""Write explanations of images: pictures, arrays, a table and a page."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tl_research.errors import InputError
from tl_research.evaluation.evaluate import THUMBNAIL, as_jpeg
from tl_research.evaluation.explain import Explainer, Explanation, overlay
from tl_research.reports.answered import read_answered
from tl_research.reports.static_page import section, static_page
from tl_research.runs.run import Run, as_csv
from tl_research.system.files import write_atomically
from tl_research.system.progress import bar

MOST_DOUBTFUL = 12
MOST_SECONDS = 20.0
HEADER = ["path", "class", "prediction", "probability", "logit", "picture", "heat", "error"]

log = logging.getLogger(__name__)


def doubtful_images(run: Run) -> list[Path]:
    """List test images that a run answered wrongly and most surely, then those it was least sure of. Raises
    `InputError` if it has no answers."""
    answered = read_answered(run.directory)
    if answered:
        chosen = [*answered.most_sure_mistakes(MOST_DOUBTFUL), *answered.least_sure(MOST_DOUBTFUL)]
        return list(dict.fromkeys(Path(answer["path"]) for answer in chosen))
    if not run.answers("predictions.csv"):
        raise InputError(f"{run.directory}: no predictions.csv; name images to explain")
    return []


def heat_maps(run: Run, paths: Sequence[Path], seconds: float = MOST_SECONDS) -> dict[str, str]:
    """Lay the heat of the predicted class over images: small JPEGs in base64, by path. Those that `seconds` do not
    suffice for are left out, and all of them, with a warning, where the network cannot be explained."""
    from tl_research.backend.start import start_backend

    maps: dict[str, str] = {}
    if not (paths and (run.directory / "model.keras").is_file()):
        return maps
    try:
        start_backend()
        explainer, began = Explainer(run), time.monotonic()
        for one in explainer.explain(paths):
            if one.heat is not None and one.pixels is not None:
                image = overlay(one.pixels, one.heat)
                image.thumbnail((THUMBNAIL, THUMBNAIL))
                maps[str(one.path)] = as_jpeg(image)
            if time.monotonic() - began > seconds:
                break
    except Exception as error:  # the report stands without them
        log.warning("%s: no maps in the report (%.300s)", run.directory, " ".join(str(error).split()))
    return maps


def write_explanations(
    explanations: Iterable[Explanation], total: int, folder: Path, *, pictures: bool = True
) -> tuple[Path, int]:
    """Write for each image `NUMBER-NAME.png`, the heat over the network's input, and `.npy`, the heat as float32
    `(h, w)`; then `explain.csv` and `explain.html`. Without `pictures` there is no `.png`. Return the page and the
    number of images without explanation."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    figures: list[str] = []
    with bar() as progress:
        task = progress.add_task("explaining", total=total)
        for number, one in enumerate(explanations):
            row, figure = _write(one, f"{number:04}-{one.path.stem}", folder, pictures)
            rows.append(row)
            figures.append(figure)
            progress.advance(task)
    write_atomically(folder / "explain.csv", as_csv(HEADER, rows))
    cards = '<div class="cards">\n' + "\n".join(figures) + "\n</div>"
    page = static_page("What speaks for each class", section("Images", cards), files=True)
    write_atomically(folder / "explain.html", page)
    return folder / "explain.html", sum(bool(row[-1]) for row in rows)


def _write(one: Explanation, name: str, folder: Path, pictures: bool) -> tuple[list[object], str]:
    if one.heat is None or one.pixels is None:
        row: list[object] = [str(one.path), *[""] * (len(HEADER) - 2), one.error]
        return row, f"<figure><figcaption>{escape(one.path.name)}<br>{escape(one.error)}</figcaption></figure>"
    if pictures:
        overlay(one.pixels, one.heat).save(folder / f"{name}.png")
    np.save(folder / f"{name}.npy", one.heat)
    lines = [one.path.name, f"{one.explained}: {one.probability:.0%}"]
    if one.explained != one.prediction:
        lines.append(f"the answer is {one.prediction}")
    caption = "<br>".join(map(escape, lines))
    picture = f'<img src="{quote(os.fsencode(name))}.png" alt="">' if pictures else ""
    figure = f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
    files = [f"{name}.png" if pictures else "", f"{name}.npy"]
    return [str(one.path), one.explained, one.prediction, one.probability, one.logit, *files, ""], figure
