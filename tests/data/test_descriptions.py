"""Files of captions: what is read is what was written, and malformed lines are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from captioning.data.cleaning import Cleaner, clean_descriptions
from captioning.data.descriptions import (
    load_descriptions,
    load_saved_descriptions,
    save_descriptions,
)
from captioning.support.errors import CaptioningError

# Everything that some library takes for a line end or a space, and a caption may hold.
ODD_BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\u00a0\u3000"


def token_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "Flickr8k.token.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_descriptions_come_raw_and_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = token_file(
        tmp_path, "a.jpg#1\tTwo dogs .\r\na.jpg#0\tA Dog 's ball .  \nb#2.jpg#0\tx\ty\n"
    )
    assert load_descriptions(path) == {
        "a.jpg": ["A Dog 's ball .", "Two dogs ."],
        "b#2.jpg": ["x\ty"],
    }


def test_a_caption_with_an_odd_line_break_stays_with_its_image(tmp_path: Path) -> None:
    caption = "a" + "b".join(ODD_BREAKS) + "c"
    path = token_file(tmp_path, f"a.jpg#0\t{caption}\nb.jpg#0\tdog\n")
    assert load_descriptions(path) == {"a.jpg": [caption], "b.jpg": ["dog"]}


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"a.jpg#0\tdog\nno tab here\n", 2, "no tab here"),
        (b"a.jpg\tno number\n", 1, "expected"),
        (b"a.jpg#x\tno number\n", 1, "expected"),
        (b"#0\tno image\n", 1, "expected"),
        (b"a.jpg#0\tdog\n\na.jpg#1\t \n", 3, "empty"),
        (b"a.jpg#0\tdog\nb.jpg#0\tcat\na.jpg#0\tdog\n", 3, "already on line 1"),
        (b"a.jpg#0\tdog\nb.jpg#0\tcaf\xe9\n", 2, "UTF-8"),
    ],
)
def test_a_bad_token_file_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int, says: str
) -> None:
    path = token_file(tmp_path, content)
    with pytest.raises(CaptioningError, match=says) as error:
        load_descriptions(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_saved_descriptions_come_back(tmp_path: Path) -> None:
    raw = {
        "a b.jpg": ["A dog\tand\na cat .", "...", f"odd{ODD_BREAKS}breaks"],
        "c.jpg": ["twice", "twice"],
    }
    cleaned = clean_descriptions(raw, Cleaner())
    assert cleaned["a b.jpg"] == ["a dog and a cat", "", "odd breaks"]
    path = tmp_path / "new" / "descriptions.txt"
    save_descriptions(path, cleaned)
    assert path.read_text("utf-8").splitlines()[0] == "a b.jpg\ta dog and a cat"
    assert load_saved_descriptions(path) == cleaned


@pytest.mark.parametrize(
    "descriptions",
    [
        {"a.jpg": ["a\tdog"]},
        {"a.jpg": ["a dog\n"]},
        {"a.jpg": ["a  dog"]},
        {"a.jpg": ["a\u2028dog"]},
        {"a\tb.jpg": ["a dog"]},
        {"a.jpg": []},
    ],
)
def test_descriptions_that_would_not_come_back_are_refused(
    tmp_path: Path, descriptions: dict[str, list[str]]
) -> None:
    with pytest.raises(CaptioningError, match=r"descriptions\.txt"):
        save_descriptions(tmp_path / "descriptions.txt", descriptions)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_line_without_a_tab_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "descriptions.txt"
    path.write_text("a.jpg\tdog\nb.jpg dog\n")
    with pytest.raises(CaptioningError, match=r"descriptions\.txt:2: "):
        load_saved_descriptions(path)
