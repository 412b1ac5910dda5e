"""Fixtures of the metrics' tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioning.metrics import tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh cache folder, and no memory of what other tests tokenised."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CAPTIONING_CACHE", os.fspath(folder))
    tokenizer._tokenized.cache_clear()
    tokenizer._remembered.cache_clear()
    yield folder
    tokenizer._tokenized.cache_clear()
    tokenizer._remembered.cache_clear()


@pytest.fixture(scope="session")
def real_captions(flickr8k_mini: Path) -> dict[str, list[str]]:
    """The five captions of each of 200 images, as people wrote them."""
    captions: dict[str, list[str]] = {}
    text = (flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.split("#")[0], []).append(caption)
    return captions
