"""The pages keep their word: commands compose and run, links lead somewhere, tables are complete, examples work."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import typer

from tests.conftest import ROOT
from tl_research import Run, compose
from tl_research.__main__ import app
from tl_research.config.preflight import check_jobs

README = ROOT / "README.md"
SUBJECTS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TRAIN, TOOL = "python train.py", "python -m tl_research"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
LOCAL_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_fences(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands_of(page: Path) -> Iterator[str]:
    """Commands of ours without comments, in fences and inline. One with `...` or `[` is usage, not a command."""
    lines = [line for _, body in FENCE.findall(page.read_text()) for line in body.splitlines()]
    for text in [*lines, *re.findall(r"`([^`\n]+)`", without_fences(page))]:
        if re.match(rf"({TRAIN}|{TOOL})( |$)", text) and not re.search(r"\.\.\.|\[[A-Z-]", text):
            yield re.sub(r"\s+#.*", "", text)


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


def first_command(page: Path) -> str:
    """The last of those that the page's first fence chains in its first line."""
    return FENCE.search(page.read_text())[2].splitlines()[0].split("&&")[-1].strip()  # type: ignore[index]


def arguments_of(command: str, stand_ins: dict[str, Path]) -> list[str]:
    """A command's words after `python train.py` or `python -m tl_research`, with the reader's own things filled in."""
    words = shlex.split(command.removeprefix(TRAIN).removeprefix(TOOL), comments=True)
    for placeholder, path in stand_ins.items():
        words = [re.sub(rf"\b{placeholder}\b", str(path), word) for word in words]
    return words


def read_flags(arguments: list[str]) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("--config-dir")
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(arguments)


def last_value(override: str) -> str:
    """Of a swept key the value in the last job: `1` of `a=0,1`, `0.7` of `a=interval(0,0.7)`."""
    key, _, value = override.partition("=")
    numbers = re.findall(r"[-\d.e]*\d", value) if "(" in value else []
    return f"{key}={numbers[-1] if numbers else value.split(',')[-1]}"


@cache
def composed(overrides: tuple[str, ...]) -> bool:
    return bool(compose(overrides).transfer)


def compose_training(arguments: list[str], folder: Path) -> None:
    """Composes what `train` or `extract` would run; of a sweep the last job."""
    options = read_flags(arguments)
    overrides = [last_value(override) for override in options.overrides] if options.multirun else options.overrides
    if not options.config_dir:
        assert composed(tuple(overrides))
        return
    (folder / "head").mkdir()  # the reader's own, with the option that CONTRIBUTING.md names
    (folder / "head" / "cosine.yaml").write_text("defaults: [linear]\n")
    assert compose(overrides, folder).transfer


def compose_tool(arguments: list[str], folder: Path) -> None:
    """Parse a command of `python -m tl_research` as it would, and compose the overrides given to it."""
    if arguments in ([], ["--help"], ["COMMAND", "--help"]):
        return
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    name = str(command.name)
    if name in ("train", "extract"):
        compose_training(arguments, folder)
    else:
        assert composed(tuple(command.make_context(name, arguments).args))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Run:
    return compose(["backbone=tiny", "data=folder", f"data.root={colours}", "features.store=null"]).run(
        tmp_path_factory.mktemp("runs") / "run"
    )


@pytest.fixture(scope="module")
def stand_ins(run: Run, colours: Path) -> dict[str, Path]:
    """What the words in capitals stand for."""
    return {"PHOTOS": colours, "OTHER_PHOTOS": colours, "IMAGES": colours, "RUN": run.directory}


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_readmes_two_bash_blocks_are_one_line_each() -> None:
    blocks = [body.strip() for language, body in FENCE.findall(README.read_text()) if language == "bash"]
    assert len(blocks) == 2
    assert all("\n" not in block and "&&" in block for block in blocks)
    assert blocks[0].endswith("python train.py")
    assert blocks[1].endswith("pytest")


def test_the_table_of_groups_is_the_folder_conf() -> None:
    for group in sorted(path for path in (ROOT / "conf").rglob("*") if list(path.glob("*.yaml"))):
        (row,) = re.findall(rf"^\| `{group.relative_to(ROOT / 'conf')}` \| (.*) \|$", README.read_text(), re.M)
        assert {name.rstrip("*") for name in re.findall(r"`([^`]+)`", row)} == {p.stem for p in group.glob("*.yaml")}


@pytest.mark.parametrize("page", SUBJECTS, ids=name_of)
def test_a_page_begins_with_a_command(page: Path) -> None:
    opening = "\n".join(page.read_text().splitlines()[:10])
    assert re.match(r"# .+\n.*?^```\npython ", opening, re.S | re.M)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LOCAL_LINK.findall(without_fences(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", without_fences(target), re.M) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, link


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_tables_have_a_second_line_and_equal_rows(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", without_fences(page), re.M):
        rows = [re.findall(r"(?<!\\)\|", line) for line in table.splitlines()]
        assert re.search(r"\n\|[ :|-]+\|\n", table), table
        assert len({len(row) for row in rows}) == 1, table


def test_every_page_is_linked_from_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LOCAL_LINK.findall(README.read_text())}
    assert {*PAGES[1:], ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"} <= linked


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str, stand_ins: dict[str, Path], tmp_path: Path) -> None:
    arguments = arguments_of(command, stand_ins)
    if command.startswith(TRAIN):
        compose_training(arguments, tmp_path)
    else:
        compose_tool(arguments, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(f"{TRAIN} -m ")])
def test_all_jobs_of_a_sweep_are_fit_to_start(command: str, stand_ins: dict[str, Path]) -> None:
    """All but for weights, and for the clusters that are not here."""
    overrides = read_flags(arguments_of(command, stand_ins)).overrides
    if re.search("launcher=(ray|submitit_slurm)", command):
        overrides = [override for override in overrides if not re.match(r"hydra[/.]launcher", override)]
    overrides = [*overrides, "missing_weights=random"]
    check_jobs("train", Namespace(overrides=overrides, multirun=True, config_name=None, config_dir=None, cfg=None))


def test_benchmarks_that_are_named_exist() -> None:
    for name in re.findall(r"python -m\s+benchmarks (\w+)", "\n".join(page.read_text() for page in PAGES)):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()


def test_every_file_of_a_run_is_on_a_page(run: Run) -> None:
    told = "".join(p.read_text() for p in (README, ROOT / "docs" / "reference" / "run-directory.md") if p.exists())
    for path in run.directory.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in told


def small(arguments: list[str], colours: Path) -> list[str]:
    """The same command on a tiny network and few images; with Slurm's launcher for this machine."""
    own = ("backbone=", "backbone.", "hydra.launcher.")
    kept = [argument for argument in arguments if not argument.startswith(own)]
    kept = [argument.replace("submitit_slurm", "submitit_local") for argument in kept]
    if not any(argument.startswith("data=") for argument in kept):
        kept += ["data=folder", f"data.root={colours}"]
    if "hparams=head" in kept:
        kept.append("hydra.sweeper.n_trials=2")
    return [*kept, "backbone=tiny", "backbone.weights=null"]


def composes_only(command: str) -> bool:
    """Kaggle needs the network; the benchmark that a page begins with has a test of its own below."""
    return "data=kaggle" in command or command.startswith("python -m benchmarks")


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, *SUBJECTS], ids=name_of)
def test_the_first_command_runs(page: Path, stand_ins: dict[str, Path], colours: Path, cwd: Path) -> None:
    command = first_command(page)
    if composes_only(command):
        pytest.skip(f"not run here: {command}")
    arguments = arguments_of(command, stand_ins)
    if not {"predict", "report"} & {*arguments} and "resume=" not in command:  # which take all from a run
        arguments = small(arguments, colours)
    start = [str(ROOT / "train.py")] if command.startswith(TRAIN) else ["-m", "tl_research"]
    result = subprocess.run([sys.executable, *start, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_keras_alone_gives_the_runs_answers(run: Run, tmp_path: Path) -> None:
    """With the loader that the page shows, in a new process, with nothing of ours imported."""
    page = (ROOT / "docs" / "using-a-model.md").read_text()
    (loader,) = re.findall(r"```python\n(image = Image.open\(path\).*?)```", page, re.S)
    program = (
        "import csv, sys, keras, numpy as np\nfrom PIL import Image, ImageOps\nsize = 64\n"
        "for row in csv.DictReader(open('predictions.csv')):\n    path = row['path']\n"
        + "".join(f"    {line}\n" for line in loader.strip().splitlines())
        + "    print(*np.asarray(logits)[0])\n"
        "assert not any(name.startswith('tl_research') for name in sys.modules)\n"
    )
    environment = {"PATH": "", "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=run.directory, env=environment, capture_output=True, text=True, check=True
    )
    logits = np.array([line.split() for line in result.stdout.splitlines()], float)
    with (run.directory / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    recorded = np.log([[float(row[f"p_{name}"]) for name in run.class_names()] for row in rows])
    assert [run.class_names()[i] for i in logits.argmax(1)] == [row["prediction"] for row in rows]
    difference = (logits - logits.mean(1, keepdims=True)) - (recorded - recorded.mean(1, keepdims=True))
    assert np.abs(difference).max() < 1e-3


@pytest.mark.slow
def test_the_main_job_reaches_what_is_promised(tmp_path: Path) -> None:
    assert compose([f"data.cache={tmp_path}"]).run(tmp_path / "run").metrics["test_accuracy"] >= 0.95


@pytest.mark.slow
def test_the_demo_is_as_hard_as_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import demo

    demo.main([])
    colours, random, imagenet = (float(x) for x in re.findall(r"\| (0\.\d{3}) \|", capsys.readouterr().out))
    assert colours <= 0.80
    assert imagenet >= 0.95
    assert random <= imagenet - 0.10
