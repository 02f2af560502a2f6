"""Test which folders are accepted as a data set, what is ignored, and what is said about all others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tl_research.data.class_folders import ClassFolders, read_class_folders
from tl_research.data.layout import EXPECTED
from tl_research.data.sources import Source
from tl_research.errors import InputError

CLASSES = ("cat", "dog")


def make(root: Path, *files: str) -> Path:
    """Create files below `root`, by name: images by suffix, folders by a trailing slash, else text."""
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png", ".gif"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("not an image\n")
    return root


def images(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{index}.jpg" for folder in folders for index in range(count)]


def names(tree: ClassFolders) -> dict[str, dict[str, list[str]]]:
    return {split: {name: [p.name for p in paths] for name, paths in c.items()} for split, c in tree.files.items()}


def refusal(root: Path, key: str = "data.root") -> str:
    with pytest.raises(InputError) as caught:
        read_class_folders(root, key)
    message = str(caught.value)
    assert message.startswith(key)
    assert "\n" not in message
    return message


# Accepted trees


def test_classes_alone_are_one_split(tmp_path: Path) -> None:
    tree = read_class_folders(make(tmp_path, *images("dog", "cat")))
    assert names(tree) == {"all": {"cat": ["0.jpg", "1.jpg"], "dog": ["0.jpg", "1.jpg"]}}
    assert tree.class_names == ["cat", "dog"]
    assert tree.ignored == []


def test_paths_are_sorted_however_the_disk_lists_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *images("dog", "cat", count=5))
    forward = read_class_folders(tmp_path)
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(iterdir(self), reverse=True)))
    backward = read_class_folders(tmp_path)
    assert forward == backward
    assert list(forward.files["all"]) == ["cat", "dog"]
    assert forward.files["all"]["dog"] == sorted(forward.files["all"]["dog"])


def test_system_files_are_counted(tmp_path: Path) -> None:
    make(tmp_path, *images("train/cat", "train/dog", "test/cat", "test/dog"))
    junk = [".DS_Store", "Thumbs.db", "__MACOSX/train/cat/._0.jpg", ".ipynb_checkpoints/x.jpg", ".git/config"]
    make(tmp_path, *junk, *(f"train/cat/{name}" for name in junk), *(f"train/{name}" for name in junk))
    tree = read_class_folders(tmp_path)
    assert tree.ignored == []
    assert [note.split(" passed")[0] for note in tree.notes] == [
        f"{3 * len(junk)} hidden or system file(s) and folder(s), or runs of this program,"
    ]
    assert names(tree)["train"] == {"cat": ["0.jpg", "1.jpg"], "dog": ["0.jpg", "1.jpg"]}


def test_folders_next_to_train_are_listed_as_ignored(tmp_path: Path) -> None:
    make(tmp_path, *images("train/cat", "train/dog", "test/cat", "test/dog", "originals"), "sketches/", "README.md")
    tree = read_class_folders(tmp_path)
    assert set(tree.files) == {"train", "test"}
    assert [p.name for p in tree.ignored] == ["README.md", "originals", "sketches"]


def test_foreign_files_are_listed_as_ignored(tmp_path: Path) -> None:
    make(tmp_path, *images("cat", "dog"), "labels.csv", "cat/desktop.ini", "cat/notes.txt", "dog/clip.mp4")
    tree = read_class_folders(tmp_path)
    assert sorted(p.name for p in tree.ignored) == ["clip.mp4", "desktop.ini", "labels.csv", "notes.txt"]
    assert names(tree)["all"]["cat"] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("name", ["no_suffix", "download.php", "photo.JPG.1", "IMG_0001.dat"])
def test_an_image_without_a_suffix_is_recognized_by_its_bytes(tmp_path: Path, name: str) -> None:
    make(tmp_path, *images("cat", "dog"))
    (tmp_path / "cat" / "1.jpg").rename(tmp_path / "cat" / name)
    assert name in names(read_class_folders(tmp_path))["all"]["cat"]


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "JPE", "jfif", "png", "PNG", "gif", "bmp", "webp", "tif", "TIFF"])
def test_an_image_suffix_suffices_whatever_the_content(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, *images("cat", "dog"))
    (tmp_path / "cat" / f"broken.{suffix}").write_text("to be set aside with a reason, not passed over")
    tree = read_class_folders(tmp_path)
    assert f"broken.{suffix}" in names(tree)["all"]["cat"]
    assert tree.ignored == []


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    make(tmp_path, *images("cat", "dog"))
    os.mkfifo(tmp_path / "cat" / "pipe")
    assert [p.name for p in read_class_folders(tmp_path).ignored] == ["pipe"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", *images("cat", "dog"))
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    make(root, *images("dog", count=1))
    (root / "dog" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "dog" / "0.jpg")
    assert names(read_class_folders(root)) == {"all": {"cat": ["0.jpg", "1.jpg"], "dog": ["0.jpg", "linked.jpg"]}}


@pytest.mark.parametrize(
    "name", ["é", "热狗", "a=b", "hot-dog_(1)", "it's", "a b", "[x]", "${x}", "100%", "  pad  ", "#1"]
)
def test_folders_may_have_any_name(tmp_path: Path, name: str) -> None:
    tree = read_class_folders(make(tmp_path / name, *images(name, "dog")))
    assert tree.class_names == sorted([name.strip(), "dog"])


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "photos", *images("cat", "dog"))
    assert read_class_folders(Path("~/photos")).root == tmp_path / "photos"


def test_listing_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, *images("train/cat", "train/dog"), "train/cat/.DS_Store", "notes.txt")
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    read_class_folders(tmp_path)
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


# Refusals: the message names the folder, its contents, and what is expected


@pytest.mark.parametrize(
    ("files", "folder", "found"),
    [
        ([], "", "found nothing"),
        ([".DS_Store", ".git/config"], "", "found nothing"),
        (["1.jpg", "2.jpg", "3.jpg"], "", r"found 3 file\(s\) and no folders"),
        (["cat/"], "", "no images in 'cat'"),
        (["cat/notes.txt", "dog/notes.txt"], "", "no images in 'cat', 'dog'"),
        (images("cat"), "", "one class only, 'cat'"),
        ([*images("cat"), "notes.txt"], "", "one class only, 'cat'"),
        (images("train"), "", "one class only, 'train'"),
        (images("train", "test"), "test", r"found 2 file\(s\) and no folders"),
        (images("train/cat"), "train", "one class only, 'cat'"),
    ],
)
def test_invalid_trees_are_refused(tmp_path: Path, files: list[str], folder: str, found: str) -> None:
    root = make(tmp_path / "root", "./", *files)
    message = refusal(root)
    assert str(root / folder) in message
    assert re.search(found, message)
    assert EXPECTED in message


def test_long_lists_of_names_are_shortened(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, *(f"class{i:02d}/notes.txt" for i in range(30))))
    assert "'class04' and 25 more" in message
    assert "class05" not in message


@pytest.mark.parametrize(
    ("name", "found"), [("missing", "does not exist"), ("file", "is a file"), ("x" * 300, "too long")]
)
def test_a_root_that_is_not_a_folder_is_refused(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path / name)
    assert f"data.root={tmp_path / name}" in message
    assert found in message
    assert EXPECTED in message


@pytest.mark.parametrize("unreadable", ["", "cat"])
def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str) -> None:
    make(tmp_path, *images("cat", "dog"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / unreadable and access(path, mode))
    assert f"the folder {tmp_path / unreadable} cannot be read (no permission)" in refusal(tmp_path)


def test_a_class_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *images("cat", "dog"))
    access, is_file = os.access, Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent == tmp_path / "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "cat" and access(path, mode))
    assert f"the folder {tmp_path / 'cat'} cannot be read (no permission)" in refusal(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", fail)
    assert f"{tmp_path} cannot be read (Input/output error)" in refusal(tmp_path)


def test_a_source_without_a_root_is_named_itself(tmp_path: Path) -> None:
    class Mounted(Source):
        def folder(self) -> Path:
            return tmp_path / "photos"

    with pytest.raises(InputError, match=r"^data \(Mounted\)=.*photos: does not exist"):
        Mounted().load()


def test_the_message_names_the_folders_key(tmp_path: Path) -> None:
    assert refusal(tmp_path / "missing", key="data.archive").startswith("data.archive=")
