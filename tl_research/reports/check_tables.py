"""The tables of a full check."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tl_research.data.check_findings import CheckFindings, DuplicatePair

Table = tuple[list[str], list[list[Any]]]
"""A header and rows."""


def manifest_table(findings: CheckFindings) -> Table:
    """List every file: used, set aside, or passed over."""
    group_of = {index: name for name, members in _named_groups(findings) for index in members}
    data, facts, header = findings.data, findings.facts, ["path", "digest", "format", "size"]
    rows: list[list[Any]] = [
        [
            *(name, data.digests[i].hex(), facts.formats[i], f"{facts.widths[i]}x{facts.heights[i]}"),
            *(findings.class_of(i), group_of.get(i, ""), data.split_of[i], "used", findings.odd.get(i, "")),
        ]
        for i, name in enumerate(findings.names)
    ]
    rows += [[str(bad.path), bad.digest.hex(), *[""] * 5, "set aside", bad.reason] for bad in data.quarantined]
    rows += [[str(path), *[""] * 6, "passed over", "not an image in a class folder"] for path in data.ignored]
    return [*header, "class", "group", "split", "status", "reason"], rows


def _named_groups(findings: CheckFindings) -> list[tuple[str, list[int]]]:
    return [(f"duplicates-{number:04}", members) for number, members in enumerate(findings.groups, 1)]


def duplicates_table(findings: CheckFindings) -> Table:
    """List the images of each set of duplicates, as `data.group_by` takes it."""
    best: dict[int, DuplicatePair] = {}
    for pair in findings.pairs:
        for index in (pair.first, pair.second):
            if index not in best or pair.score > best[index].score:
                best[index] = pair
    rows = [
        [findings.names[index], name, best[index].kind, best[index].score]
        for name, members in _named_groups(findings)
        for index in members
    ]
    return ["path", "group", "kind", "score"], rows


def labels_table(findings: CheckFindings) -> Table:
    """List the labels, the most doubtful first."""
    names, classes = findings.names, findings.data.class_names
    rows = [
        [names[each.index], findings.class_of(each.index), classes[each.suggested], each.score]
        for each in findings.doubts
    ]
    return ["path", "label", "suggested", "score"], rows


def leaks_table(findings: CheckFindings) -> Table:
    """List the pairs that lie in two of the source's splits."""
    placed = list(zip(findings.names, findings.data.found.given, strict=True))
    rows = [[*placed[pair.first], *placed[pair.second], pair.kind, pair.score] for pair in findings.leaks]
    return ["path", "split", "other", "other_split", "kind", "score"], rows


def findings_as_dict(findings: CheckFindings) -> dict[str, Any]:
    """Return plain data for `check.json`."""
    growth = findings.growth
    return {
        "dataset": findings.data.dataset,
        "root": str(findings.data.root),
        "num_images": len(findings.data),
        "num_set_aside": len(findings.data.quarantined),
        "num_passed_over": len(findings.data.ignored),
        "num_duplicate_groups": len(findings.groups),
        "num_near_pairs": len(findings.near),
        "num_conflicts": len(findings.conflicts),
        "num_leaks": len(findings.leaks),
        "num_label_doubts": sum(doubt.is_confident for doubt in findings.doubts),
        "near_duplicates": [
            {"path": findings.names[pair.first], "other": findings.names[pair.second], "score": pair.score}
            for pair in findings.near
        ],
        "equal_images": findings.data.found.as_dict()["equal_images"],
        "odd_images": [{"path": findings.names[index], "what": what} for index, what in findings.odd.items()],
        "shortcuts": [asdict(each) | {"is_found": each.is_found} for each in findings.shortcuts],
        "learning_curve": None if growth is None else asdict(growth),
    }
