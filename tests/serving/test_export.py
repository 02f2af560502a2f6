"""Exports: the answers are the run's, whatever the format; each complaint about other frameworks' exports has a test.
Modules: snippets, facts, check_images, converters, runtimes, quantization, litert_metadata, summary."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import ROOT
from tl_research import InputError, Run, compose
from tl_research.__main__ import app
from tl_research.data.decode import read_pixels
from tl_research.data.pixel_range import PixelRange
from tl_research.evaluation.predict import predict_logits
from tl_research.metrics.probabilities import softmax
from tl_research.serving import export
from tl_research.serving.check_images import check_images, is_deep
from tl_research.serving.converters import CONVERTERS, Job
from tl_research.serving.export import export_run
from tl_research.serving.facts import facts_of
from tl_research.serving.runtimes import RUNTIMES
from tl_research.serving.snippets import FORMATS, usage_script

PACKAGES = {"onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",), "openvino": ("nncf",)}
OLDER = ROOT / "tests" / "fixtures" / "aeace94" / "finished"


def needs_extra(format_: str) -> None:
    if missing := [name for name in PACKAGES.get(format_, ()) if find_spec(name) is None]:
        pytest.skip(f"needs tl_research[export]: {missing} is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Run:
    options = ["backbone=tiny", "backbone.preprocessing=caffe", "data=folder", f"data.root={colours}", "callbacks=none"]
    return compose([*options, "data.resize=pad"]).run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def job(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    (folder / "artifact").mkdir()
    return Job(run.model(), facts_of(run), folder, int8=False, max_drop=0.0)


@pytest.fixture(scope="module")
def predict(job: Job) -> Callable[[np.ndarray], np.ndarray]:
    """The exported model, as its own runtime answers."""
    CONVERTERS["keras"](job)
    return RUNTIMES["keras"](job.target)


def images_of(run: Run) -> tuple[list[Path], np.ndarray]:
    paths = [Path(row["path"]) for row in run.answers("predictions.csv")]
    return paths, np.stack([read_pixels(path, run.config["backbone"]["image_size"], run.resize) for path in paths])


def preprocessing(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    expected = softmax(np.stack([np.asarray(row) for row in predict_logits(run, paths)]) / job.facts["temperature"])
    assert predict(pixels) == pytest.approx(expected, abs=1e-5)


def threshold(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    temperature = json.loads((run.directory / "calibration.json").read_text())["temperature"]
    assert temperature == job.facts["temperature"] != 1
    assert predict(pixels).sum(axis=1) == pytest.approx(1, abs=1e-5)


def channel_order(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    names = job.facts["class_names"]
    assert [names[row.argmax()] for row in predict(pixels)] == [path.parent.name for path in paths]
    assert [names[row.argmax()] for row in predict(pixels[..., ::-1])] != [path.parent.name for path in paths]


def batch_size(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    whole = predict(pixels)
    for size in (1, 3, len(pixels) - 1):
        assert predict(pixels[:size]) == pytest.approx(whole[:size], abs=1e-5)


def precision(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    assert predict(pixels).dtype == np.float32


def class_order(run: Run, job: Job, predict: Any, paths: list[Path], pixels: np.ndarray) -> None:
    said = json.loads((run.directory / "classes.json").read_text())
    recorded = [row["prediction"] for row in run.answers("predictions.csv")]
    assert job.facts["class_names"] == said
    assert [said[row.argmax()] for row in predict(pixels)] == recorded


@pytest.mark.parametrize("holds", [preprocessing, threshold, channel_order, batch_size, precision, class_order])
def test_what_others_exports_get_wrong(holds: Callable[..., None], run: Run, job: Job, predict: Any) -> None:
    holds(run, job, predict, *images_of(run))


def odd_images(folder: Path) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, 256, (301, 458, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[..., :3]).save(folder / "large.jpg")
    Image.fromarray(noise[:67, :36, :3]).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(noise[:51, :90]).save(folder / "transparent.png")
    Image.fromarray(noise[:40, :23, 0]).save(folder / "grey.png")
    Image.fromarray(noise[:9, :80, :3]).quantize(16).save(folder / "palette.gif")
    return sorted(folder.iterdir())


def test_the_page_shows_the_script_as_it_is_written() -> None:
    page = (ROOT / "docs" / "using-a-model.md").read_text()
    assert usage_script("onnx", 224, "squash").partition("\n")[2] in page


def deep_images(folder: Path, top: int) -> list[Path]:
    noise = np.random.default_rng(0).integers(0, top, (41, 58), np.uint16)
    Image.fromarray(noise).save(folder / "sixteen.png")
    Image.fromarray(noise.astype(np.int32)).save(folder / "many.tif")
    Image.fromarray((noise / 65536).astype(np.float32)).save(folder / "unit.tif")
    Image.fromarray((noise / 300).astype(np.float32)).save(folder / "float.tif")
    return sorted(folder.iterdir())


@pytest.fixture
def pixels_of_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], np.ndarray]:
    """Run a script for an image; what it gives to the model."""
    seen: list[np.ndarray] = []
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={"class_names": '["a"]'}),
        run=lambda _, inputs: [[seen.append(inputs["pixels"]) or np.ones(1)]],
    )
    stub = ModuleType("onnxruntime")
    stub.InferenceSession = lambda path: session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", stub)

    def pixels(script: str, path: Path) -> np.ndarray:
        monkeypatch.setattr(sys, "argv", ["use.py", str(path)])
        exec(compile(script, "use.py", "exec"), {"__file__": str(tmp_path / "use.py")})
        return seen[-1][0]

    return pixels


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a script need not close its file
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_other_resize(resize: Any, tmp_path: Path, pixels_of_script: Any) -> None:
    """The script, as it is written, reads and resizes any image as the run does."""
    script = usage_script("onnx", 33, resize)
    lines = [line for line in script.splitlines() if line and not line.startswith(("#", "import ", "from "))]
    assert len(lines) <= (10 if resize != "pad" else 11)
    for path in odd_images(tmp_path):
        np.testing.assert_array_equal(pixels_of_script(script, path), read_pixels(path, 33, resize))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("top", "values"), [(65536, PixelRange()), (4096, PixelRange(12)), (2000, PixelRange(16, (-20.0, 1500.0)))]
)
def test_more_than_8_bits(top: int, values: PixelRange, tmp_path: Path, pixels_of_script: Any) -> None:
    script = usage_script("onnx", 33, "squash", values)
    for path in deep_images(tmp_path, top):
        assert is_deep(str(path))
        expected = read_pixels(path, 33, "squash", values)
        np.testing.assert_array_equal(pixels_of_script(script, path), expected, err_msg=path.name)


@pytest.fixture
def moved(tmp_path: Path) -> Run:
    """A run of version 0.1 whose images are not there."""
    folder = shutil.copytree(OLDER, tmp_path / "moved")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("@IMAGES@", "/gone").replace("@STORE@", "/gone"))
    return Run.open(folder)


def test_a_run_that_was_moved_is_checked_on_photographs(moved: Run) -> None:
    paths, pixels = check_images(moved, 32, moved.resize, 32)
    assert set(paths) == {""}
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(paths) == 8
    assert facts_of(moved)["temperature"] > 0


@pytest.mark.parametrize(("format_", "missing"), [("onnx", "tf2onnx"), ("litert", "ai_edge_litert")])
def test_a_missing_extra_is_named(format_: str, missing: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(InputError, match=rf'needs {missing}: pip install "tl_research\[export\]"'):
        export_run(run, format_)


def test_what_a_killed_export_left_is_removed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f".onnx.a1b2{export.JOB}"
    left.mkdir()
    (left / "lock").touch()
    monkeypatch.setattr(export, "usage_script", lambda *_: (_ for _ in ()).throw(InputError("stop")))
    with pytest.raises(InputError, match="stop"):
        export_run(run, "onnx", tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def command(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(cwd)}
    whole = [sys.executable, *map(str, arguments)]
    return subprocess.run(whole, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, Run]:
    """A frozen run, a fine-tuned one, and the ensemble of the two."""
    sweep = tmp_path_factory.mktemp("lite0")
    options = ["backbone=efficientnet_lite0", "data=folder", f"data.root={photos}", "callbacks=none"]
    tuned = ["transfer=finetune", "transfer.backbone.epochs=1", "backbone.image_size=128"]
    for name, more in (("frozen", []), ("tuned", tuned)):
        compose([*options, "data.resize=crop", *more]).run(sweep / name)
    CliRunner().invoke(app, ["ensemble", str(sweep), "-o", str(sweep / "both")], catch_exceptions=False)
    return {name: Run.open(sweep / name) for name in ("frozen", "tuned", "both")}


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_lite0_answers_in_ten_lines_as_the_run_does(format_: str, lite0: dict[str, Run], tmp_path: Path) -> None:
    needs_extra(format_)
    for name in ("frozen", "tuned"):
        export_run(lite0[name], format_)
    run = lite0["both"]
    result = command("-m", "tl_research", "export", run.directory, "--to", format_, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the same class for all" in result.stdout
    folder = run.directory / "export" / format_
    photo = Path(run.answers("predictions.csv")[-1]["path"])
    answer = subprocess.run(
        [sys.executable, "-I", folder / "use.py", photo], capture_output=True, text=True, check=True, timeout=120
    )
    (logits,) = predict_logits(run, [photo])
    expected = softmax(np.asarray(logits)[None] / run.calibration["temperature"])[0]
    assert json.loads(answer.stdout) == pytest.approx(dict(zip(run.class_names(), expected, strict=True)), abs=1e-4)


def int8_convolutions(folder: Path) -> int:
    import openvino

    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU")
    facts = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    kinds = [(info["layerType"].value, info["runtimePrecision"].value) for info in facts if "layerType" in info]
    return sum("Convolution" in kind and precision in ("u8", "i8") for kind, precision in kinds)


@pytest.mark.slow
def test_openvino_in_int8_computes_convolutions_in_int8(lite0: dict[str, Run], tmp_path: Path) -> None:
    needs_extra("openvino")
    folder = lite0["frozen"].directory
    arguments = ["--to", "openvino", "--int8", "--max-drop", 0.05]
    result = command("-m", "tl_research", "export", folder, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int8_convolutions(folder / "export" / "openvino-int8") > 20
    assert "get another class" in result.stdout
    assert re.search(r"^  float32: [\d.]+ MB, [\d.]+ ms for one image", result.stdout, re.M)


@pytest.mark.slow
def test_litert_in_int8_carries_its_labels(run: Run, tmp_path: Path) -> None:
    needs_extra("litert")
    target = tmp_path / "int8"
    result = command(
        "-m", "tl_research", "export", run.directory, "--to", "litert", "--int8", "-o", target, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(target / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().split() == run.class_names()
        assert json.loads(archive.read("model.json"))["precision"] == "int8"


@pytest.mark.slow
def test_a_run_of_version_0_1_is_exported_wherever_it_lies(moved: Run, tmp_path: Path) -> None:
    result = command("-m", "tl_research", "export", "moved", "--to", "openvino", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "moved" / "export" / "openvino").iterdir()} == {
        *("model.xml", "model.bin", "model.json", "use.py")
    }


@pytest.mark.slow
def test_an_export_that_answers_otherwise_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1)
    before = sorted(run.directory.rglob("*"))
    with pytest.raises(InputError, match="does not answer as the run does"):
        export_run(run, "openvino")
    assert sorted(run.directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--to", "onnx", "--int8"], "no 8-bit form"),
        (["--to", "litert", "--int8", "--max-drop", "2"], "should be from 0 to 1"),
        (["--to", "keras", "-o", "nowhere/x"], "there is no folder nowhere"),
        (["--to", "keras", "-o", "full"], "something else already"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], reason: str, run: Run, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cwd / "full").mkdir()
    (cwd / "full" / "photo.jpg").touch()
    monkeypatch.chdir(cwd)
    error = CliRunner().invoke(app, ["export", str(run.directory), *arguments]).exception
    assert isinstance(error, InputError)
    assert reason in str(error)
