"""Test lists of groups and splits: any list keeps its groups whole, and one that does not fit is named in a line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tl_research.data import file_index
from tl_research.data.build_dataset import split_dataset
from tl_research.data.class_folders import ClassFolders, read_class_folders
from tl_research.data.file_index import FileIndex
from tl_research.data.path_lists import is_list, listed_groups, split_by_list
from tl_research.data.sources import Folder
from tl_research.data.table_file import read_cells
from tl_research.errors import InputError

COUNT = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 36 images of two classes; of every nine, the last two are equal, in file or in pixels, the second pair in
    two classes."""
    root = tmp_path_factory.mktemp("listed")
    for number in range(COUNT):
        same = number - (number % 9 == 8)
        pixels = np.random.default_rng(same).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        path = root / ("a", "b")[number // 17 % 2] / f"{number:02d}.{'bmp' if number > 20 and same < number else 'png'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def tree(folder: Path) -> ClassFolders:
    return read_class_folders(folder)


def listed(folder: Path, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> Path:
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def paths_of(tree: ClassFolders) -> list[Path]:
    return sorted((path for paths in tree.files["all"].values() for path in paths), key=lambda path: path.stem)


rows_of_groups = st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, 14)), min_size=1, max_size=50)


@settings(max_examples=30)
@given(
    rows=rows_of_groups,
    seed=st.integers(0, 99),
    shares=st.sampled_from([(0.2, 0.2), (0.3, 0), (0, 0.4)]),
    repeat=st.sampled_from([None, 0, 2]),
)
def test_no_list_of_groups_is_ever_divided(
    rows: list[tuple[int, int]],
    seed: int,
    shares: tuple[float, float],
    repeat: int | None,
    tree: ClassFolders,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    paths, home = paths_of(tree), tmp_path_factory.getbasetemp()
    table = listed(home, [(paths[i].relative_to(tree.root).as_posix(), f"g{g}") for i, g in rows], ("path", "group"))
    folds = {} if repeat is None else {"folds": 3, "fold": seed % 3, "repeat": repeat}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_index, "SETTLED_NS", -(10**12))
        index = FileIndex(home / "index")
        options = {"val": shares[0], "test": shares[1], "max_bad": 0, "split_seed": seed, "group_by": str(table)}
        try:
            data = split_dataset(tree, index=index, **options, **folds)
        except InputError:  # a class has too few groups
            reject()
    equal = [(i, i - 1) for i in range(8, COUNT, 9)]
    edges = [(i, COUNT + g) for i, g in rows] + equal
    matrix = coo_array((np.ones(len(edges)), np.array(edges).T), shape=(COUNT + 15, COUNT + 15))
    _, component = connected_components(matrix)
    number = {path: int(path.stem) for path in data.paths}
    sides: dict[int, set[str]] = {}
    for path, split in zip(data.paths, data.split_of, strict=True):
        sides.setdefault(int(component[number[path]]), set()).add(str(split))
    assert all(len(each) == 1 for each in sides.values())


def test_groups_join_through_a_path_in_several_rows(tree: ClassFolders, tmp_path: Path) -> None:
    paths = paths_of(tree)[:5]
    names = [path.relative_to(tree.root).as_posix() for path in paths]
    rows = [(names[0], "1"), (names[1], "1"), (names[1], "2"), ("gone.png", "2"), ("gone.png", "3"), (names[3], "3")]
    groups = listed_groups(paths, tree.root, listed(tmp_path, rows, ("path", "group"))).tolist()
    assert groups == ["1", "1", names[2], "1", names[4]]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("path", "kind"), [("a/00.png", "x")], "it has no column 'group'; it has path, kind"),
        (("path", "group"), [("a/00.png", "1"), ("a/01.png", "")], r"row 2 \(a/01\.png\) has no group"),
        (("path", "group"), [("x.png", "1")], r"it names no image in .*, not even x\.png"),
        (("path", "group"), [], "it has no rows"),
    ],
)
def test_a_list_of_groups_that_does_not_fit_is_named(
    tree: ClassFolders, tmp_path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(InputError, match=rf"data\.group_by=.*list\.csv: {message}"):
        listed_groups(paths_of(tree), tree.root, listed(tmp_path, rows, header))


def test_splits_are_taken_from_a_table_and_from_text_files(tree: ClassFolders, tmp_path: Path) -> None:
    names = [path.relative_to(tree.root).as_posix() for path in paths_of(tree)]
    table = listed(tmp_path, [(name, "Test" if i % 3 else "train") for i, name in enumerate(names)], ("path", "split"))
    for split, chosen in (("train", names[::3]), ("test", [name for i, name in enumerate(names) if i % 3])):
        (tmp_path / f"{split}.txt").write_text("\n".join(name.rpartition(".")[0] for name in chosen))
    found = [split_by_list(tree, source).files for source in (table, tmp_path)]
    assert found[0] == found[1]
    assert sorted(path for paths in found[0]["train"].values() for path in paths) == sorted(paths_of(tree)[::3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x.png": "test"}, r"it names what is no image in a class of .*: x\.png"),
        ({"a/00.png": "", "a/01.png": ""}, r"row 1 \(a/00\.png\) has no split"),
        ({"a/00.png": None, "a/01.png": None}, r"it leaves out images of .*: a/00\.png and 1 more"),
        ({"a/00.png": "holdup"}, r"'holdup' of a/00\.png is no split; write train, val or test"),
        ({"a/00": "test"}, r"a/00 is in train and in test"),
        (None, "it names no training images"),
    ],
)
def test_a_list_of_splits_that_does_not_fit_is_named(
    tree: ClassFolders, tmp_path: Path, changes: dict[str, str | None] | None, message: str
) -> None:
    names = [path.relative_to(tree.root).as_posix() for path in paths_of(tree)]
    splits = dict.fromkeys(names, "test" if changes is None else "train") | (changes or {})
    rows = [(name, split) for name, split in splits.items() if split is not None]
    with pytest.raises(InputError, match=rf"data\.split_by=.*list\.csv: {message}"):
        split_by_list(tree, listed(tmp_path, rows, ("path", "split")))


def test_a_missing_list_is_no_expression(tree: ClassFolders, tmp_path: Path) -> None:
    assert [is_list(text) for text in ("a.csv", str(tmp_path), r"(patient\d+)_", "x" * 5000, "~nobody/[")] == [
        *(True, False, False, False, False)
    ]
    with pytest.raises(InputError, match=r"data\.group_by=a\.csv: cannot be read \(No such file"):
        read_cells(Path("a.csv"), "data.group_by")
    with pytest.raises(InputError, match=r"data\.split_by=.*: it holds no train\.txt"):
        Folder(root=str(tree.root), split_by=str(tmp_path), cache="").load()
