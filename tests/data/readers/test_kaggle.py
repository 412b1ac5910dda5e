"""The layout with a CSV file."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_layouts import LISTS, kaggle, refused, write

from captioning.data.splits import SPLITS


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("name,text\na.jpg,dog\n", 1),
        ("image,caption\nt1.jpg,a dog, running\n", 2),
        ("image,caption\nt1.jpg,dog\nt1.jpg\n", 3),
        ('image,caption\nt1.jpg,"a dog" runs\n', 2),
        ("image,caption\n,dog\n", 2),
        ("image,caption\nt1.jpg,dog\nt1.jpg,\n", 3),
        (b"image,caption\nt1.jpg,caf\xe9\n", 2),
        ("", 1),
    ],
)
def test_malformed_csv_is_refused_with_its_line(
    tmp_path: Path, content: str | bytes, line: int
) -> None:
    kaggle(tmp_path)
    path = write(tmp_path / "captions.txt", content)
    assert f"{path}:{line}" in refused(tmp_path)


def test_splits_of_the_package_are_for_flickr8k_alone(tmp_path: Path) -> None:
    kaggle(tmp_path)
    for split in SPLITS:
        (tmp_path / LISTS.format(split)).unlink()
    assert "no splits for flickr30k" in refused(tmp_path, name="flickr30k")
    assert "none of its images" in refused(tmp_path)
