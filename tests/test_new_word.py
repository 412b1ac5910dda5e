"""``examples/new_word.py``: which scenes are in which table, and how often the word was said."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioning.data import scenes
from examples import new_word

Table = list[dict[str, object]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of fewer scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    argv = "new_word write FOLDER --images 5 --others 8".replace("FOLDER", str(folder)).split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "IMAGES", {"train": 90, "dev": 12, "test": 12})
        patch.setattr(new_word, "TRAIN", 60)
        patch.setattr(sys, "argv", argv)
        new_word.main()
    return folder


def table(folder: Path, name: str) -> dict[str, str]:
    """The split of each image of a table."""
    rows = map(json.loads, (folder / name).read_text().splitlines())
    return {row["image"]: row["split"] for row in rows}


def has_star(folder: Path, image: str) -> bool:
    boxes = json.loads((folder / "boxes.json").read_text())
    return any("star" in thing["names"] for thing in boxes[image]["objects"])


def of(given: dict[str, str], split: str) -> set[str]:
    return {image for image, its in given.items() if its == split}


def test_the_album_alone_has_the_new_word(folder: Path) -> None:
    old, new, choice = (table(folder, f"{name}.jsonl") for name in ("old", "new", "choice"))
    assert not any(has_star(folder, image) for image in old)
    for split in ("train", "dev", "test"):
        assert of(old, split)
    train = [has_star(folder, image) for image in of(new, "train")]
    assert [train.count(True), train.count(False)] == [5, 6]
    dev = [has_star(folder, image) for image in of(new, "dev")]
    assert [0 < dev.count(True) <= 10, dev.count(False)] == [True, 2]
    assert of(new, "test") == of(choice, "test")
    assert all(has_star(folder, image) for image in of(new, "test"))
    # Settings are chosen on the same training, and on dev scenes that the other table has not.
    assert of(choice, "train") == of(new, "train")
    assert of(choice, "dev")
    assert not of(choice, "dev") & {*new, *old}
    assert all(has_star(folder, image) for image in of(choice, "dev"))
    assert not {*old} & {*new}
    for image in (*old, *new, *choice):
        with Image.open(folder / image) as picture:
            assert picture.size == tuple(
                json.loads((folder / "boxes.json").read_text())[image]["size"]
            )


def test_the_word_is_counted_as_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["a red star", "a starfish", "two stars", "star and star", "a dog"]
    file = tmp_path / "captions_test.json"
    file.write_text(json.dumps([{"image_id": str(n), "caption": t} for n, t in enumerate(texts)]))
    monkeypatch.setattr(sys, "argv", ["new_word", "count", str(file)])
    new_word.main()
    assert capsys.readouterr().out == f"{file}: 2 of 5, 40.0% (11.8% to 76.9%)\n"


def test_the_interval_is_wilsons() -> None:
    """Newcombe (1998, Statistics in Medicine 17:857, table I, method 3)."""
    for found, of_all, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        assert new_word.interval(found, of_all) == pytest.approx((low, high), abs=5e-5)
