"""How the C kernels are compiled; what they compute is tested beside the other implementations."""

import subprocess
import sys
from pathlib import Path

import pytest

from captioning.kernels.backend import load_kernels
from captioning.kernels.cpu import build
from captioning.kernels.library import CompilationError

needs_compiler = pytest.mark.skipif(load_kernels("cpu") is None, reason="there is no C compiler")

THREADS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from captioning.kernels.backend import use_backend
from test_additive import ROWS, attend, gradients, leaves_of
torch.set_num_threads(int(sys.argv[1]))
rows = ROWS["eighteen an image"]
leaves = leaves_of(len(rows.index), units=100)
with use_backend("native"):
    output = attend(*leaves, rows)
    print(*(float(t.double().sum()).hex() for t in (output, *gradients(output, leaves))))
"""


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", THREADS, str(threads), str(Path(__file__).parents[1])],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
        ).stdout
        for threads in (1, 2, 3)
    }  # fmt: skip
    assert len(printed) == 1, printed
    assert len(printed.pop().split()) == 5


@needs_compiler
def test_the_library_is_compiled_once(tmp_path: Path) -> None:
    library = build.compiled_library(tmp_path)
    before = library.stat().st_mtime_ns
    assert build.compiled_library(tmp_path) == library
    assert library.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


@needs_compiler
def test_other_sources_flags_or_processors_are_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build.compiled_library(tmp_path)
    monkeypatch.setattr(build, "_processor", lambda: "another one")
    assert build.compiled_library(tmp_path) != first
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DANOTHER"))
    assert len({build.compiled_library(tmp_path) for _ in range(2)} | {first}) == 2
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-compiler -x", "no-such-compiler: No such file"), ("false", "false failed")],
)
def test_what_hinders_the_compilation_is_said(
    compiler: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CompilationError, match=words):
        build.compiled_library(tmp_path)
    assert list(tmp_path.iterdir()) == []
