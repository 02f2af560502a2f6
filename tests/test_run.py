"""A run directory: claimed once, written whole, and its status is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tl_research import InputError, Run
from tl_research.run import as_csv, versions, write_atomically


def test_of_many_that_claim_a_directory_one_gets_it(tmp_path: Path) -> None:
    won: list[Run] = []
    refused: list[InputError] = []
    start = threading.Barrier(8)

    def claim() -> None:
        start.wait()
        try:
            won.append(Run.claim(tmp_path / "run"))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


def test_a_folder_that_is_there_without_a_run_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    assert Run.claim(tmp_path).status["state"] == "running"


@pytest.mark.parametrize("where", ["/proc/nothing/run", "FILE/run"])
def test_what_cannot_be_written_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Run.claim(Path(where.replace("FILE", str(tmp_path / "file"))))


def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_status_is_told_also_where_there_is_no_room_for_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.claim(tmp_path / "run")

    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tl_research.run.write_atomically", full)
    run.set_status("failed", "the disk is full")
    assert json.loads((run.directory / "status.json").read_text())["reason"] == "the disk is full"


def test_a_run_whose_process_died_reads_as_interrupted(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    assert run.status["state"] == "running"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    text = (run.directory / "status.json").read_text().replace(str(os.getpid()), str(dead.pid))
    (run.directory / "status.json").write_text(text)
    assert Run.open(run.directory).status["state"] == "interrupted"
    (run.directory / "status.json").write_text("")  # claimed, and killed before the first word
    assert Run.open(run.directory).status["state"] == "interrupted"


def test_started_stays_and_ended_comes(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    started = run.status["started"]
    run.set_status("done")
    assert run.status["started"] == started
    assert run.status["ended"]
    assert run.status["reason"] is None


def test_what_is_no_run_or_did_not_get_far_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        Run.open(tmp_path)
    run = Run.claim(tmp_path / "run")
    run.set_status("failed", "why")
    for ask in (run.class_names, run.model):
        with pytest.raises(InputError, match="failed"):
            ask()


def test_a_half_written_model_is_never_under_its_name(tmp_path: Path) -> None:
    class Model:
        def save(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    run = Run.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.write_model(Model())  # type: ignore[arg-type]
    assert [p.name for p in run.directory.iterdir()] == ["status.json"]


def test_phases_add_up_and_csv_keeps_digits(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    for _ in range(2):
        with run.phase("thinking"):
            pass
    assert run.metrics["seconds_thinking"] >= 0
    assert as_csv(["a", "b,c"], [[1 / 3, 'x"y']]) == 'a,"b,c"\n0.33333333,"x""y"\n'
    assert {"version_tensorflow", "version_keras", "version_tl_research"} <= set(versions())
