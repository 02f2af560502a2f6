"""Checkpoints are written atomically, the last two kept, read for one job only and never unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tl_research.runs.checkpoint import CheckpointFolder, CheckpointState

ABOUT = {"identity": "a"}
arrays = hnp.arrays(st.sampled_from([np.float32, np.uint32, np.int64]), hnp.array_shapes(min_dims=0, max_side=4))
plain = st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False), st.none(), st.text()))


@given(plain, st.dictionaries(st.sampled_from(["v/1", "v/2", "x"]), arrays))
def test_a_checkpoint_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, facts: dict, values: dict
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    CheckpointFolder(folder, ABOUT).write(CheckpointState(facts, values))
    back = CheckpointFolder(folder, ABOUT).read()
    assert back is not None
    assert back.facts == facts
    assert back.arrays.keys() == values.keys()
    for name, array in values.items():
        assert back.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[name], array)


def test_nested_parts_are_read_by_name() -> None:
    parts = {"a": CheckpointState({"n": 1}, {"x": np.zeros(2)}), "ab": CheckpointState({"n": 2}, {"x/y": np.ones(1)})}
    whole = CheckpointState.nested(**parts)
    for name, part in parts.items():
        back = whole.part(name)
        assert back.facts == part.facts
        assert back.arrays.keys() == part.arrays.keys()


def numbers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for number in range(4):
        CheckpointFolder(tmp_path, ABOUT).write(CheckpointState({"n": number}))
    assert numbers(tmp_path) == ["000003.npz", "000004.npz"]
    assert CheckpointFolder(tmp_path, ABOUT).read().facts == {"n": 3}  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [b"", b"no zip at all", None])
def test_the_previous_one_is_read_if_the_newest_is_damaged(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        CheckpointFolder(tmp_path, ABOUT).write(CheckpointState({"n": number}, {"x": np.zeros(9)}))
    newest = tmp_path / "000002.npz"
    newest.write_bytes(newest.read_bytes()[:-30] if damage is None else damage)
    assert CheckpointFolder(tmp_path, ABOUT).read().facts == {"n": 0}  # type: ignore[union-attr]
    assert "000002.npz" in caplog.text


def test_checkpoints_of_another_job_are_not_read(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path, {"identity": "b"}).write(CheckpointState({"n": 1}))
    assert CheckpointFolder(tmp_path, ABOUT).read() is None
    assert CheckpointFolder(tmp_path / "nowhere", ABOUT).read() is None


class Trap:
    def __reduce__(self) -> tuple:
        return (Path("sprung").touch, ())


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pickle.dumps(Trap())
    np.savez(tmp_path / "000001.npz", facts=np.array([Trap()], dtype=object))
    assert CheckpointFolder(tmp_path, ABOUT).read() is None
    assert not (tmp_path / "sprung").exists()


def test_a_failed_write_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CheckpointFolder(tmp_path, ABOUT).write(CheckpointState({"n": 1}))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        CheckpointFolder(tmp_path, ABOUT).write(CheckpointState({"n": 2}))
    assert numbers(tmp_path) == ["000001.npz"]
