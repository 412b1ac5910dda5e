"""What killed processes leave in temporary folders, and in the folders that they write."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from captioning.support.files import atomic_write_text
from captioning.support.scratch import remove_leftovers, scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from captioning.support.files import atomic_write_text
from captioning.support.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "file").touch()
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    atomic_write_text(Path(sys.argv[1]) / "results.json", "new")
"""


def test_what_a_killed_process_has_left_is_removed(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "results.json", "old")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    with scratch_folder(tmp_path) as mine:
        with scratch_folder(tmp_path) as another:  # that of a living process stays
            assert mine.is_dir()
            assert another != mine
        assert not another.exists()
        remove_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {tmp_path / "results.json", mine}
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_scratch_folder_is_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert folder.parent == tmp_path
    remove_leftovers(tmp_path / "nowhere")
