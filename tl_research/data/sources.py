"""Describe where images come from; `load()` returns a checked and split `DataModule`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from tl_research.data.augment.augment import Augment
from tl_research.data.build_dataset import labelled_dataset, split_dataset, unsplit_dataset
from tl_research.data.class_folders import ClassFolders, read_class_folders
from tl_research.data.datamodule import DataModule
from tl_research.data.decode import Resize
from tl_research.data.file_index import FileIndex
from tl_research.data.layout import LayoutOptions
from tl_research.data.path_lists import is_list, split_by_list
from tl_research.data.pixel_range import Bits, Window
from tl_research.errors import InputError
from tl_research.recipe import Count, Positive, Seed, Share, recipe

CACHE = "~/.cache/tl_research"

Expression = Annotated[str, Field(min_length=1)]
"""A regular expression."""


@recipe
class Source:
    """Base class of sources: how images are split and resized, and how many unreadable files are tolerated.

    `val` and `test` are the shares cut out, by `split_seed`, where the folder has no such split; 0 cuts none. `fold` of
    `folds` uses that part of all images outside `test` for validation, and each `repeat` other parts. `fraction` or
    `per_class` limits the training images, and classes of fewer than `min_images` are left out. `group_by` is a regular
    expression for the part of a path that images of one group share, or a list of groups; `split_by` is a list of
    splits. With `allow_leaks`, splits that the source has may share equal images. A `full` check looks for more before
    training; `ignore` is a list of findings that are none. Of images with more than 8 bits a
    channel, `bits` is the number in use, or `window` the values that become black and white.
    """

    val: Share = 0.2
    test: Share = 0.2
    split_seed: Seed = 0
    fold: Count | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    repeat: Count = 0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    per_class: Positive | None = None
    group_by: Expression | None = None
    split_by: Annotated[str, Field(min_length=1)] | None = None
    allow_leaks: bool = False
    check: Literal["quick", "full"] = "quick"
    ignore: Annotated[str, Field(min_length=1)] | None = None
    min_images: Positive = 3
    max_bad: Share = 0.05
    resize: Resize = "squash"
    bits: Bits = "auto"
    window: Window | None = None
    augment: Augment = Field(default_factory=Augment)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.folds is not None and self.fold is None:
            raise ValueError(f"folds={self.folds}: say which: data.fold=0 to data.fold={self.folds - 1}")
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise ValueError(f"fold={self.fold}: give data.folds, more than it: data.folds=5 data.fold=0")
        if self.repeat and self.folds is None:
            raise ValueError(f"repeat={self.repeat}: it repeats folds; give them, too: data.folds=5 data.fold=0")
        if not is_list(self.group_by or ""):
            _demand_expression("group_by", self.group_by)
        if self.per_class is not None and self.fraction != 1:
            raise ValueError(f"per_class={self.per_class}: give it or data.fraction, not both")
        return self

    @field_validator("window")
    @classmethod
    def _window_ascends(cls, window: Window | None) -> Window | None:
        if window is not None and window[0] >= window[1]:
            raise ValueError(f"window={list(window)}: give two numbers, black and white, the smaller first")
        return window

    def folder(self) -> Path:
        """Return the class-folder tree on disk; download or draw it first if necessary."""
        raise NotImplementedError

    def preflight(self) -> None:
        """Check that the images can be had; raise `InputError` if not. Reads and writes no image."""

    def tree(self) -> ClassFolders:
        """List the images by split and class, without opening them. A source of class folders needs only `folder`."""
        return read_class_folders(self.folder(), self._key, self.layout())

    def labelled_tree(self, class_names: Sequence[str]) -> ClassFolders:
        """List the images of a run's classes by split and class; some classes may be missing."""
        return read_class_folders(self.folder(), self._key, replace(self.layout(), known=class_names))

    @property
    def _key(self) -> str:
        """What messages call the folder."""
        return "data.root" if hasattr(self, "root") else f"data ({type(self).__name__})"

    def layout(self) -> LayoutOptions:
        """Give the options for reading the folder."""
        return LayoutOptions(grouped=self.group_by is not None)

    def load(self, index: FileIndex | None = None) -> DataModule:
        """List, check and split the images; files that `index` knows are not opened. Raises `InputError` if the folder
        holds no classes."""
        if self.ignore and not Path(self.ignore).expanduser().is_file():
            raise InputError(f"data.ignore={self.ignore}: there is no such file")
        tree = self.tree()
        return split_dataset(
            split_by_list(tree, Path(self.split_by).expanduser()) if self.split_by else tree,
            val=self.val,
            test=self.test,
            split_seed=self.split_seed,
            fold=self.fold,
            folds=self.folds,
            repeat=self.repeat,
            fraction=self.fraction,
            per_class=self.per_class,
            group_by=self.group_by,
            allow_leaks=self.allow_leaks,
            min_images=self.min_images,
            index=index,
            **self._reading,
        )

    def load_part(self, part: tuple[int, int], index: FileIndex | None = None) -> DataModule:
        """List and check the images of part `i` of `n`, without splits."""
        return unsplit_dataset(self.tree(), part, index=index, **self._reading)

    @property
    def _reading(self) -> dict[str, Any]:
        """The keys of how files are checked and become pixels."""
        return {key: getattr(self, key) for key in ("max_bad", "resize", "augment", "bits", "window")}

    def load_labelled(self, class_names: Sequence[str]) -> DataModule:
        """List and check all images of a run's classes, with the splits that the folder has, `all` if none.
        Raises `InputError` if there is another class."""
        tree = self.labelled_tree(class_names)
        return labelled_dataset(tree, class_names, max_bad=self.max_bad, resize=self.resize, window=self.window)


@recipe
class FolderSource(Source):
    """Folders of images in whatever layout: `train_dir`, `val_dir` and `test_dir` name the splits where their names do
    not, and `label_by` is a regular expression for the class in a file's name."""

    train_dir: Expression | None = None
    val_dir: Expression | None = None
    test_dir: Expression | None = None
    label_by: Expression | None = None

    @model_validator(mode="after")
    def _label_by_is_an_expression(self) -> Self:
        _demand_expression("label_by", self.label_by)
        return self

    @override
    def layout(self) -> LayoutOptions:
        named = {"train": self.train_dir, "val": self.val_dir, "test": self.test_dir}
        dirs = {split: name for split, name in named.items() if name is not None}
        return LayoutOptions(dirs, self.label_by, grouped=self.group_by is not None)


@recipe
class Folder(FolderSource):
    """The user's own folder, or a zip or tar of it, which is unpacked into `cache`. Nothing is ever written into
    `root`."""

    root: Annotated[str, Field(min_length=1)]
    cache: str = CACHE

    @override
    def folder(self) -> Path:
        from tl_research.data import archives

        path = Path(self.root).expanduser()
        if not archives.is_archive(path):
            return path
        return archives.unpacked(path, Path(self.cache).expanduser())

    @override
    def preflight(self) -> None:
        from tl_research.data import archives

        path = Path(self.root).expanduser()
        if archives.is_archive(path):
            archives.archive_digest(path)
        else:
            self.tree()


@recipe
class HotDogDemo(Source):
    """Drawn scenes of hot dogs and of similar things: seeded, offline, any number."""

    drawing: ClassVar[str] = "hot_dog_demo"
    cache: str
    seed: Seed = 0
    num_train: Annotated[int, Field(ge=4)] = 400
    num_val: Annotated[int, Field(ge=2)] = 100
    num_test: Annotated[int, Field(ge=2)] = 200

    @override
    def folder(self) -> Path:
        from tl_research.data.synthetic import demo

        sizes = {"train": self.num_train, "val": self.num_val, "test": self.num_test}
        drawing = demo.DRAWINGS[self.drawing]
        folder = Path(self.cache).expanduser() / demo.cache_name(sizes, self.seed, drawing)
        return demo.draw(folder, sizes, self.seed, drawing=drawing)


@recipe
class HotDogSauce(HotDogDemo):
    """Drawn hot dogs that differ only in the course of their sauce: one line, two parallel, two crossed."""

    drawing: ClassVar[str] = "hot_dog_sauce"
    num_train: Annotated[int, Field(ge=6)] = 900
    num_val: Annotated[int, Field(ge=3)] = 150
    num_test: Annotated[int, Field(ge=3)] = 240


@recipe
class Kaggle(FolderSource):
    """A Kaggle data set of class folders, by `owner/name` or from a zip downloaded by hand (`archive`)."""

    cache: str
    dataset: str
    archive: str | None = None

    @override
    def folder(self) -> Path:
        from tl_research.data.kaggle import kaggle

        return kaggle.fetch(self.dataset, *self._paths())

    @override
    def preflight(self) -> None:
        from tl_research.data.kaggle import kaggle

        missing = kaggle.available(self.dataset, *self._paths())
        if missing:
            raise InputError(missing)

    def _paths(self) -> tuple[Path, Path | None]:
        return Path(self.cache).expanduser(), Path(self.archive).expanduser() if self.archive else None


def _demand_expression(key: str, text: str | None) -> None:
    try:
        re.compile(text or "")
    except re.error as error:
        raise InputError(f"data.{key}={text}: not a regular expression ({error})") from None
