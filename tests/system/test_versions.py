"""Versions of packages, for the record, and the hardware that kernels are chosen by."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError

import pytest

import tl_research
from tl_research.system.hardware import cores, memory_gb, processor
from tl_research.system.versions import versions


def test_versions_are_complete() -> None:
    known = versions()
    assert {"version_tensorflow", "version_keras", "version_openvino"} <= set(known)
    assert "unknown" not in known.values()


def test_missing_packages_have_unknown_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("tl_research.system.versions.version", missing)
    known = versions()
    assert known["version_tl_research"] == tl_research.__version__
    assert known["version_keras"] == "unknown"
    assert known["version_python"] == platform.python_version()


def test_hardware_is_known() -> None:
    assert cores() >= 1
    assert memory_gb() > 0
    assert processor().startswith(platform.machine())
