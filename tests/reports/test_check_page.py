"""Test the tables and the page of check_findings, by check_tables and check_page, and what full_check remembers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw_tree
from tl_research.data.check_findings import CheckFindings, Growth
from tl_research.data.image_facts import measure_images
from tl_research.data.known_duplicates import leaking, remember_duplicates
from tl_research.data.label_doubts import LabelDoubt
from tl_research.data.near_duplicates import NearPair
from tl_research.data.shortcuts import Shortcut
from tl_research.data.sources import Folder
from tl_research.experiment.full_check import without_leaks
from tl_research.reports.check_page import show_check, write_check
from tl_research.reports.check_tables import duplicates_table, findings_as_dict, leaks_table, manifest_table


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> CheckFindings:
    """Make findings on 12 images: 0 and 1 are equal, 2 is nearly image 8, which is a test image of the other class."""
    root = draw_tree(tmp_path_factory.mktemp("found") / "a<b", {"train/blue": 4, "train/red": 4, "test/red": 4})
    (root / "train/blue/001.jpg").write_bytes((root / "train/blue/000.jpg").read_bytes())
    (root / "train/blue/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    data = Folder(root=str(root), max_bad=0.5, min_images=1).load()
    return CheckFindings(
        data,
        measure_images(data.paths),
        [NearPair(2, 8, 1.9)],
        [LabelDoubt(5, 0, 0.9, True), LabelDoubt(6, 0, 0.2, False)],
        [Shortcut("size", 0.8, 0.5, 0.001)],
        Growth({4: 0.8}, {100: (0.93, 0.9, 0.95)}),
    )


def test_a_file_that_is_set_aside_is_shown_with_its_folder(
    findings: CheckFindings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_check(findings, tmp_path)
    bad = findings.data.quarantined[0].path
    assert f"{bad.relative_to(findings.data.root)}: " in capsys.readouterr().out


def test_tables_tell_groups_leaks_and_each_file(findings: CheckFindings) -> None:
    names = findings.names
    assert findings.groups == [[0, 1], [2, 8]]
    assert [row[1:3] for row in duplicates_table(findings)[1]] == [
        *[["duplicates-0001", "file"]] * 2,
        *[["duplicates-0002", "near"]] * 2,
    ]
    assert leaks_table(findings)[1] == [[names[2], "train", names[8], "test", "near", 1.9]]
    assert [pair.kind for pair in findings.conflicts] == ["near"]
    header, rows = manifest_table(findings)
    assert [row[header.index("status")] for row in rows] == ["used"] * 12 + ["set aside"]
    assert findings_as_dict(findings)["num_leaks"] == 1


def test_the_page_escapes_names_and_writes_ignore_lines(findings: CheckFindings, tmp_path: Path) -> None:
    write_check(findings, tmp_path / "out")
    show_check(findings, tmp_path / "out")
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "Check of a&lt;b" in page
    assert f"no duplicate,{findings.names[2]},{findings.names[8]}" in page
    assert f"label is right,{findings.names[5]}," in page
    assert "100 more a class: 0.93 (0.90 - 0.95)" in page
    assert page.count("<img") == 1 + 2 + 4 + len(findings.odd)


def test_later_runs_know_which_test_images_leak(findings: CheckFindings, tmp_path: Path) -> None:
    data, digests = findings.data, [digest.hex() for digest in findings.data.digests]
    assert without_leaks(np.eye(2)[[1, 1, 1, 0]], data, tmp_path) == {}
    two_of_the_test = digests[9], digests[10]
    remember_duplicates(tmp_path, data.dataset, [(digests[2], digests[8]), two_of_the_test])
    assert leaking(tmp_path, data).tolist() == [True, False, False, False]
    told = without_leaks(np.eye(2)[[1, 1, 1, 0]], data, tmp_path)
    assert told == {"num_test_leaks": 1, "test_accuracy_without_leaks": pytest.approx(2 / 3)}
    remember_duplicates(None, data.dataset, [])
    assert without_leaks(np.eye(2)[[1] * 4], data, None) == {}
