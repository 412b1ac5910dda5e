"""Fixtures of the metrics' tests."""

import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from scored_corpora import Case, made_up_corpus

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


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Makes a `Case` with a cache folder that all of them share."""
    folder = tmp_path_factory.mktemp("cache")

    def score(hypotheses: dict[str, str], references: dict[str, list[str]]) -> Case:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CAPTIONING_CACHE", os.fspath(folder))
            return Case(hypotheses, references)

    return score


@pytest.fixture(scope="session")
def made_up(scored: Callable[..., Case]) -> Case:
    """Captions of few words, which share many n-grams."""
    return scored(*made_up_corpus())


@pytest.fixture(scope="session")
def people(scored: Callable[..., Case], real_captions: dict[str, list[str]]) -> Case:
    """What one person wrote against what the others did, of 200 images.

    Of each fifth image the caption breaks off, and of each ninth it is among the references.
    """
    numbered = list(enumerate(real_captions.items()))
    return scored(
        {
            image: " ".join(c[0].split()[: 4 if place % 5 == 0 else None])
            for place, (image, c) in numbered
        },
        {image: c[0 if place % 9 == 0 else 1 :] for place, (image, c) in numbered},
    )


@pytest.fixture(params=["made up", "people"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the two corpora."""
    found: Case = request.getfixturevalue(request.param.replace(" ", "_"))
    return found
