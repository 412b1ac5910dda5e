"""How the C kernels are compiled; what they compute is tested beside the other implementations."""

import os
from pathlib import Path

import pytest
import torch

from captioning.kernels import backend, ops
from captioning.kernels.backend import load_kernels, use_backend
from captioning.kernels.cpu import build
from captioning.kernels.cpu.bindings import CKernels
from captioning.kernels.library import CompilationError
from captioning.kernels.ops import AdditiveKeys, Rows, additive_attention
from captioning.models.decoders.attn_lstm import AttentionLSTM

needs_compiler = pytest.mark.skipif(load_kernels("cpu") is None, reason="there is no C compiler")


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {"query": (126, 100), "keys": (7, 5, 100), "weight": (100,), "grid": (7, 5, 8)}
    leaves = {
        name: torch.randn(shape, generator=random).requires_grad_()
        for name, shape in shapes.items()
    }
    query, keys, weight, grid = leaves.values()
    rows = Rows(torch.arange(7 * 18).view(-1, 6).T.flatten(), 7, 18)
    upstream = torch.randn((126, 13), generator=random)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_backend("native"):
                attended = additive_attention(query, AdditiveKeys(keys), weight, grid, rows)
                output = torch.cat(attended, 1)
                gradients = torch.autograd.grad((output * upstream).sum(), [*leaves.values()])
            found.append([output, *gradients])
    finally:
        torch.set_num_threads(before)
    for several in found[1:]:
        assert all(map(torch.equal, several, found[0]))


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


@needs_compiler
def test_any_processor_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources have other code for a processor without the vectors of this one."""
    grid = torch.randn(3, 70, 34, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[[1, 4, 5, 6, 2], [1, 7, 2, 0, 0]]] * 3)
    sizes = {"hidden_dim": 34, "embed_dim": 18, "attention_dim": 21}
    torch.manual_seed(0)
    decoder = AttentionLSTM(50, 34, dropout=0.0, recurrent_dropout=0.0, **sizes)

    def results(bf16: bool) -> list[torch.Tensor]:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), use_backend("native"):
            output = decoder(grid, tokens)
            loss = ops.cross_entropy(output.logits, output.targets, 0.1)
            loss.backward()
            with torch.no_grad():
                chosen, _ = ops.topk(output.logits, 5)
                total = ops.log_sum_exp(output.logits)
        gradients = [parameter.grad for parameter in decoder.parameters()]
        return [output.logits, loss, chosen, total, *gradients]

    expected = [results(bf16) for bf16 in (False, True)]
    monkeypatch.setattr(build, "FLAGS", ("-O1", "-fno-math-errno", "-fPIC"))
    plain = CKernels(build.compiled_library(tmp_path))
    monkeypatch.setattr(backend, "load_kernels", lambda device: plain)
    for bf16, of_all in zip((False, True), expected, strict=True):
        for found, wanted in zip(results(bf16), of_all, strict=True):
            # Only the order of sums differs, but bfloat16 then rounds some numbers elsewhere.
            torch.testing.assert_close(found, wanted, rtol=0.02 if bf16 else 1e-5, atol=2e-4)


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
