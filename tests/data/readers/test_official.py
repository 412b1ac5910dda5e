"""Flickr8k's own layout."""

from __future__ import annotations

from pathlib import Path

from small_layouts import CAPTIONS, LISTS, official, refused

from captioning.data.corpus import read_corpus


def test_text_files_may_lie_beside_the_image_folder(tmp_path: Path) -> None:
    official(tmp_path)
    for path in (tmp_path / "Flickr8k_text").iterdir():
        path.rename(tmp_path / path.name)
    assert len(read_corpus(tmp_path).images) == len(CAPTIONS)


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("test")).unlink()
    assert "Flickr_8k.testImages.txt is missing" in refused(tmp_path)
