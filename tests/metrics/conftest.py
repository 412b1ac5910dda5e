"""Fixtures of the metrics' tests."""

import gzip
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from captioning.metrics import meteor, tokenizer


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


@pytest.fixture(scope="session")
def small_meteor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a METEOR with a hundred paraphrases, which it loads at once."""
    folder = tmp_path_factory.mktemp("meteor")
    shutil.copy(meteor._JAR, folder)
    table = Path("data", "paraphrase-en.gz")
    (folder / "data").mkdir()
    with gzip.open(meteor._JAR.parent / table) as whole, gzip.open(folder / table, "w") as small:
        small.writelines(islice(whole, 300))  # three lines each
    return folder


@pytest.fixture
def small_meteor(small_meteor_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """METEOR with a hundred paraphrases, for tests of its processes instead of its scores."""
    monkeypatch.setattr(meteor, "_JAR", small_meteor_folder / meteor._JAR.name)
    monkeypatch.setattr(meteor, "_warm", {})
    yield
    meteor._close()
