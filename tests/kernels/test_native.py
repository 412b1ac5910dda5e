"""How the attention in C is compiled and chosen; what it computes is in test_attention.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captioning.kernels import native
from captioning.models.attention import additive as attention
from captioning.support.errors import CaptioningError

pytestmark = pytest.mark.skipif(native.kernels("cpu") is None, reason="there is no C compiler")

THREADS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_attention import ROWS, attend, gradients, leaves_of
torch.set_num_threads(int(sys.argv[1]))
rows = ROWS["eighteen an image"]
leaves = leaves_of(len(rows.place), units=100)
output = attend(*leaves, rows)
print(*(float(t.double().sum()).hex() for t in (output, *gradients(output, leaves))))
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", THREADS, str(threads), str(Path(__file__).parent)],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        ).stdout
        for threads in (1, 2, 3)
    }  # fmt: skip
    assert len(printed) == 1, printed


def test_the_settings_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "wanted", True)
    attention.accelerate(False, "cpu")
    assert native.kernels_for(torch.ones(1), torch.ones(1)) is None
    attention.accelerate("auto", "cpu")
    assert native.kernels_for(torch.ones(1), torch.ones(1)) is not None
    monkeypatch.setattr(native, "kernels", lambda device: None)
    attention.accelerate("auto", "cpu")
    with pytest.raises(CaptioningError, match="compile=true"):
        attention.accelerate(True, "cpu")


def test_the_library_is_compiled_once(tmp_path: Path) -> None:
    library = native.compiled(tmp_path)
    before = library.stat().st_mtime_ns
    assert native.compiled(tmp_path) == library
    assert library.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-compiler -x", "no-such-compiler: No such file"), ("false", "false failed")],
)
def test_what_hinders_the_compilation_is_said(
    compiler: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CaptioningError, match=words):
        native.compiled(tmp_path)
    assert list(tmp_path.iterdir()) == []
