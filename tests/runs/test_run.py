"""Run directories are claimed once and written atomically, and their status is correct."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tl_research import InputError, Run
from tl_research.data.pixel_range import AS_STORED
from tl_research.runs.run import as_csv
from tl_research.system.files import write_atomically


def test_only_one_of_many_threads_claims_a_directory(tmp_path: Path) -> None:
    claimed: list[Run] = []
    refused: list[InputError] = []
    start = threading.Barrier(8)

    def claim() -> None:
        start.wait()
        try:
            claimed.append(Run.claim(tmp_path / "run"))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(claimed), len(refused)) == (1, 7)


def test_a_folder_without_a_run_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    assert Run.claim(tmp_path).status["state"] == "running"


@pytest.mark.parametrize("where", ["/proc/nothing/run", "FILE/run"])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Run.claim(Path(where.replace("FILE", str(tmp_path / "file"))))


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_status_is_written_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.claim(tmp_path / "run")

    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tl_research.runs.status.write_atomically", full)
    run.set_status("failed", "the disk is full")
    assert json.loads((run.directory / "status.json").read_text())["reason"] == "the disk is full"


def test_a_run_whose_process_died_reads_as_interrupted(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    assert Run.open(run.directory).status["state"] == "running"
    run.close()  # as the operating system does when a process ends
    assert Run.open(run.directory).status["state"] == "interrupted"
    (run.directory / ".lock").unlink()  # without locks on the file system, the process counts
    assert run.status["state"] == "running"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    text = (run.directory / "status.json").read_text().replace(str(os.getpid()), str(dead.pid))
    (run.directory / "status.json").write_text(text)
    assert Run.open(run.directory).status["state"] == "interrupted"
    (run.directory / "status.json").write_text("")  # claimed, and killed before the first status
    assert Run.open(run.directory).status["state"] == "interrupted"


def test_a_final_status_keeps_started_and_adds_ended(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    status = run.status | {"started": "2026-01-31T12:00:00+0000"}
    (run.directory / "status.json").write_text(json.dumps(status))
    run.set_status("done")
    assert run.status["started"] == "2026-01-31T12:00:00+0000"
    assert run.status["ended"]
    assert run.status["reason"] is None


def test_a_folder_without_a_whole_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="none: not a run directory: it does not exist"):
        Run.open(tmp_path / "none")
    Run.claim(tmp_path / "sweep" / "seed=0")
    with pytest.raises(InputError, match=r"there are runs below it, such as .*sweep/seed=0$"):
        Run.open(tmp_path)
    run = Run.claim(tmp_path / "run")
    run.set_status("failed", "why")
    for read in (run.class_names, run.model):
        with pytest.raises(InputError, match="failed"):
            read()


def test_a_half_written_model_leaves_no_file(tmp_path: Path) -> None:
    class Model:
        def save(self, path: Path) -> None:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    run = Run.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.write_model(Model())  # type: ignore[arg-type]
    assert sorted(p.name for p in run.directory.iterdir()) == [".lock", "status.json"]


def test_a_run_begun_anew_keeps_no_range_of_pixels(tmp_path: Path) -> None:
    run = Run.claim(tmp_path)
    run.write_json("pixel_range.json", {"bits": 12, "window": None})
    run.close()
    assert Run.claim(tmp_path, "replace").pixel_range == AS_STORED


def test_csv_keeps_digits() -> None:
    assert as_csv(["a", "b,c"], [[1 / 3, 'x"y']]) == 'a,"b,c"\n0.33333333,"x""y"\n'


def test_a_refused_claim_names_the_directory_and_changes_nothing(tmp_path: Path) -> None:
    run = Run.claim(tmp_path / "run")
    run.set_status("done")
    before = (run.directory / "status.json").read_text()
    with pytest.raises(InputError) as caught:
        Run.claim(tmp_path / "run")
    assert str(caught.value) == f"hydra.run.dir={run.directory}: there is a run in it already; name another directory"
    assert (run.directory / "status.json").read_text() == before


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "metrics.json", b"{}")
    assert (tmp_path / "metrics.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("error", "state"), [(ProcessLookupError, "interrupted"), (PermissionError, "running")])
def test_a_process_of_another_user_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], state: str
) -> None:
    run = Run.claim(tmp_path / "run")
    (run.directory / ".lock").unlink()

    def kill(pid: int, signal: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    assert run.status["state"] == state


def test_a_process_on_another_machine_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.claim(tmp_path / "run")
    (run.directory / ".lock").unlink()
    monkeypatch.setattr("platform.node", lambda: "another")
    monkeypatch.setattr("tl_research.runs.status.process_exists", lambda pid: False)
    assert run.status["state"] == "running"


def test_a_model_gets_its_name_once_it_is_complete(tmp_path: Path) -> None:
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


def test_seconds_of_a_phase_within_another_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 4.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    run = Run(tmp_path)
    with run.phase("head"):
        for name in ("features", "save"):
            with run.phase(name):
                pass
    assert run.metrics == {"seconds_features": 2.0, "seconds_save": 2.0, "seconds_head": 6.0}


def test_history_has_a_column_for_each_key_of_any_row(tmp_path: Path) -> None:
    Run(tmp_path).write_history([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3}])
    assert (tmp_path / "history.csv").read_text() == "epoch,loss,learning_rate\n0,1.5,\n1,0.5,0.001\n"


def test_names_stay_readable_and_ordered(tmp_path: Path) -> None:
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


def test_a_run_opens_from_home_with_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Run.claim(tmp_path / "run").write_json("metrics.json", {"test_accuracy": 0.5})
    assert Run.open("~/run").directory == tmp_path / "run"
    assert Run.open("~/run").metrics == {"test_accuracy": 0.5}


def test_file_names_in_another_encoding_are_written(tmp_path: Path) -> None:
    run = Run.claim(tmp_path)
    name = b"caf\xe9.jpg".decode(errors="surrogateescape")
    run.write_csv("predictions.csv", ["path"], [[name]])
    run.write_json("mistakes.json", [name])
    run.close()
    assert (tmp_path / "predictions.csv").read_text().splitlines() == ["path", "caf\\udce9.jpg"]
    assert json.loads((tmp_path / "mistakes.json").read_text()) == [name]
