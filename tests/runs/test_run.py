"""A run directory: claimed once, written whole, and its status is true."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import tl_research
from tl_research import InputError, Run
from tl_research.runs.run import as_csv
from tl_research.system.files import write_atomically
from tl_research.system.versions import versions


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

    monkeypatch.setattr("tl_research.runs.status.write_atomically", full)
    run.set_status("failed", "the disk is full")
    assert json.loads((run.directory / "status.json").read_text())["reason"] == "the disk is full"


def test_a_run_whose_process_died_reads_as_interrupted(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    assert Run.open(run.directory).status["state"] == "running"
    run.close()  # as the system does when a process ends
    assert Run.open(run.directory).status["state"] == "interrupted"
    (run.directory / ".lock").unlink()  # where the file system knows no locks, the process is asked for
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
    begun = run.status | {"started": "2026-01-31T12:00:00+0000"}
    (run.directory / "status.json").write_text(json.dumps(begun))
    run.set_status("done")
    assert run.status["started"] == "2026-01-31T12:00:00+0000"
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
    assert sorted(p.name for p in run.directory.iterdir()) == [".lock", "status.json"]


def test_phases_add_up_and_csv_keeps_digits(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    for _ in range(2):
        with run.phase("thinking"):
            pass
    assert run.metrics["seconds_thinking"] >= 0
    assert as_csv(["a", "b,c"], [[1 / 3, 'x"y']]) == 'a,"b,c"\n0.33333333,"x""y"\n'
    assert {"version_tensorflow", "version_keras", "version_tl_research"} <= set(versions())


def test_a_refused_claim_names_the_directory_and_changes_nothing(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    run.set_status("done")
    before = (run.directory / "status.json").read_text()
    with pytest.raises(InputError) as caught:
        Run.claim(tmp_path / "run")
    assert str(caught.value) == f"hydra.run.dir={run.directory}: there is a run in it already; name another directory"
    assert (run.directory / "status.json").read_text() == before


def test_a_file_in_the_directorys_place_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot be written \(File exists\)"):
        Run.claim(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_written_may_be_read_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "metrics.json", b"{}")
    assert (tmp_path / "metrics.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("error", "state"), [(ProcessLookupError, "interrupted"), (PermissionError, "running")])
def test_a_process_of_somebody_elses_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], state: str
) -> None:
    run = Run.claim(tmp_path / "run")
    (run.directory / ".lock").unlink()

    def kill(pid: int, signal: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    assert run.status["state"] == state


def test_nothing_is_known_of_processes_on_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.claim(tmp_path / "run")
    (run.directory / ".lock").unlink()
    monkeypatch.setattr("platform.node", lambda: "another")
    monkeypatch.setattr("tl_research.runs.status.process_exists", lambda pid: False)
    assert run.status["state"] == "running"


def test_a_model_comes_under_its_name_when_it_is_whole(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")

    class Model:
        def save(self, path: Path) -> None:
            assert not (run.directory / "model.keras").exists()
            assert path != run.directory / "model.keras"
            assert path.suffix == ".keras", "Keras goes by it"
            path.write_bytes(b"whole")

    run.write_model(Model())  # type: ignore[arg-type]
    assert (run.directory / "model.keras").read_bytes() == b"whole"
    assert sorted(p.name for p in run.directory.iterdir()) == [".lock", "model.keras", "status.json"]


def test_seconds_of_a_phase_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    run = Run(tmp_path)
    for _ in range(2):
        with run.phase("data"):
            pass
    assert run.metrics == {"seconds_data": 3.5}


def test_history_has_a_column_for_whatever_a_stage_reports(tmp_path: Path) -> None:
    Run(tmp_path).write_history([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3}])
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,learning_rate\n0,1.5,\n1,0.5,0.001\n"


def test_names_stay_readable_and_in_order(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    run.write_json("classes.json", ["热狗", "crème"])
    run.write_config({"seed": 1, "data": {"root": "/tmp/热狗", "resize": "pad"}})
    assert "热狗" in (run.directory / "classes.json").read_text()
    assert (run.directory / "config.yaml").read_text() == "seed: 1\ndata:\n  root: /tmp/热狗\n  resize: pad\n"
    assert run.class_names() == ["热狗", "crème"]
    assert run.resize == "pad"


def test_a_config_without_a_resize_means_squash(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    run.write_config({"seed": 1})
    assert run.resize == "squash"


def test_a_run_opens_by_text_and_from_home_with_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Run.claim(tmp_path / "run").write_json("metrics.json", {"test_accuracy": 0.5})
    assert Run.open("~/run").directory == tmp_path / "run"
    assert Run.open("~/run").metrics == {"test_accuracy": 0.5}


def test_a_version_is_never_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("tl_research.runs.run.version", missing)
    found = versions()
    assert found["version_tl_research"] == tl_research.__version__
    assert found["version_keras"] == "unknown"
    assert found["version_python"] == platform.python_version()


def test_a_name_in_another_encoding_is_written_and_read_back(tmp_path: Path) -> None:
    run = Run.claim(tmp_path)
    name = b"caf\xe9.jpg".decode(errors="surrogateescape")
    run.write_csv("predictions.csv", ["path"], [[name]])
    run.write_json("mistakes.json", [name])
    run.close()
    assert (tmp_path / "predictions.csv").read_text().splitlines() == ["path", "caf\\udce9.jpg"]
    assert json.loads((tmp_path / "mistakes.json").read_text()) == [name]
