"""The tutorial, run from the first cell to the last with few scenes; the outputs that it keeps."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
SMALL = "SCENES = 64\nEPOCHS = 1\n"


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join(
        "".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"
    )


def test_tutorial_runs_on_a_few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    root = str(TUTORIAL.parents[1])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(TUTORIAL, as_version=4)
    [settings] = [
        cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])
    ]
    settings["source"] = SMALL
    client = nbclient.NotebookClient(
        notebook, timeout=600, startup_timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = "\n".join(printed(cell) for cell in code_cells(notebook))
    assert "the step by hand equals decoder.step" in text
    assert "floor of 'one'" in text


def test_tutorial_keeps_the_outputs_of_one_whole_run() -> None:
    notebook = json.loads(TUTORIAL.read_text())
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    pictures = [o for cell in cells for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 6
    settings = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assert "".join(settings["source"]) != SMALL


def test_first_code_cell_installs_from_the_clone_or_an_address_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = code_cells(json.loads(TUTORIAL.read_text()))[0]
    assert printed(first) == ""
    installed: list[str] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: installed.append(command[-1]))

    def run(folder: Path, address: str = "") -> list[str]:
        source = "".join(first["source"])
        assert 'REPOSITORY = "' in source
        source = re.sub('REPOSITORY = ".*"', f'REPOSITORY = "{address}"', source)
        monkeypatch.chdir(folder)
        installed.clear()
        exec(compile(source, "first cell", "exec"), {})
        return list(installed)

    assert run(tmp_path) == []
    monkeypatch.setitem(sys.modules, "captioning.captioner", None)  # it cannot be imported any more
    root = TUTORIAL.parents[1]
    assert run(root / "docs") == run(root) == [str(root)]
    assert run(tmp_path, "https://host/captioning.git") == ["git+https://host/captioning.git"]
    with pytest.raises(RuntimeError, match="open this notebook in a clone"):
        run(tmp_path)
