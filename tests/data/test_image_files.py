"""Which image files a name means."""

import logging
import os
from pathlib import Path

import pytest

from captioning.data.image_files import find_images
from captioning.support.errors import CaptioningError

FILES = (
    "b.JPG", "a.png", "a[1].jpg", "a1.jpg", "notes.txt", "film.mpg", "no suffix", ".hidden.jpg",
    "sub/a.png", "sub/deep/c.WebP", ".thumbnails/a.jpg",
)  # fmt: skip

TOP = ["in/a.png", "in/a1.jpg", "in/a[1].jpg", "in/b.JPG"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files in a folder of it called ``in``."""
    for name in FILES:
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("name", "root", "files"),
    [
        ("in/b.JPG", "in", ["in/b.JPG"]),
        ("in/no suffix", "in", ["in/no suffix"]),
        ("in/.hidden.jpg", "in", ["in/.hidden.jpg"]),
        ("in/a[1].jpg", "in", ["in/a[1].jpg"]),  # it exists, so it is no pattern
        ("in/a[12].jpg", "in", ["in/a1.jpg"]),
        ("in/a*", "in", ["in/a.png", "in/a1.jpg", "in/a[1].jpg"]),
        ("in/?.*", "in", ["in/a.png", "in/b.JPG"]),
        ("in/.h*", "in", ["in/.hidden.jpg"]),
        ("in/**/a.*", "in", ["in/a.png", "in/sub/a.png"]),
        ("in/sub/**", "in/sub", ["in/sub/a.png", "in/sub/deep/c.WebP"]),
        ("in/sub/*/../a.png", "in/sub", ["in/sub/a.png"]),
        ("in/sub/*/../../b.JPG", "in", ["in/b.JPG"]),
        ("in/sub", "in/sub", ["in/sub/a.png", "in/sub/deep/c.WebP"]),
        ("in", "in", [*TOP, "in/sub/a.png", "in/sub/deep/c.WebP"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_name_is_a_file_a_folder_or_a_pattern(name: str, root: str, files: list[str]) -> None:
    found = find_images(name)
    assert [str(file) for file in found.files] == files
    assert str(found.root) == root


def test_an_absolute_pattern_gives_absolute_names(folder: Path) -> None:
    found = find_images(f"{folder}/s*/a.png")
    assert found == (folder, [folder / "sub" / "a.png"])


def test_what_is_passed_over_is_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    find_images("in")
    assert caplog.messages == ["in: 6 of 9 files are images, by their suffix"]


def test_linked_folders_are_read_once_even_in_a_circle(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.jpg").touch()
    (folder / "sub" / "back").symlink_to(folder)
    (folder / "sub" / "linked").symlink_to(elsewhere)
    (folder / "sub" / "linked again").symlink_to(elsewhere)
    names = [file.name for file in find_images("in/sub").files]
    assert sorted(names) == ["a.png", "a.png", "a1.jpg", "a[1].jpg", "b.JPG", "c.WebP", "z.jpg"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("", ["images= is empty"]),
        ("nowhere.jpg", ["images=nowhere.jpg", "no such file or folder"]),
        ("in/*.tif", ["images=in/*.tif", "no such file"]),
        ("empty", ["images=empty", "no image", "JPEG, JPEG2000, PNG"]),
        ("in/*.txt", ["images=in/*.txt", "only 1 files with other suffixes"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_where_there_is_no_image_it_says_so(name: str, parts: list[str]) -> None:
    with pytest.raises(CaptioningError) as caught:
        find_images(name)
    assert all(part in str(caught.value) for part in parts)


def test_what_cannot_be_read_is_not_passed_over(folder: Path) -> None:
    """Whoever reads the files names it."""
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nowhere")
    for name in ("in", "in/*.png"):
        names = [file.name for file in find_images(name).files]
        assert {"pipe.png", "gone.png"} <= set(names)


def test_a_name_that_no_file_can_have_is_named() -> None:
    with pytest.raises(CaptioningError, match=r"images=aaa.* cannot be read \(File name too long"):
        find_images("a" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "sub").chmod(0)
    try:
        with pytest.raises(CaptioningError, match=r"in/sub cannot be read"):
            find_images("in")
    finally:
        (folder / "sub").chmod(0o755)
