"""Names of images with folders in them, in any format and in both of Unicode's forms."""

import unicodedata
from pathlib import Path

import pytest
from small_layouts import CAPTIONS, SPLIT_LISTS, official, refused, write, write_images

from captioning.data.corpus import read_corpus
from captioning.data.names import without_zeros


def rename(root: Path, change: dict[str, str]) -> None:
    """Put other names of the images into the texts and the image folder."""
    for path in (root / "Flickr8k_text").iterdir():
        text = path.read_text()
        for old, new in change.items():
            text = text.replace(old, new)
        path.write_text(text)
    for old, new in change.items():
        path = root / "Flicker8k_Dataset" / new
        path.parent.mkdir(parents=True, exist_ok=True)
        (root / "Flicker8k_Dataset" / old).rename(path)


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".TIF", ".avif"])
def test_a_folder_of_any_format_is_read(tmp_path: Path, suffix: str) -> None:
    change = {image: image.replace(".jpg", suffix) for image in CAPTIONS}
    rename(official(tmp_path), change)
    assert {image.id for image in read_corpus(tmp_path).images} == set(change.values())


def test_names_may_have_folders_in_them(tmp_path: Path) -> None:
    change = {image: f"{image[0]}/inner/{image}" for image in CAPTIONS}
    rename(official(tmp_path), change)
    corpus = read_corpus(tmp_path)
    assert {image.id for image in corpus.images} == set(change.values())
    assert all(image.path == tmp_path / "Flicker8k_Dataset" / image.id for image in corpus.images)


def test_a_cycle_of_links_ends(tmp_path: Path) -> None:
    official(tmp_path)
    (tmp_path / "Flicker8k_Dataset" / "loop").symlink_to(tmp_path)
    assert len(read_corpus(tmp_path).images) == len(CAPTIONS)


def test_names_in_the_other_form_of_unicode_are_found(tmp_path: Path) -> None:
    name = "café t1.jpg"
    rename(official(tmp_path), {"t1.jpg": unicodedata.normalize("NFD", name)})
    for path in (tmp_path / "Flickr8k_text").iterdir():
        path.write_text(unicodedata.normalize("NFC", path.read_text()))
    assert name in read_corpus(tmp_path).references("train")
    (tmp_path / "Flicker8k_Dataset" / unicodedata.normalize("NFC", name)).touch()
    assert "two files are called" in refused(tmp_path)


def test_a_folder_of_other_files_says_so(tmp_path: Path) -> None:
    official(tmp_path)
    for path in (tmp_path / "Flicker8k_Dataset").iterdir():
        path.rename(path.with_suffix(".mp4"))
    assert f"none of the {len(CAPTIONS)} files there is an image" in refused(tmp_path)


def test_zeros_are_of_numbers_alone() -> None:
    assert [without_zeros(name) for name in ("007", "0", "0a", "٠١")] == ["7", "0", "0a", "٠١"]


def test_captions_without_spaces_are_told(tmp_path: Path) -> None:
    official(tmp_path)
    chinese = {image: f"一只棕色的狗在草地上奔跑{k}" for k, image in enumerate(CAPTIONS)}
    lines = "".join(f"{image}#0\t{text}\n" for image, text in chinese.items())
    write(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt", lines)
    assert any("no spaces between their words" in note for note in read_corpus(tmp_path).notes)
    spaced = "".join(f"{image}#0\t一只 棕色 的 狗 在 草地 上\n" for image in CAPTIONS)
    write(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt", spaced)
    assert not any("no spaces" in note for note in read_corpus(tmp_path).notes)


ROWS = [(image, k, text) for image, texts in CAPTIONS.items() for k, text in enumerate(texts)]

FLICKR30K = {
    "results_20130124.token": "".join(f"{image}#{k}\t{text}\n" for image, k, text in ROWS),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{image}| {k}| {text}\n" for image, k, text in ROWS).replace(
        "d1.jpg| 1| A", "d1.jpg| 1   A"
    ),
    "captions.txt": "image_name,comment_number,comment\n"
    + "".join(
        '{}, {}," {}"\n'.format(image, k, text.replace('"', '""')) for image, k, text in ROWS
    ).replace('d1.jpg, 1," A boy ."', "d1.jpg, 1   A boy .,"),
}
"""The captions as people have them; in two of the files, one row lacks a separator."""


@pytest.mark.parametrize("file", FLICKR30K)
def test_flickr30k_is_read_as_people_have_it(tmp_path: Path, file: str) -> None:
    write_images(tmp_path / "flickr30k_images")
    write(tmp_path / file, FLICKR30K[file])
    message = refused(tmp_path, name="flickr30k")
    assert str(tmp_path / file) in message
    assert "no splits for flickr30k" in message
    names = {"train": "train", "dev": "val", "test": "test"}
    for split, images in SPLIT_LISTS.items():  # without .jpg, as in Flickr30k Entities
        write(tmp_path / f"{names[split]}.txt", "".join(f"{Path(i).stem}\n" for i in images))
    corpus = read_corpus(tmp_path, name="flickr30k")
    assert {image.id: list(image.captions) for image in corpus.images} == CAPTIONS
    repaired = [note for note in corpus.notes if "no separator" in note]
    assert len(repaired) == (not file.endswith(".token"))
