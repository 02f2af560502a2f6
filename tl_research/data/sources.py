"""Describe where images come from; `load()` returns a checked and split `DataModule`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from typing_extensions import override

from tl_research.data.augment.augment import Augment
from tl_research.data.class_folders import read_class_folders
from tl_research.data.datamodule import DataModule, split_dataset, unsplit_dataset
from tl_research.data.decode import Resize
from tl_research.data.file_index import FileIndex
from tl_research.errors import InputError
from tl_research.recipe import Count, Positive, Seed, Share, recipe

Cut = Annotated[float, Field(gt=0, lt=1)]


@recipe
class Source:
    """Base class of sources: how images are split and resized, and how many unreadable files are tolerated.

    `val` and `test` are the shares cut out, by `split_seed`, where the folder has no such split. `fold` of `folds` uses
    that part of all images outside `test` for validation. `fraction` or `per_class` limits the training images.
    `group_by` is a regular expression for the part of a path that images of one group share.
    """

    val: Cut = 0.2
    test: Cut = 0.2
    split_seed: Seed = 0
    fold: Count | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    per_class: Positive | None = None
    group_by: Annotated[str, Field(min_length=1)] | None = None
    max_bad: Share = 0.05
    resize: Resize = "squash"
    augment: Augment = Field(default_factory=Augment)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.folds is not None and self.fold is None:
            raise ValueError(f"folds={self.folds}: say which: data.fold=0 to data.fold={self.folds - 1}")
        if self.fold is not None and self.fold >= (self.folds or 0):
            raise ValueError(f"fold={self.fold}: give data.folds, more than it: data.folds=5 data.fold=0")
        if self.group_by is not None:
            try:
                re.compile(self.group_by)
            except re.error as error:
                raise InputError(f"data.group_by={self.group_by}: not a regular expression ({error})") from None
        if self.per_class is not None and self.fraction != 1:
            raise ValueError(f"per_class={self.per_class}: give it or data.fraction, not both")
        return self

    def folder(self) -> Path:
        """Return the class-folder tree on disk; download or draw it first if necessary."""
        raise NotImplementedError

    def preflight(self) -> None:
        """Check that the images can be had; raise `InputError` if not. Reads and writes no image."""

    def load(self, index: FileIndex | None = None) -> DataModule:
        """List, check and split the images; files that `index` knows are not opened. Raises `InputError` if the folder
        is not a class-folder tree."""
        return split_dataset(
            read_class_folders(self.folder()),
            val=self.val,
            test=self.test,
            split_seed=self.split_seed,
            fold=self.fold,
            folds=self.folds,
            fraction=self.fraction,
            per_class=self.per_class,
            group_by=self.group_by,
            max_bad=self.max_bad,
            resize=self.resize,
            augment=self.augment,
            index=index,
        )

    def load_part(self, part: tuple[int, int], index: FileIndex | None = None) -> DataModule:
        """List and check the images of part `i` of `n`, without splits."""
        tree = read_class_folders(self.folder())
        return unsplit_dataset(tree, part, max_bad=self.max_bad, resize=self.resize, augment=self.augment, index=index)


@recipe
class Folder(Source):
    """The user's own class folders. Nothing is ever written there."""

    root: Annotated[str, Field(min_length=1)]

    @override
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    @override
    def preflight(self) -> None:
        read_class_folders(self.folder())


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
class Kaggle(Source):
    """A Kaggle data set of class folders, by `owner/name` or from a zip downloaded by hand (`archive`)."""

    cache: str
    dataset: str
    archive: str | None = None

    @override
    def folder(self) -> Path:
        from tl_research.data.kaggle import kaggle

        return kaggle.find_root(kaggle.fetch(self.dataset, *self._paths()))

    @override
    def preflight(self) -> None:
        from tl_research.data.kaggle import kaggle

        missing = kaggle.available(self.dataset, *self._paths())
        if missing:
            raise InputError(missing)

    def _paths(self) -> tuple[Path, Path | None]:
        return Path(self.cache).expanduser(), Path(self.archive).expanduser() if self.archive else None
