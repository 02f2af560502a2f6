"""Test tables of images and classes: columns, paths, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import draw_tree
from tl_research import InputError, compose
from tl_research.data.table_source import Table, read_table


@pytest.fixture
def photos_in(tmp_path: Path) -> Path:
    """Draw 7 images of each class, with names of their own, into `images/red/` and `images/blue/`."""
    draw_tree(tmp_path / "images", {"red": 7, "blue": 7})
    for path in sorted((tmp_path / "images").rglob("*.jpg")):
        path.rename(path.with_name(f"{path.parent.name}{path.name}"))
    return tmp_path


def write(folder: Path, header: str, line: str, separator: str = ",", encoding: str = "utf-8") -> Path:
    """Write a table of the images of `photos_in`; `line` has the fields `{path}`, `{name}`, `{stem}` and `{label}`."""
    images = sorted((folder / "images").rglob("*.jpg"))
    lines = [
        line.format(
            path=p.relative_to(folder), name=p.name, stem=p.stem, label=p.parent.name, number=i, part=PARTS[i % 7]
        )
        for i, p in enumerate(images)
    ]
    text = "\n".join([header, *lines] if header else lines)
    (folder / "labels.csv").write_text(text.replace(",", separator) + "\n", encoding=encoding)
    return folder / "labels.csv"


PARTS = ["train", "Train", "training", "val", "valid", "test", "TEST"]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("path,label", "{path},{label}"),
        ("label,path", "{label},{path}"),
        ("Class Name,Image-Path", "{label},{path}"),
        ("id,breed", "{stem},{label}"),
        ("image_id,dx,age", "{stem},{label},{number}"),
        ("photo,what", "{name},{label}"),
        ("id,picture,class", "{number},{name},{label}"),
        ("file,target", "C:\\data\\{name},{label}"),
        ("filename,species", "elsewhere/{stem}.png,{label}"),
        ("filename,label", "Images/{label}/{stem},{label}"),
        ("", "{path},{label}"),
        ("path,label", '"{path}"," {label} "'),
    ],
)
@pytest.mark.parametrize(("separator", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")])
def test_columns_and_paths_are_found(photos_in: Path, header: str, line: str, separator: str, encoding: str) -> None:
    tree = read_table(write(photos_in, header, line, separator, encoding))
    assert tree.class_names == ["blue", "red"]
    expected = {name: sorted((photos_in / "images" / name).iterdir()) for name in tree.class_names}
    assert tree.files == {"all": expected}


def test_named_columns_root_group_and_split(photos_in: Path) -> None:
    table = write(photos_in, "a,b,split,patient_id", "{stem},{label},{part},p{number}")
    source = Table(table=str(table), images=str(photos_in / "images"), path_column="a", label_column="b")
    data = source.load()
    assert data.counts()["train"] == {"blue": 3, "red": 3}
    assert data.counts()["test"] == {"blue": 2, "red": 2}
    assert data.groups is not None
    assert len(set(data.groups)) == 14
    assert data.root == photos_in / "images"


def test_groups_are_not_divided(photos_in: Path) -> None:
    lines = [f"{p.relative_to(photos_in)},{p.parent.name},g{p.stem[-1]}" for p in sorted(photos_in.rglob("*.jpg"))]
    (photos_in / "labels.csv").write_text("\n".join(["path,label,group", *lines]))
    data = Table(table=str(photos_in / "labels.csv")).load()
    assert data.groups is not None
    split_of = {group: set(data.split_of[data.groups == group]) for group in set(data.groups)}
    assert all(len(splits) == 1 for splits in split_of.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("path,label\n", "expected two classes"),
        ("path,label\nred000,red\nred001,red\n", "1 class"),
        ("path,label\nred000,red\nred000,blue\nblue000,blue\n", "red000 has the labels 'red' and 'blue'"),
        ("path,label\nnone1,red\nnone2,blue\nnone3,blue\n", "none of its 3 images is there.*none1.*data.images=FOLDER"),
        ("path,label\nsame,red\nblue001,blue\n", "'same' may be images/blue/same.jpg and images/red/same.jpg"),
        ("path,label\nx/images/red/red000.jpg,a\nx/images/blue/none,b\n", "leave out 'x/' in the paths"),
        ("path,label\nred/red000.jpg,a\nblue/none,b\n", "red000.jpg is there: give data.images=.*/images$"),
        (
            "path,label,split\nred001,a,train\nred002,b,test\nred003,b,tset\n",
            "column 'split' has 'tset' in row 3; use ",
        ),
        ("path,label,Set\nred001,a,train\nred002,b,test\nred003,b,\n", "column 'Set' is empty in row 3; use train"),
        ("path,a,b\nred000,1,2\nblue001,2,2\n", "which column holds the label.*data.label_column, one of path, a, b"),
        ("a,b\n1,2\n2,2\n", "which column holds the path.*data.path_column"),
        ("path,label\nred000,1\nred001,2\nblue000,3\n", "a label of its own.*data.label_column"),
        ("\x00\x01\x02", "not a table"),
    ],
)
def test_an_error_names_what_is_wrong(photos_in: Path, text: str, words: str) -> None:
    for name in ("red", "blue"):
        (photos_in / "images" / name / "same.jpg").write_bytes(b"")
    (photos_in / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=f"data.table=.*labels.csv.*{words}"):
        read_table(photos_in / "labels.csv")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": "what"}, "data.label_column=what: .* has no such column; it has path, label, part"),
        ({"split": "part"}, "column 'part' has '0' in row 1; use train, val or test"),
    ],
)
def test_a_column_that_does_not_fit_is_named(photos_in: Path, columns: dict[str, str], words: str) -> None:
    table = write(photos_in, "path,label,part", "{path},{label},{number}")
    with pytest.raises(InputError, match=words):
        read_table(table, columns=columns)


def test_a_path_with_a_folder_is_no_other_image(photos_in: Path) -> None:
    table = write(photos_in, "path,label", "{path},{label}")
    table.write_text(table.read_text().replace("images/red/red000.jpg", "images/reed/red000.jpg"))
    tree = read_table(table)
    assert photos_in / "images/reed/red000.jpg" in tree.files["all"]["red"]
    assert photos_in / "images/red/red000.jpg" not in tree.files["all"]["red"]


@pytest.mark.parametrize("name", ["PatientID", "case_id", "mrn", "Subject ID", "participant-id", "StudyInstanceUID"])
def test_groups_are_found_under_common_names(photos_in: Path, name: str) -> None:
    tree = read_table(write(photos_in, f"path,label,{name},age", "{path},{label},p{number},{number}"))
    assert set(tree.groups.values()) == {f"p{number}" for number in range(14)}
    assert tree.notes[0].endswith(f"group from '{name}'")


def test_missing_files_are_set_aside_by_name(photos_in: Path) -> None:
    table = write(photos_in, "path,label", "{path},{label}")
    table.write_text(table.read_text() + "images/gone.jpg,red\nimages/red/red000.jpg,red\n,red\n")
    data = Table(table=str(table), max_bad=0.1).load()
    assert [(bad.path.name, bad.reason) for bad in data.quarantined] == [("gone.jpg", "no such file")]
    with pytest.raises(InputError, match=r"gone\.jpg \(no such file\)"):
        Table(table=str(table)).load()


def test_parquet_is_read_or_its_extra_is_named(photos_in: Path) -> None:
    table = photos_in / "labels.parquet"
    table.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"tl_research\[parquet\]|cannot be read"):
        read_table(table)
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = sorted(photos_in.rglob("*.jpg"))
    columns = {"id": [path.stem for path in images], "label": [int(path.parent.name == "red") for path in images]}
    parquet.write_table(pyarrow.table(columns), table)
    assert read_table(table).class_names == ["0", "1"]


def test_preflight_names_a_table_that_is_not_there(tmp_path: Path) -> None:
    experiment = compose(["data=csv", f"data.table={tmp_path / 'none.csv'}"])
    with pytest.raises(InputError, match=r"none\.csv: cannot be read \(No such file"):
        experiment.data.preflight()
