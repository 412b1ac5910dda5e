"""The checks that a data set gets whatever its layout, and its fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_layouts import CAPTIONS, LISTS, official, refused

from captioning.data.corpus import read_corpus
from captioning.support.errors import CaptioningError


@pytest.mark.parametrize(
    ("old", "new"), [("A cat", "A cat!"), ("t2.jpg", "t3.jpg"), ("t1.jpg#1", "d1.jpg#2")]
)
def test_the_fingerprint_follows_the_captions(tmp_path: Path, old: str, new: str) -> None:
    before = read_corpus(official(tmp_path)).fingerprint
    for path in (tmp_path / "Flickr8k_text").iterdir():
        path.write_text(path.read_text().replace(old, new))
    (tmp_path / "Flicker8k_Dataset" / "t3.jpg").touch()
    assert read_corpus(tmp_path).fingerprint != before


def test_the_fingerprint_follows_the_split(tmp_path: Path) -> None:
    before = read_corpus(official(tmp_path)).fingerprint
    train, dev = (tmp_path / "Flickr8k_text" / LISTS.format(name) for name in ("train", "dev"))
    train.write_text("t1.jpg\nd1.jpg\n")
    dev.write_text("t2.jpg\n")
    assert read_corpus(tmp_path).fingerprint != before


def test_the_real_blemish_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    official(tmp_path)
    with (tmp_path / "Flickr8k_text" / "Flickr8k.token.txt").open("a") as file:
        file.write("2258277193_586949ec62.jpg.1#0\tA runner .\n")
    corpus = read_corpus(tmp_path)
    assert any("2258277193_586949ec62.jpg.1" in note for note in corpus.notes)
    assert len(corpus.images) == len(CAPTIONS)
    assert [image.id for image in corpus.images if image.split is None] == ["spare.jpg"]


def lose_file(root: Path) -> None:
    for path in root.rglob("t1.jpg"):
        path.unlink()


def lose_captions(root: Path) -> None:
    path = root / "Flickr8k_text" / "Flickr8k.token.txt"
    kept = [line for line in path.read_text().split("\n") if not line.startswith("t1.jpg")]
    path.write_text("\n".join(kept))


def empty_caption(root: Path) -> None:
    path = root / "Flickr8k_text" / "Flickr8k.token.txt"
    path.write_text(path.read_text().replace("A dog runs .", " "))


def name_unknown(root: Path) -> None:
    path = root / "Flickr8k_text" / LISTS.format("train")
    path.write_text(path.read_text() + "t9.jpg\n")


@pytest.mark.parametrize(
    ("damage", "names", "trained_on"),
    [
        (lose_file, "t1.jpg", ["t2.jpg"]),
        (lose_captions, "t1.jpg", ["t2.jpg"]),
        (name_unknown, "t9.jpg", ["t2.jpg", "t1.jpg"]),
        (empty_caption, "Flickr8k.token.txt:1", ["t2.jpg", "t1.jpg"]),
    ],
)
def test_bad_images_stop_the_reading_or_are_left_out_with_a_note(
    tmp_path: Path, damage: Callable[[Path], None], names: str, trained_on: list[str]
) -> None:
    damage(official(tmp_path))
    message = refused(tmp_path)
    assert names in message
    assert "(1)" in message
    assert "data.skip_bad=true" in message
    corpus = read_corpus(tmp_path, skip_bad=True)
    assert [image.id for image in corpus.split("train")] == trained_on
    assert any(note.startswith("Left out") and names in note for note in corpus.notes)


def test_many_offenders_are_counted_and_the_first_named(tmp_path: Path) -> None:
    official(tmp_path)
    path = tmp_path / "Flickr8k_text" / LISTS.format("train")
    path.write_text(path.read_text() + "".join(f"x{n:02}.jpg\n" for n in range(30)))
    assert "(30): x00.jpg, x01.jpg, x02.jpg and 27 more" in refused(tmp_path)
    notes = " ".join(read_corpus(tmp_path, skip_bad=True).notes)
    assert "x09.jpg and 20 more" in notes


def test_an_image_in_two_splits_is_refused_even_when_skipping(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("dev")).write_text("d1.jpg\nt1.jpg\n")
    with pytest.raises(CaptioningError, match=r"t1\.jpg \(in train and dev\)"):
        read_corpus(tmp_path, skip_bad=True)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flickr8k_text" / LISTS.format("dev")).write_text("\n")
    assert "the dev split has no image" in refused(tmp_path)


def test_unknown_names_are_refused_with_the_choices(tmp_path: Path) -> None:
    official(tmp_path)
    assert "auto, official, karpathy, kaggle" in refused(tmp_path, layout="coco")
    with pytest.raises(CaptioningError, match="train, dev, test"):
        read_corpus(tmp_path).split("val")
