"""Parquet and Arrow files of Hugging Face's datasets."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest
from small_layouts import refused
from ten_pictures import (
    CAPTIONS,
    PICTURES,
    packed,
    write_column_of_splits,
    write_numbered_captions,
    write_parquet,
    write_saved_to_disk,
)

from captioning.data.corpus import read_corpus
from captioning.data.readers import huggingface
from captioning.data.splits import SPLITS

pytest.importorskip("pyarrow")


def test_images_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_numbered_captions(tmp_path / "data"), tmp_path / "cache"
    first = read_corpus(root, name="own", cache=cache)
    assert all(image.path.is_relative_to(cache / "unpacked") for image in first.images)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "_open", lambda _: pytest.fail("opened again"))
        assert read_corpus(root, name="own", cache=cache).images == first.images
    first.images[3].path.write_bytes(b"cut")  # as a full disk leaves a file
    again = read_corpus(root, name="own", cache=cache)
    assert again.images == first.images
    assert again.images[3].path.read_bytes() in PICTURES.values()


def test_a_process_that_is_killed_leaves_nothing_that_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = write_numbered_captions(tmp_path / "data"), tmp_path / "cache"
    write_bytes, written = Path.write_bytes, []

    def killed(path: Path, data: bytes) -> int:
        if len(written) == 4:
            write_bytes(path, data[:10])
            raise KeyboardInterrupt
        written.append(path)
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            read_corpus(root, name="own", cache=cache)
    corpus = read_corpus(root, name="own", cache=cache)
    assert sorted(i.path.read_bytes() for i in corpus.images) == sorted(PICTURES.values())


def test_flickr8k_without_names_is_that_of_the_other_layouts(
    flickr8k_mini: Path, tmp_path: Path
) -> None:
    official = read_corpus(flickr8k_mini)
    rows = [
        {
            "image": {"bytes": image.path.read_bytes(), "path": None},
            **{f"caption_{n}": text for n, text in enumerate(image.captions)},
        }
        for image in official.images
    ]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    corpus = read_corpus(tmp_path / "data", cache=tmp_path)
    assert corpus.layout == "huggingface"
    assert corpus.fingerprint == official.fingerprint
    assert any("200 of 200 images are Flickr8k's, by their captions" in n for n in corpus.notes)
    assert [len(corpus.split(split)) for split in SPLITS] == [120, 40, 40]


def test_names_that_do_not_tell_pictures_apart_are_not_used(tmp_path: Path) -> None:
    rows = [{"image": packed(i, "image.png"), "text": CAPTIONS[i][0]} for i in PICTURES]
    write_parquet(tmp_path / "data" / "train.parquet", rows)
    corpus = read_corpus(tmp_path / "data", name="own", cache=tmp_path)
    assert len({image.id for image in corpus.images}) == 10
    assert "no test and no dev split" in corpus.warnings[0]


def test_a_row_for_each_caption_and_a_column_of_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "pictures"
    folder.mkdir(parents=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    rows = [{"file_name": i, "text": text} for i in PICTURES for text in CAPTIONS[i]]
    write_parquet(tmp_path / "data" / "metadata.parquet", rows)
    corpus = read_corpus(tmp_path / "data", name="own", cache=tmp_path)
    assert {i.id: list(i.captions) for i in corpus.images} == CAPTIONS
    assert corpus.images[0].path.parent == folder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PAR1 and then nothing", r"not a Parquet or Arrow file, or cut short .*: copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"pointer of Git LFS .*git lfs pull"),
    ],
)
def test_a_damaged_file_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    path = write_column_of_splits(tmp_path / "data") / "test-00000-of-00001.parquet"
    path.write_bytes(content)
    message = refused(path.parent, name="own", cache=tmp_path)
    assert str(path) in message
    assert re.search(says, message)


def test_other_columns_and_absent_images_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "train.parquet", [{"pixels": packed("IMG_0.png"), "label": 1}])
    message = refused(tmp_path / "a", name="own", cache=tmp_path)
    assert "expected the columns image and caption" in message
    assert "found pixels, label" in message
    empty = {"bytes": None, "path": None}
    rows = [{"image": packed("IMG_0.png"), "text": "a"}, {"image": empty, "text": "b"}]
    write_parquet(tmp_path / "b" / "train.parquet", rows)
    assert "train.parquet: row 1: 'image' has no image" in refused(
        tmp_path / "b", name="own", cache=tmp_path
    )
    for part in ("one", "two"):
        write_parquet(tmp_path / "c" / part / "train.parquet", rows)
    assert "several parts (one, two)" in refused(tmp_path / "c", name="own", cache=tmp_path)


def test_without_pyarrow_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_saved_to_disk(tmp_path / "data")
    real = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "needs pyarrow: pip install pyarrow" in refused(root, name="own", cache=tmp_path)
