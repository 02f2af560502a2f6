"""Features (table, row_source, extraction, head_inputs) come in the order of the images, and a hit changes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT, draw_tree
from tests.experiment.test_experiment import numbers
from tests.features.test_store import flipped
from tests.models.test_backbone import NETWORKS, smallest
from tl_research import InputError, Run, compose
from tl_research.__main__ import app
from tl_research.data.datamodule import DataModule
from tl_research.features import engines
from tl_research.features import store as feature_store
from tl_research.features.engines import BATCH, EngineName, build_engine, keras_engine, openvino_engine
from tl_research.features.row_source import DtypeRangeError
from tl_research.features.store_admin import list_entries
from tl_research.features.table import Features, FeatureTable
from tl_research.models.blocks import find_blocks, split_backbone


@pytest.fixture(scope="module")
def data(colours: Path) -> DataModule:
    return compose(["data=folder", f"data.root={colours}"]).data.load()


@pytest.fixture(scope="module")
def network() -> keras.Model:
    return compose(["backbone=tiny"]).backbone.build()


@pytest.mark.parametrize("name", ["keras", "openvino"])
def test_rows_depend_on_neither_batch_nor_threads(data: DataModule, network: keras.Model, name: EngineName) -> None:
    everything = FeatureTable(network, data, Features(), name, 2).get(np.arange(len(data)))
    assert len(data) % BATCH  # so that the last batch is padded
    some = np.array([30, 2, 17])
    again = FeatureTable(network, data, Features(), name, 1).get(some)
    np.testing.assert_array_equal(again, everything[some])
    pixels = np.stack([data.pixels(i, 64) for i in range(len(data))]).astype(np.float32)
    np.testing.assert_allclose(everything, network(pixels, training=False), atol=1e-5)


def test_each_image_is_read_once(data: DataModule, network: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[int] = Counter()
    pixels = DataModule.pixels
    monkeypatch.setattr(DataModule, "pixels", lambda self, i, size: (seen.update([i]), pixels(self, i, size))[1])
    FeatureTable(network, data, Features(), "keras", 2).get(np.arange(len(data)))
    assert seen == Counter(range(len(data)))


def test_openvino_is_chosen_on_a_cpu(network: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(engines, "openvino_engine", lambda *_: chosen.append("openvino"))
    monkeypatch.setattr(engines, "keras_engine", lambda *_: chosen.append("keras"))
    build_engine("auto", network, 1)
    build_engine("keras", network, 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    build_engine("auto", network, 1)
    assert chosen == ["openvino", "keras", "keras"]
    with pytest.raises(InputError, match="pip install openvino"):
        build_engine("openvino", network, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_engines_agree(name: str) -> None:
    backbone = compose([f"backbone={name}", "backbone.weights=null"]).backbone.build()
    size = backbone.input_shape[1]
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    expected = keras_engine(backbone)(pixels)
    np.testing.assert_allclose(
        openvino_engine(backbone, 2)(pixels), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


# With a store


def trained(folder: Path, data: Path, *overrides: str) -> Run:
    options = ["backbone=tiny", "data=folder", f"data.root={data}", *overrides]
    return compose(options).run(folder)


def extracted(folder: Path, data: Path, *overrides: str) -> Run:
    return compose(["backbone=tiny", "data=folder", f"data.root={data}", *overrides]).extract(folder)


def counts(run: Run) -> tuple[int, int]:
    return run.metrics["features_computed"], run.metrics["features_hit"]


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        ("openvino", "lbfgs"),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in (("openvino", "adam"), ("keras", "lbfgs"))),
    ],
)
def test_cached_features_change_nothing_but_time(tmp_path: Path, colours: Path, engine: str, optimizer: str) -> None:
    options = [f"engine={engine}", f"optimizer={optimizer}", "transfer.head.epochs=3"]
    cold = trained(tmp_path / "cold", colours, *options)
    warm = trained(tmp_path / "warm", colours, *options)
    off = trained(tmp_path / "off", colours, *options, "features.store=null")
    assert counts(cold) == counts(off) == (36, 0)
    assert counts(warm) == (0, 36)
    assert numbers(cold) == numbers(warm) == numbers(off)
    answers = [(run.directory / "predictions.csv").read_bytes() for run in (cold, warm, off)]
    assert answers[0] == answers[1] == answers[2]


def test_other_seeds_splits_heads_and_optimizers_reuse_rows(tmp_path: Path, colours: Path) -> None:
    trained(tmp_path / "0", colours)
    others = [["seed=3", "data.val=0.4", "head=knn"], ["head=mlp", "transfer.head.epochs=1", "backbone.name=another"]]
    for number, overrides in enumerate(others, 1):
        assert counts(trained(tmp_path / str(number), colours, *overrides)) == (0, 36), overrides


@pytest.mark.slow
def test_rows_of_other_settings_are_not_reused(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted(tmp_path / "0", colours)
    others = ["backbone.seed=1", "backbone.image_size=96", "data.resize=pad", "backbone.preprocessing=torch",
              "engine=keras", "backbone.pooling=max"]  # fmt: skip
    for number, override in enumerate(others, 1):
        assert counts(extracted(tmp_path / str(number), colours, override)) == (36, 0), override
    for name in ("tl_research.data.decode.DECODER_VERSION", "tl_research.features.engines.ENGINES_VERSION"):
        with monkeypatch.context() as changed:
            changed.setattr(name, "another version of the code")
            assert counts(extracted(tmp_path / name, colours)) == (36, 0), name


def test_only_new_images_are_computed(tmp_path: Path, colours: Path) -> None:
    own = shutil.copytree(colours, tmp_path / "own")
    first = sorted((own / "train" / "red").iterdir())[0]
    shutil.copy(first, first.with_name("again.jpg"))
    shutil.copy(first, own / "test" / "red" / "and_again.jpg")
    assert counts(extracted(tmp_path / "0", own)) == (36, 2)
    draw_tree(tmp_path / "more", {"train/red": 10}, seed=5)
    for number, path in enumerate((tmp_path / "more" / "train" / "red").iterdir()):
        path.rename(own / "train" / "red" / f"new{number}.jpg")
    (own / "train" / "blue" / "000.jpg").rename(own / "train" / "blue" / "renamed.jpg")
    assert counts(extracted(tmp_path / "1", own)) == (10, 38)
    run = trained(tmp_path / "2", own, "data.allow_leaks=true")
    assert (*counts(run), run.metrics["num_leaks"]) == (0, 48, 1)


def test_a_changed_image_is_computed_again(tmp_path: Path, colours: Path) -> None:
    own = shutil.copytree(colours, tmp_path / "own")
    extracted(tmp_path / "0", own)
    path = own / "train" / "red" / "003.jpg"
    before = path.stat()
    path.write_bytes((own / "train" / "red" / "004.jpg").read_bytes() + b"\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts(extracted(tmp_path / "1", own)) == (1, 35)


def shards(store: Path, suffix: str) -> list[Path]:
    return sorted(store.glob(f"*/*.{suffix}"))


@pytest.mark.slow
@pytest.mark.parametrize(("harm", "computed"), [("flip a row", 1), ("no index", 36)])
def test_damaged_rows_are_computed_again(tmp_path: Path, colours: Path, harm: str, computed: int) -> None:
    store = tmp_path / "store"
    good = trained(tmp_path / "0", colours, f"features.store={store}")
    (rows,), (index,) = shards(store, "rows"), shards(store, "index")
    if harm == "flip a row":
        flipped(rows, rows.stat().st_size // 2, 4)
    else:
        index.unlink()
    again = trained(tmp_path / "1", colours, f"features.store={store}")
    assert again.metrics["features_computed"] == computed
    assert numbers(again) == numbers(good)
    assert counts(extracted(tmp_path / "2", colours, f"features.store={store}")) == (0, 36)


def test_max_gb_removes_old_features(tmp_path: Path, colours: Path) -> None:
    store = tmp_path / "store"
    extracted(tmp_path / "0", colours, f"features.store={store}")
    for path in shards(store, "index"):
        os.utime(path, (1, 1))
    extracted(tmp_path / "1", colours, f"features.store={store}", "backbone.seed=1", "features.max_gb=1e-9")
    assert len(shards(store, "index")) == len(list(store.glob("*/about.json"))) == 1, (
        "a run keeps the rows that it uses"
    )
    assert counts(extracted(tmp_path / "2", colours, f"features.store={store}", "backbone.seed=1")) == (0, 36)


# Feature maps of frozen blocks


@pytest.fixture(scope="module")
def prefix(network: keras.Model) -> keras.Model:
    return split_backbone(network, 1)[0]


def table(prefix: keras.Model, data: DataModule, store: Path | None, **options: Any) -> FeatureTable:
    features = Features(store=str(store) if store else None)
    return FeatureTable(prefix, data, features, "auto", 2, **{"row_type": "<f2", **options})


EVERYTHING = np.arange(36)


def test_maps_are_bit_identical_with_and_without_a_store(prefix: keras.Model, data: DataModule, tmp_path: Path) -> None:
    tables = [table(prefix, data, store) for store in (tmp_path, tmp_path, None)]
    cold, warm, off = (one.get(EVERYTHING) for one in tables)
    assert (cold.shape, cold.dtype) == ((36, 16, 16, 16), np.float16)
    assert [(one.computed, one.hit) for one in tables] == [(36, 0), (0, 36), (36, 0)]
    np.testing.assert_array_equal(warm, cold)
    np.testing.assert_array_equal(off, cold)
    exact = table(prefix, data, tmp_path, row_type="<f4").get(EVERYTHING)
    np.testing.assert_array_equal(exact.astype(np.float16), cold)
    pixels = np.stack([data.pixels(i, 64) for i in range(36)]).astype(np.float32)
    np.testing.assert_allclose(exact, prefix(pixels, training=False), atol=1e-5)
    assert tables[0].size_gb(36) == cold.nbytes / 1e9
    assert sum(path.stat().st_size for path in shards(tmp_path, "rows")) == 3 * cold.nbytes, "float16 and float32"


def test_batches_come_from_memory_or_from_the_store(
    prefix: keras.Model, data: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table(prefix, data, None).get(EVERYTHING)
    small = table(prefix, data, tmp_path)
    small.load(EVERYTHING)
    monkeypatch.setattr("tl_research.features.table.HELD_GB", 0.0)
    monkeypatch.setattr("tl_research.features.table.CHUNK_BYTES", small.row.itemsize * 20)  # 16 rows, then 16, then 4
    tables = [small, table(prefix, data, tmp_path), table(prefix, data, tmp_path / "other"), table(prefix, data, None)]
    some = np.array([30, 2, 17])
    for one in tables:
        one.load(EVERYTHING)
        counted = one.computed, one.hit
        np.testing.assert_array_equal(one.get_batch(some), expected[some])
        np.testing.assert_array_equal(one.get_batch(some[::-1]), expected[some[::-1]])
        assert (one.computed, one.hit) == counted
    assert [one.in_memory(EVERYTHING) for one in tables] == [True, False, False, True]
    assert [(one.computed, one.hit) for one in tables] == [(36, 0), (0, 36), (36, 0), (36, 0)]
    shutil.rmtree(tables[2].source.parts[0].store.folder)
    np.testing.assert_array_equal(tables[2].get_batch(some), expected[some])
    assert tables[2].computed == 39, "lost rows are computed again"


def test_maps_stay_in_memory_when_the_disk_is_full(
    prefix: keras.Model, data: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store.ShardWriter, "append", full)
    monkeypatch.setattr("tl_research.features.table.HELD_GB", 0.0)
    one = table(prefix, data, tmp_path)
    one.load(EVERYTHING)
    counted = one.computed
    one.get_batch(EVERYTHING)
    assert one.computed == counted


@pytest.mark.parametrize("factor", [1e6, pytest.param(1e-8, marks=pytest.mark.slow)])
def test_features_that_overflow_float16_are_not_stored(data: DataModule, tmp_path: Path, factor: float) -> None:
    network = compose(["backbone=tiny"]).backbone.build()
    prefix = split_backbone(network, 2)[0]
    norm = network.get_layer("block1_bn")
    for variable in (norm.gamma, norm.beta):
        variable.assign(variable * factor)
    for store in (tmp_path, None):
        one = table(prefix, data, store)
        with pytest.raises(DtypeRangeError, match="float16 is no type for them"):
            one.load(EVERYTHING)
        assert not stored(tmp_path)
    wide = table(prefix, data, tmp_path, row_type="<f4").get(EVERYTHING)
    assert np.isfinite(wide).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_engines_agree_on_maps(name: str) -> None:
    options = [f"backbone={name}", "backbone.weights=null", f"backbone.image_size={smallest(name)}"]
    backbone = compose(options).backbone.build()
    size = backbone.input_shape[1]
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), np.uint8)
    for unfreeze in range(1, len(find_blocks(backbone))):
        prefix, _ = split_backbone(backbone, unfreeze)
        expected = np.asarray(prefix(pixels.astype(np.float32), training=False))
        for found in (keras_engine(prefix)(pixels), openvino_engine(prefix, 2)(pixels)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# The commands `extract` and `features`


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tl_research", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_shards_fill_one_store_and_a_run_finds_all_of_it(tmp_path: Path, colours: Path) -> None:
    options = ["backbone=tiny", "data=folder", f"data.root={colours}", f"features.store={tmp_path / 'store'}"]
    done = command("extract", "-m", "shard=0/3,1/3,2/3", *options, f"hydra.sweep.dir={tmp_path / 'sweep'}", "threads=2")
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/metrics.json")]
    assert [(m["features_computed"], m["features_hit"]) for m in metrics] == [(12, 0)] * 3
    assert not list((tmp_path / "sweep").glob("*/model.keras"))
    assert counts(compose(options).run(tmp_path / "run")) == (0, 36)


def test_the_store_is_listed_verified_and_pruned(tmp_path: Path, colours: Path) -> None:
    store = f"features.store={tmp_path / 'store'}"
    extracted(tmp_path / "run", colours, store)
    looked = CliRunner().invoke(app, ["features", "list", store])
    assert re.search(r"tiny .* 64 .* openvino .* 36 ", looked.stdout), looked.stdout
    whole = CliRunner().invoke(app, ["features", "verify", store])
    assert (whole.exit_code, whole.stdout.strip()) == (0, "36 rows, 0 damaged")
    path = shards(tmp_path / "store", "rows")[0]
    path.write_bytes(b"\xff" * 4 + path.read_bytes()[4:])
    broken = CliRunner().invoke(app, ["features", "verify", store])
    assert broken.exit_code == 1
    assert f"{path}: 1 damaged row(s)" in broken.stdout
    assert CliRunner().invoke(app, ["features", "prune", "--max-gb", "0", store]).exit_code == 0
    assert not shards(tmp_path / "store", "rows")
    missing = CliRunner().invoke(app, ["features", "list", f"{store}/nowhere"])
    assert isinstance(missing.exception, InputError)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shard=4/4"], "shard=4/4: give a part and the number of parts, such as 0/4"),
        (["shard=first"], "shard=first: give a part"),
        (["shard=0/0"], "shard=0/0: give a part"),
    ],
)
def test_an_invalid_shard_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        compose(overrides)


def test_training_refuses_shards_and_extraction_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard=0/2 is for"):
        compose(["shard=0/2"]).run(tmp_path / "run")
    with pytest.raises(InputError, match=r"features\.store=null"):
        compose(["features.store=null"]).extract(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_views_are_stored_beside_original_images(tmp_path: Path, colours: Path) -> None:
    options = ["backbone=tiny", "data=folder", f"data.root={colours}", "data/augment=light", "features.views=2"]
    extracted = compose(options).extract(tmp_path / "0")
    assert counts(extracted) == (36 * 3, 0)
    assert counts(compose(options).run(tmp_path / "1"))[0] == 0


def stored(store: Path) -> int:
    """Count the undamaged rows."""
    entries = list_entries(store) if store.is_dir() else []
    return sum(entry.num_rows - sum(map(len, entry.damaged().values())) for entry in entries)


def killed(options: list[str], folder: Path, rows: int) -> None:
    """Kill an extraction as soon as it has stored this many rows."""
    store = next(option.partition("=")[2] for option in options if option.startswith("features.store="))
    process = subprocess.Popen(
        [sys.executable, "-m", "tl_research", "extract", *options, f"hydra.run.dir={folder}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and stored(Path(store)) < rows:
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10])
def test_a_killed_extraction_is_continued(tmp_path: Path, kills: int) -> None:
    draw_tree(tmp_path, {"photos/red": 400, "photos/blue": 400})
    options = ["backbone=tiny", "backbone.image_size=160", "data=folder", f"data.root={tmp_path / 'photos'}",
               f"features.store={tmp_path / 'store'}"]  # fmt: skip
    rng = np.random.default_rng()
    for number in range(kills):
        there = stored(tmp_path / "store")
        killed(options, tmp_path / f"killed{number}", there + int(rng.integers(1, 30)))
    there = stored(tmp_path / "store")
    assert 0 < there < 800
    after = compose(options).run(tmp_path / "after")
    assert counts(after) == (800 - there, there)
    whole = compose([*options, "features.store=null"]).run(tmp_path / "whole")
    assert numbers(after) == numbers(whole)
