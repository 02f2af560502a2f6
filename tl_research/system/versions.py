"""Versions of the packages that can change a number."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = {name: (name,) for name in ("tensorflow", "keras", "numpy", "pillow", "scikit-learn", "openvino")} | {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly")
}


def versions() -> dict[str, str]:
    """Look up the versions that `metrics.json` records, `version_<package>`; nothing is imported."""
    from tl_research import __version__

    found = {"version_python": platform.python_version(), "version_tl_research": __version__}
    for package, distributions in _PACKAGES.items():
        found[f"version_{package}"] = "unknown"
        for distribution in distributions:
            with contextlib.suppress(PackageNotFoundError):
                found[f"version_{package}"] = version(distribution)
    return found
