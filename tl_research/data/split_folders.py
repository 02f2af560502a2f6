"""Find the folders that are splits: those that say train, val or test as a word and hold the folders of the classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tl_research.data.class_names import match_name
from tl_research.data.folder_scan import FolderNode
from tl_research.errors import InputError

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation", "holdout"), "held out"),
}
"""The split that a word names. Held-out images are the test where there is no other, else for validation."""

SPLIT_WORD = re.compile(rf"({'|'.join(sorted(WORDS, key=len, reverse=True))})(?:set|data|images|imgs|folder|dir)?")
PLAIN_WORDS = re.compile(
    "sets?|data|datasets?|images?|imgs?|photos|pictures|folder|dir|splits?|files|samples|final|new|full|all|jpg|jpeg|"
    "png|labell?ed|classes"
)
LIKE = 0.6
"""Likeness of two names (difflib) from which on one may be the other, misspelt."""


@dataclass(frozen=True)
class SplitName:
    """A folder's name read as a split: the words beside `train` or `test` are its `stem`, as in `seg_train`."""

    role: str
    stem: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> SplitName | None:
        """Read a name; None if it names no split, or several."""
        text = re.sub(r"hold[\W_]?out", "holdout", name, flags=re.IGNORECASE)
        words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\dA-Z_]+", text)]
        roles = {WORDS[match[1]] for word in words if (match := SPLIT_WORD.fullmatch(word))}
        if len(roles) != 1 and roles != {"train", "val"}:
            return None
        rest = [word for word in words if not SPLIT_WORD.fullmatch(word) and not PLAIN_WORDS.fullmatch(word)]
        return cls("train" if "train" in roles else roles.pop(), tuple(rest))


def split_named(text: str) -> str | None:
    """Return the split that a word names, in any case: train, val or test; None if it names none."""
    found = SplitName.of(text)
    return {"held out": "test"}.get(found.role, found.role) if found and not found.stem else None


@dataclass
class SplitFolders:
    """The folder that holds the classes of each split, and folders of splits whose images have no labels."""

    labelled: dict[str, FolderNode] = field(default_factory=dict)
    unlabelled: list[FolderNode] = field(default_factory=list)


def find_splits(root: FolderNode, given: Mapping[str, str], key: str, known: Sequence[str] = ()) -> SplitFolders | None:
    """Find the splits among the folders of `root`; None if there are none. `given` names the folders of some splits.

    A folder named like a split is one if it holds class folders and `train/` holds some of the same; beside classes,
    `test/CLASS` takes these for training. Other words in a name count only where a sibling's name has them, too:
    `seg_train/` and `seg_test/` are splits, and `test_tube/` beside `beaker/` is a class. Where classes are `known`,
    there need not be a `train/`.

    Raises:
        InputError: two folders are the same split, or there is a test and nothing to train on.
    """
    chosen = {split: _given(root, split, name, key) for split, name in given.items()}
    named = [
        (node, name)
        for node in root.filled
        if (name := SplitName.of(node.name)) and not any(c.path.is_relative_to(node.path) for c in chosen.values())
    ]
    others = [(node, name) for node, name in named if name.role != "train"]
    training = [
        (level, name) for node, name in named if name.role == "train" and (level := labelled_level(node, known))
    ]
    training = [(level, name) for level, name in training if _is_sure(level, name, others)]
    stem: tuple[str, ...] = ()
    if "train" in chosen:
        train = chosen["train"]
    elif len(training) > 1:
        raise _twice("train", training[0][0], training[1][0], root, key)
    elif training:
        train, stem = training[0][0], training[0][1].stem
    else:
        beside = [*known, *_names(root.without(*chosen.values(), *(node for node, _ in others)))]
        others = [(node, name) for node, name in others if (known or not name.stem) and _shares(node, beside)]
        if not chosen and not others:
            _demand_no_test(root, [node for node, name in named if not name.stem], key)
            return None
        train = root.without(*chosen.values(), *(node for node, _ in others))
    names = [*known, *_names(train)]
    others = [(node, name) for node, name in others if name.stem in ((), stem) or _shares(node, names)]
    found = SplitFolders()
    splits = _assign(found, chosen, others, names, root, key)
    train = train.without(*splits.values(), *found.unlabelled)
    if not known or _shares(train, known):
        found.labelled["train"] = train
    found.labelled |= {split: splits[split] for split in ("val", "test") if split in splits}
    return found if found.labelled else None


def labelled_level(node: FolderNode, known: Sequence[str] = ()) -> FolderNode | None:
    """Return the folder that holds the class folders: `node`, or where that holds one folder alone, the one in it. None
    if there is none. A single folder of images counts if it is like one of the `known` classes."""
    while node.filled:
        (only, *more) = node.filled
        if more or match_name(only.name, known):
            return node
        if not only.filled:
            names_nothing = SplitName.of(only.name) or PLAIN_WORDS.fullmatch(only.name.lower())
            like = difflib.get_close_matches(only.name.lower(), [name.lower() for name in known], cutoff=LIKE)
            return node if not names_nothing and (like or not known) else None
        node = only
    return None


def _given(root: FolderNode, split: str, name: str, key: str) -> FolderNode:
    node = root.find(Path(root.path, name))
    level = node and labelled_level(node)
    if level is None:
        problem = "it has no class folders" if node and node.has_images else "there is no such folder with images"
        raise InputError(f"{_option(split, key)}={name}: {problem} in {root.path}")
    return level


def _is_sure(level: FolderNode, name: SplitName, others: list[tuple[FolderNode, SplitName]]) -> bool:
    """Return whether a name with other words than `train` names the training images."""
    return not name.stem or any(o.stem in ((), name.stem) or _shares(node, _names(level)) for node, o in others)


def _names(node: FolderNode) -> list[str]:
    return [folder.name for folder in node.filled]


def _shares(node: FolderNode, names: Sequence[str]) -> bool:
    """Return whether a folder holds one of these class folders."""
    level = labelled_level(node, names)
    return level is not None and any(match_name(name, names) for name in _names(level))


def _demand_no_test(root: FolderNode, named: list[FolderNode], key: str) -> None:
    for node in named:
        if labelled_level(node):
            raise InputError(
                f"{key}={root.path}: found {node.name}/ but no train/; name the folder of the training images with "
                f"{_option('train', key)}"
            )


def _assign(
    found: SplitFolders,
    chosen: Mapping[str, FolderNode],
    named: list[tuple[FolderNode, SplitName]],
    known: list[str],
    root: FolderNode,
    key: str,
) -> dict[str, FolderNode]:
    """Assign the folders for validation and test to their splits; those without labels are added to `found`."""
    splits = {split: node for split, node in chosen.items() if split != "train"}
    for node, name in sorted(named, key=lambda pair: pair[1].role == "held out"):
        level = labelled_level(node, known)
        split = name.role
        if split == "held out":
            split = "val" if "test" in splits else "test"
        if level is None:
            found.unlabelled.append(node)
        elif split in splits and split not in chosen:
            raise _twice(split, splits[split], level, root, key)
        else:
            splits.setdefault(split, level)
    return splits


def _twice(split: str, one: FolderNode, other: FolderNode, root: FolderNode, key: str) -> InputError:
    names = [node.path.relative_to(root.path).as_posix() for node in (one, other)]
    return InputError(
        f"{key}={root.path}: found both {names[0]}/ and {names[1]}/; keep one of them, or choose with "
        f"{_option(split, key)}"
    )


def _option(split: str, key: str) -> str:
    return f"{key.rpartition('.')[0]}.{split}_dir"
