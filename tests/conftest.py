"""Fixtures of all tests: generated images, the photographs if present, and no network except loopback."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
hypothesis.settings.register_profile("untimed", deadline=None)  # machines are noisy; no test measures speed
hypothesis.settings.load_profile("untimed")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as where the suite runs in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which processes that tests start inherit
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail tests that use the network, so that the suite runs behind any firewall."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test a cache of its own, outside the user's home."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """Remove the handlers that a command added: they write to a stream that is closed after the test."""
    before = logging.root.handlers[:]
    yield
    for handler in set(logging.root.handlers) - set(before):
        logging.root.removeHandler(handler)


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """Return an empty folder to run commands in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def photos() -> Path:
    """Return the folder of photographs next to the project: `{train,test}/{food,household}`."""
    folders = [Path(p) for p in (os.environ.get("TL_PHOTOS"), ROOT.parent / "shared" / "data" / "stamps") if p]
    for folder in folders:
        if (folder / "train").is_dir():
            return folder
    pytest.skip("no photographs: set TL_PHOTOS to a folder with train/ and test/")


def draw_tree(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Draw small JPEGs under root/<key>/ for keys such as `train/red`; a class is a colour plus noise."""
    rng = np.random.default_rng(seed)
    for folder, count in counts.items():
        name = Path(folder).name
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            base = {"red": (200, 60, 60), "blue": (60, 60, 200), "green": (60, 200, 60)}[name]
            height, width = rng.integers(40, 90, 2)
            pixels = np.clip(rng.normal(base, 50, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{index:03d}.jpg", quality=95)
    return root


def draw_noise(root: Path, splits: tuple[str, ...], count: int) -> Path:
    """Draw two classes, `a` and `b`, that do not differ: predictions are uncertain, and memorizing makes them worse."""
    for seed, split in enumerate(splits):
        for name in ("a", "b"):
            draw_tree(root, {f"{split}/red": count}, seed=10 * seed + ord(name))
            (root / split / "red").rename(root / split / name)
    return root


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw train/ and test/ of two classes, 12 and 6 images each."""
    root = tmp_path_factory.mktemp("colours")
    return draw_tree(root, {"train/blue": 12, "train/red": 12, "test/blue": 6, "test/red": 6})
