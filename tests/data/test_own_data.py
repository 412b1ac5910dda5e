"""Ten pictures in each layout of anybody's data: found, read alike, and trained for an epoch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import tiny
from ten_pictures import ARROW, CAPTIONS, PICTURES, SPLIT_OF, TEXTS

from captioning.data.datamodule import CaptionDataModule

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]

SPLITS = {"train": "train", "val": "dev", "test": "test"}

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow, an extra, is not installed"
)
LAYOUTS = [*TEXTS, *(pytest.param(name, marks=needs_pyarrow) for name in ARROW)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all layouts, which have the same pictures."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_found_and_trained_for_an_epoch(
    tmp_path: Path, cache: Path, layout: str
) -> None:
    root = {**TEXTS, **ARROW}[layout](tmp_path / "data")
    data = tiny.data(root, cache, name="own")
    data.read_text()
    read = {
        image.path.read_bytes(): (image.split, sorted(image.captions))
        for image in data.corpus.images
    }
    assert read == {
        PICTURES[image]: (SPLITS[SPLIT_OF[image]], sorted(captions))
        for image, captions in CAPTIONS.items()
    }
    assert not data.corpus.warnings

    model = tiny.captioner(data, backend="torch")
    record = tiny.Record()
    tiny.trainer(tmp_path, record, limit_val_batches=0).fit(model, datamodule=data)
    assert {image for ids in record.ids for image in ids} == {
        image.id for image in data.images("train")
    }
    assert len(record.losses) == 3


@needs_pyarrow
@pytest.mark.parametrize("layout", ["CSV", "JSON", "a column of splits"])
def test_the_same_data_has_one_fingerprint(tmp_path: Path, cache: Path, layout: str) -> None:
    """These layouts name the images alike, in the order of their captions."""

    def fingerprint(name: str) -> str:
        root = {**TEXTS, **ARROW}[name](tmp_path / name)
        data = CaptionDataModule(str(root), name="own", min_count=1, cache=str(cache))
        data.read_text()
        return data.corpus.fingerprint

    assert fingerprint(layout) == fingerprint("TSV")


@pytest.mark.parametrize(("min_count", "warned"), [(5, True), (1, False)])
def test_a_min_count_that_leaves_few_words_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, min_count: int, warned: bool
) -> None:
    root = TEXTS["CSV"](tmp_path / "data")
    data = CaptionDataModule(str(root), name="own", min_count=min_count, cache=str(tmp_path))
    data.read_text()
    found = [
        each.message for each in caplog.records if "data.min_count=1 keeps all" in each.message
    ]
    assert bool(found) == warned
    if warned:
        assert "data.min_count=5 leaves 6 of the 11 different words" in found[0]
