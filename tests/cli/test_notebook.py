"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client", "ignore::DeprecationWarning:zmq")
def test_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)  # where Jupyter is started; the kernel starts beside the notebook
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in shown if out.get("name") == "stderr"]
    texts = [out.get("text") or out["data"]["text/plain"] for out in shown]
    assert any("95 % interval" in text for text in texts)
    assert not [text for text in texts if not text.strip() or re.search(r"ipywidgets|[Ww]arning|Output\(|\r", text)]
    assert list(tmp_path.glob("outputs/*/*/model.keras"))
    assert not list(folder.iterdir())
    assert "outputs/" in (ROOT / ".gitignore").read_text().splitlines(), "wherever it lies"
