"""How the C kernels are compiled; what they compute is tested beside the other implementations."""

import os
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


def test_a_damaged_library_is_compiled_again_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Loading a library that is cut short ends the process with SIGBUS."""
    whole = build.compiled_library(tmp_path)
    content = whole.read_bytes()
    monkeypatch.setattr(build, "_compiled", lambda *_: content)
    for damage in (b"", content[:5000], content[: len(content) // 2], b"\x7fELF", content + b"\n",
                   bytes([content[0] ^ 1]) + content[1:]):  # fmt: skip
        caplog.clear()
        whole.write_bytes(damage)
        assert build.compiled_library(tmp_path) == whole
        assert whole.read_bytes() == content
        assert f"{whole} is damaged; it is compiled again" in caplog.text
    foreign = whole.with_name(whole.name[:-7] + "000.so")
    foreign.write_bytes(content)
    whole.unlink()
    assert build.compiled_library(tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_the_library_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_compiled", lambda *_: b"library")
    synced: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append([p.name for p in tmp_path.iterdir()]))
    library = build.compiled_library(tmp_path)
    ((name,),) = synced
    assert name.endswith(".tmp")
    assert library.read_bytes() == b"library"


@needs_compiler
@pytest.mark.parametrize("place", ["file/kernels", "/proc/nonexistent/cache"])
def test_without_a_place_for_the_library_everything_runs_in_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / place))
    caplog.set_level("INFO")
    assert load_kernels.__wrapped__("cpu") is None
    assert "run in plain PyTorch, which is slower" in caplog.text
    assert "cannot be written" in caplog.text
    assert "set CAPTIONING_CACHE to another folder" in caplog.text


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("no-such-compiler -x", "no-such-compiler: No such file"),
        ("false", "false failed"),
        ("true", "true wrote no library"),
        ("gcc '", "CC=gcc ' is no command"),
        (" ", "CC=' ' is no command"),
    ],
)
def test_what_hinders_the_compilation_is_said(
    compiler: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(CompilationError, match=words):
        build.compiled_library(tmp_path)
    assert list(tmp_path.iterdir()) == []
