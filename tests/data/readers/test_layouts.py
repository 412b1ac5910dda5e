"""What holds for the readers of all layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_layouts import CAPTIONS, LISTS, MAKERS, SPLIT_LISTS, refused

from captioning.data.corpus import Corpus, read_corpus
from captioning.data.readers.registry import find_layouts
from captioning.data.splits import SPLITS


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_is_found_and_read(tmp_path: Path, layout: str) -> None:
    corpus = read_corpus(MAKERS[layout](tmp_path))
    assert corpus.layout == layout
    assert find_layouts(tmp_path) == (layout,)
    assert {split: [i.id for i in corpus.split(split)] for split in SPLITS} == SPLIT_LISTS
    assert corpus.references("train") == {i: CAPTIONS[i] for i in SPLIT_LISTS["train"]}
    assert all(image.path.is_file() and image.path.name == image.id for image in corpus.images)
    assert any("spare.jpg" in note and "(1)" in note for note in corpus.notes)


def test_the_same_data_has_one_fingerprint_in_every_layout_and_folder(tmp_path: Path) -> None:
    corpora = [read_corpus(make(tmp_path / name)) for name, make in MAKERS.items()]
    assert len({corpus.fingerprint for corpus in corpora}) == 1


@pytest.fixture(scope="module")
def mini_layouts(
    flickr8k_mini: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Corpus]:
    """The real set in three folders, each with one layout."""
    content = {
        "official": ["Flickr8k_text"],
        "kaggle": ["captions.txt"],
        "karpathy": ["dataset_flickr8k.json"],
    }
    image_folder = {
        "official": "Flickr8k_Dataset/Flicker8k_Dataset",  # as the archive unpacks
        "kaggle": "Images",
        "karpathy": "Flicker8k_Dataset",
    }
    corpora = {}
    for layout, names in content.items():
        root = tmp_path_factory.mktemp(layout)
        for name in names:
            (root / name).symlink_to(flickr8k_mini / name)
        (root / image_folder[layout]).parent.mkdir(exist_ok=True)
        (root / image_folder[layout]).symlink_to(flickr8k_mini / "Flicker8k_Dataset")
        corpora[layout] = read_corpus(root)
    return corpora


def test_the_real_set_is_the_same_in_every_layout(
    flickr8k_mini: Path, mini_layouts: dict[str, Corpus]
) -> None:
    token = (flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt").read_text()
    for layout, corpus in mini_layouts.items():
        assert corpus.layout == layout
        assert [len(corpus.split(split)) for split in SPLITS] == [120, 40, 40]
        assert sum(len(image.captions) for image in corpus.images) == 1000
        assert all(f"#0\t{image.captions[0]}\n" in token for image in corpus.images)
        for split in SPLITS:
            listed = (flickr8k_mini / "Flickr8k_text" / LISTS.format(split)).read_text().split()
            assert {image.id for image in corpus.split(split)} == set(listed)
            assert corpus.references(split) == mini_layouts["official"].references(split)
    assert len({corpus.fingerprint for corpus in mini_layouts.values()}) == 1


def test_official_lists_of_the_package_serve_a_kaggle_copy(mini_layouts: dict[str, Corpus]) -> None:
    notes = " ".join(mini_layouts["kaggle"].notes)
    assert "come with this package" in notes
    assert "lacks (7,800)" in notes


def test_several_layouts_in_one_folder_prefer_the_official_one_and_say_so(
    flickr8k_mini: Path,
) -> None:
    assert find_layouts(flickr8k_mini) == ("official", "karpathy", "kaggle")
    corpus = read_corpus(flickr8k_mini)
    assert corpus.layout == "official"
    assert "official, karpathy, kaggle" in corpus.notes[0]
    assert read_corpus(flickr8k_mini, layout="kaggle").layout == "kaggle"


def test_captions_with_odd_line_breaks_survive_in_every_layout(tmp_path: Path) -> None:
    odd = "a\u2028b\x0bc\x85d"
    for name, make in MAKERS.items():
        root = make(tmp_path / name)
        for path in root.rglob("*"):
            if path.suffix in (".txt", ".json"):
                escaped = json.dumps(odd)[1:-1] if path.suffix == ".json" else odd
                path.write_bytes(path.read_bytes().replace(b"A cat", escaped.encode()))
        assert read_corpus(root).references("train")["t2.jpg"] == [f"{odd} 's hat ."]


@pytest.mark.parametrize("layout", MAKERS)
def test_what_is_missing_is_named(tmp_path: Path, layout: str) -> None:
    root = MAKERS[layout](tmp_path / "data")
    assert "Flicker8k_Dataset, Flickr8k_Dataset" in refused_without_images(root)
    assert "kaggle (captions.txt" in refused(tmp_path)
    assert "nowhere: there is no such folder or file" in refused(tmp_path / "nowhere")
    other = next(name for name in MAKERS if name != layout)
    assert f"the layout {other}" in refused(root, layout=other)


def refused_without_images(root: Path) -> str:
    for path in root.rglob("*.jpg"):
        path.unlink()
    return refused(root)
