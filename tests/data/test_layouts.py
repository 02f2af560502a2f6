"""Test folders as people have them: what is read (`folder_scan`, `split_folders`, `labels_in_names`), what is said, and
what is refused (`label_table`)."""

from __future__ import annotations

import shutil
import unicodedata
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tl_research.data.class_folders import ClassFolders, read_class_folders
from tl_research.data.layout import LayoutOptions
from tl_research.data.sources import Folder
from tl_research.errors import InputError
from tl_research.evaluation.predict import images_in


def grow(root: Path, layout: str) -> Path:
    """Make a tree from words: `train/cat:3` is three images in a folder, `labels.csv` a file, `empty/` a folder."""
    for number, word in enumerate(layout.split()):
        place, _, count = word.partition(":")
        path = root / place
        (path if count or place.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not count and not place.endswith("/"):
            path.write_text("{}")
        for index in range(int(count or 0)):
            Image.fromarray(np.full((4, 4, 3), (number, index, 0), np.uint8)).save(path / f"{index}.png")
    return root


def read(root: Path, **options: object) -> ClassFolders:
    return read_class_folders(root, options=LayoutOptions(**options))  # type: ignore[arg-type]


def summary(tree: ClassFolders) -> str:
    """Write a tree as `train a3 b2, test a1`."""
    splits = (
        (split, (f"{name}{len(paths)}" for name, paths in classes.items())) for split, classes in tree.files.items()
    )
    return ", ".join(f"{split} {' '.join(classes)}" for split, classes in splits)


@pytest.mark.parametrize(
    ("layout", "expected", "said"),
    [
        # a split's word in a name, in any case
        ("Training/a:3 Training/b:2 Testing/a:1 Testing/b:1", "train a3 b2, test a1 b1", "test is Testing/"),
        ("training_set/a:3 training_set/b:2 test_set/a:1", "train a3 b2, test a1", "test/ of 'b'"),
        ("TRAIN/a:3 TRAIN/b:2 Validation/b:1 TEST/a:1 TEST/b:2", "train a3 b2, val b1, test a1 b2", "val/ of 'a'"),
        ("train/a:3 train/b:2 dev/a:1 hold-out/b:1", "train a3 b2, val a1, test b1", "test is hold-out/"),
        ("trainset/a:3 trainset/b:2 evalset/b:1", "train a3 b2, test b1", "test is evalset/"),
        ("train/a:3 train/b:2 eval/a:1 test/b:1", "train a3 b2, val a1, test b1", "val is eval/"),
        ("TrainImages/a:3 TrainImages/b:2 ValImages/a:1", "train a3 b2, val a1", "val is ValImages/"),
        ("train2017/a:3 train2017/b:2 test_data/a:1", "train a3 b2, test a1", "test is test_data/"),
        ("my_train/a:3 my_train/b:2 test/a:1", "train a3 b2, test a1", "train is my_train/"),
        ("a:3 b:2 test/a:1 test/b:1", "train a3 b2, test a1 b1", "test is test/"),
        ("a/train:3 b/train:2 a/test:1 b/test:2", "train a3 b2, test a1 b2", "in the class folders"),
        # a word beside others is a class
        ("test_tube:2 beaker:3 train_station:2", "all beaker3 test_tube2 train_station2", None),
        ("test_tube/x1:2 beaker/x2:3", "all beaker3 test_tube2", "deeper"),
        ("test:2 control:3", "all control3 test2", "test/ is taken for a class"),
        # a folder that holds one folder alone
        ("seg_train/seg_train/a:3 seg_train/seg_train/b:2 seg_test/seg_test/a:1", "train a3 b2, test a1", "seg_test"),
        ("training/training/a:3 training/training/b:2", "train a3 b2", "training/training"),
        ("x/y/train/a:3 x/y/train/b:2 x/y/valid/a:1 x/README.md", "train a3 b2, val a1", "x/y/valid"),
        ("archive/PetImages/a:3 archive/PetImages/b:2 docs/", "all a3 b2", None),
        # no labels
        ("train/a:3 train/b:2 test:4", "train a3 b2", "test/ has 4 image(s) without labels"),
        ("train/a:3 train/b:2 test/test:4", "train a3 b2", "predict RUN"),
        ("train/a:3 train/b:2 test/images:4 unlabeled/x:4", "train a3 b2", "unlabeled/ is none of the splits"),
        ("seg_train/a:3 seg_train/b:2 seg_test/a:1 seg_pred:4", "train a3 b2, test a1", "seg_pred/ is none of the"),
        # images at any depth
        ("ill/patient01:2 ill/patient02/left:1 ill:1 well/patient03:2", "all ill4 well2", "deeper"),
        ("animals/cat:2 animals/dog:1 cars/bus:2", "all animals3 cars2", "look like classes"),
        ("day1/cat:2 day1/dog:1 day2/cat:2 day2/dog:1", "all day13 day23", "look like classes"),
        # classes
        ("a:3 b:2 c/", "all a3 b2", "no images in 'c'"),
        ("train/Cat:3 train/dog:2 test/cat:1 test/DOG:1", "train Cat3 dog2, test Cat1 dog1", None),
        ("Cat:3 cat:2 dog:1", "all Cat3 cat2 dog1", "'Cat' and 'cat' differ in case alone"),
        # junk
        ("a:3 b:2 .ipynb_checkpoints:1 a/@eaDir:1 __MACOSX/a:1 b/Thumbs.db", "all a3 b2", "4 hidden or system"),
        ("a:3 b:2 outputs/r/x:1 outputs/r/config.yaml outputs/r/metrics.json", "all a3 b2", "runs of this program"),
    ],
)  # fmt: skip
def test_a_layout_is_read_and_said(tmp_path: Path, layout: str, expected: str, said: str | None) -> None:
    tree = read(grow(tmp_path / "root", layout))
    assert summary(tree) == expected
    lines = [*tree.notes, *tree.warnings]
    assert any(said in line for line in lines) if said else not lines


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("train/cat:3 train/dog:2 test/cats:1", "class 'cats' is in test/ alone; the nearest in train/ is 'cat'"),
        ("train/a:3 train/b:2 val/a:1 valid/a:1", "found both val/ and valid/.*data.val_dir"),
        ("train/a:3 train/b:2 train_full/a:1 train_full/b:1", "found both train/ and train_full/.*data.train_dir"),
        ("test/a:3 test/b:2", "found test/ but no train/.*data.train_dir"),
        ("photos/a:3 photos/b:2 val/a:1 val/b:1", "found val/ but no train/.*data.train_dir"),
        ("train:3 test:2", "no folders.*data.label_by"),
        ("x/train/a:3 x/train/b:2 y/train/a:2 y/train/b:1", "holds splits.*data.root=.*x$"),
        ("x/a:3 y/", "one class only, 'a'"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused(tmp_path: Path, layout: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(grow(tmp_path, layout))


@pytest.mark.parametrize(
    ("layout", "dirs", "expected"),
    [
        ("photos/a:3 photos/b:2 later/a:1", {"train": "photos", "test": "later"}, "train a3 b2, test a1"),
        ("train/a:3 train/b:2 val/a:1 valid/a:2", {"val": "valid"}, "train a3 b2, val a2"),
        ("x/one/a:3 x/one/b:2 x/two/a:1", {"train": "x/one", "val": "x/two"}, "train a3 b2, val a1"),
        ("a:3 b:2 kept/a:1", {"train": ".", "test": "kept"}, "train a3 b2, test a1"),
    ],
)
def test_keys_name_the_splits(tmp_path: Path, layout: str, dirs: dict[str, str], expected: str) -> None:
    assert summary(read(grow(tmp_path, layout), dirs=dirs)) == expected


@pytest.mark.parametrize("name", ["nowhere", "notes", "flat", ".."])
def test_a_named_split_needs_class_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.test_dir={name}: "):
        read(grow(tmp_path, "train/a:3 train/b:2 flat:2 notes/"), dirs={"test": name})


@pytest.mark.parametrize(
    ("layout", "inner"),
    [
        ("a:3 b:2", "copy"),
        ("a:3 b:2", "root/root"),
        ("train/a:3 train/b:2 test/a:1", "again"),
        ("x/train/a:3 x/train/b:2 x/test/b:1", "x/x"),
    ],
)
def test_a_copy_within_is_passed_over(tmp_path: Path, layout: str, inner: str) -> None:
    root = grow(tmp_path / "root", layout)
    before = read(root)
    shutil.copytree(root / Path(inner).parent if inner == "x/x" else root, tmp_path / "copy")
    (root / inner).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "copy").rename(root / inner)
    after = read(root)
    assert after.files == before.files
    assert any("copy of what lies around" in note for note in after.notes)
    Image.new("RGB", (4, 4)).save(next((root / inner).rglob("a")) / "other.png")  # no longer equal
    assert read(root).files == before.files
    assert any(f"{Path(inner).parts[0]}" in warning for warning in read(root).warnings)


def test_a_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    grow(tmp_path, f"train/{composed}:2 train/{apart}:1 train/b:2 test/{apart}:2")
    (tmp_path / "test" / "b").mkdir()
    (tmp_path / "test" / "b").rename(tmp_path / "test" / " b ")
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / " b " / "0.png")
    assert summary(read(tmp_path)) == f"train b2 {composed}3, test b1 {composed}2"


def named(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "png")
    return root


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        ("cat.1.jpg cat.2.jpg dog.1.jpg", r"^([A-Za-z_]+)", "all cat2 dog1"),
        ("images/Abyssinian_3.jpg images/pug_12.jpg images/pug_7.jpg", r"^([A-Za-z_]+)_", "all Abyssinian1 pug2"),
        ("Abyssinian_3.jpg pug_12.jpg pug-dog-7.jpg", r"^([A-Za-z_-]+)", "all Abyssinian1 pug1 pug-dog1"),
        ("train/cat.1.jpg train/dog.1.jpg test1/1.jpg", r"^[a-z]+", "train cat1 dog1"),
        ("train/x/cat.1.jpg train/y/dog.1.jpg test/dog.2.jpg", r"^[a-z]+", "train cat1 dog1, test dog1"),
        ("cat.1.jpg dog.1.jpg 17.jpg", r"^[a-z]+", "all cat1 dog1"),
    ],
)
def test_classes_are_found_in_file_names(tmp_path: Path, names: str, pattern: str, expected: str) -> None:
    tree = read(named(tmp_path, *names.split()), label_by=pattern)
    assert summary(tree) == expected
    assert any("test1/ has 1 image(s) without labels" in note for note in tree.notes) == ("test1" in names)
    assert any("nothing in 1 file name(s), such as 17.jpg" in line for line in tree.warnings) == (" 17.jpg" in names)


@pytest.mark.parametrize("grouped", [True, False])
def test_deeper_images_are_said_and_groups_are_hinted_at(tmp_path: Path, grouped: bool) -> None:
    tree = read(named(tmp_path, "a/p1/1.jpg", "a/p2/1.jpg", "b/p3/1.jpg"), grouped=grouped)
    (note,) = tree.notes
    assert "images lie deeper than their class folder, such as in a/p1/: they belong to class 'a'" in note
    assert ("data.group_by" in note) is not grouped


def test_an_expression_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.label_by=\^x: it finds nothing in any file name"):
        read(named(tmp_path, "cat.1.jpg", "dog.1.jpg"), label_by="^x")


NUMBERS = [f"{index:02}" for index in range(12)]


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        ("{stem},{random}", True),
        ("part_{part}/i{number}.jpg,{random},{patient}", True),
        ("archive\\part_{part}\\{stem}.jpg;{random}", True),
        ("{stem},{part}", False),
        ("{stem},label{part},{random}", False),
        ("{stem},{number}", False),
        ("other{number},{random}", False),
        ("{stem},train", False),
    ],
)
def test_a_table_that_contradicts_the_folders_is_named(tmp_path: Path, row: str, refused: bool) -> None:
    lines = [
        row.format(stem=f"i{n}", number=n, part=i % 2 + 1, random="ab"[i % 3 % 2], patient=f"p{i // 3}")
        for i, n in enumerate(NUMBERS)
    ]
    named(tmp_path, *(f"part_{i % 2 + 1}/i{number}.jpg" for i, number in enumerate(NUMBERS)))
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *lines]))
    if refused:
        with pytest.raises(InputError, match=r"labels\.csv names the images.*data=csv.*data\.train_dir=\."):
            read(tmp_path)
    assert summary(read(tmp_path, **({"dirs": {"train": "."}} if refused else {}))).endswith("part_16 part_26")


def test_a_table_beside_images_without_folders_is_named(tmp_path: Path) -> None:
    named(tmp_path, "images/1.jpg", "images/2.jpg")
    (tmp_path / "labels.csv").write_text("file,label\n1.jpg,a\n2.jpg,b\n")
    with pytest.raises(InputError, match=r"labels\.csv names the images: data=csv"):
        read(tmp_path)


@pytest.mark.parametrize("target", [".", "a", "elsewhere/.."])
def test_links_in_a_loop_end(tmp_path: Path, target: str) -> None:
    grow(tmp_path / "elsewhere", "c:1")
    root = grow(tmp_path / "root", "a:3 b:2")
    (root / "a" / "loop").symlink_to((root / target).resolve() if target != "elsewhere/.." else root)
    assert summary(read(root)) == "all a3 b2"


PARTS = st.sampled_from(["", "left", "p1", "p2/right", ".hidden", "@eaDir", "__MACOSX"])


@settings(max_examples=20)
@given(
    splits=st.sampled_from([("",), ("train", "test"), ("my_train/my_train", "my_test/my_test"), ("Training", "dev")]),
    places=st.lists(st.tuples(st.sampled_from("ab"), PARTS, st.integers(1, 3)), max_size=4),
)
def test_training_predict_and_evaluate_see_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, splits: tuple[str, ...], places: list[tuple[str, str, int]]
) -> None:
    words = [f"{split}/{name}/{part}:{count}" for split in splits for name, part, count in places]
    words += [f"{split}/{name}:3" for split in splits for name in "ab"]
    root = grow(tmp_path_factory.mktemp("tree"), " ".join(word.lstrip("/") for word in words))
    source = Folder(root=str(root))
    trained, judged = source.load(), source.load_labelled(["a", "b"])
    assert set(trained.paths) == set(judged.paths) == set(images_in([root]))
    assert dict(zip(trained.paths, trained.labels, strict=True)) == dict(zip(judged.paths, judged.labels, strict=True))


@pytest.mark.parametrize(("header", "refused"), [("path,prediction,p_a,error", False), ("path,label,p_a,error", True)])
def test_answers_of_predict_are_no_labels(tmp_path: Path, header: str, refused: bool) -> None:
    root = grow(tmp_path / "photos", "cat:6 dog:6")
    rows = [f"{path},{('x', 'y')[number % 2]},0.5," for number, path in enumerate(images_in([root]))]
    (tmp_path / "answers.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(InputError, match="none of its columns agrees") if refused else nullcontext():
        assert summary(read(root)) == "all cat6 dog6"
