"""Tables of anybody's, and images with side-car texts: what is understood, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_layouts import refused, write

from captioning.data.corpus import Corpus, read_corpus
from captioning.data.readers.columns import find_columns

HEADER = "image,caption,split\n"
ROWS = "a.jpg,A dog,train\nb.jpg,A cat,val\nc.jpg,A boy,test\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write(tmp_path / "pictures" / f"{name}.jpg", b"any bytes")
    return tmp_path


def read(root: Path, **options: object) -> Corpus:
    return read_corpus(root, name="own", **options)  # type: ignore[arg-type]


def captions(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    return {image.id: image.captions for image in corpus.images}


THREE = {"a.jpg": ("A dog",), "b.jpg": ("A cat",), "c.jpg": ("A boy",)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", HEADER + ROWS),
        ("x.csv", "\ufeff" + HEADER + ROWS),
        ("x.csv", (HEADER + ROWS).replace("\n", "\r\n")),
        ("x.csv", ROWS),  # no line of names
        ("x.csv", "Caption;Split;File_Name\nA dog;Train;a.jpg\nA cat;val;b.jpg\nA boy;Test;c.jpg"),
        ("captions.txt", (HEADER + ROWS).replace(",", "\t")),
        ("x.csv", (HEADER + ROWS).replace(".jpg", "").replace("a,", "A.JPG,", 1)),
        ("x.csv", HEADER + ROWS.replace("a.jpg", "pictures/a.jpg").replace("b.", "pictures\\b.")),
        ("x.csv", HEADER + ROWS.replace("A dog", '"[""A dog""]"').replace("A cat", "['A cat']")),
        ("x.csv", HEADER + "a.jpg,A dog,train\n\nb.jpg,A cat,val\nc.jpg,A boy,test"),
    ],
)  # fmt: skip
def test_a_table_is_understood_however_it_is_written(root: Path, name: str, content: str) -> None:
    write(root / name, content)
    corpus = read(root)
    assert corpus.layout == "table"
    assert [image.captions for image in corpus.images] == list(THREE.values())
    assert [image.path.name for image in corpus.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [image.split for image in corpus.images] == ["train", "dev", "test"]
    assert captions(read(root / name)) == captions(corpus)


def test_images_may_lie_beside_the_folder_of_the_table_or_anywhere(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "images" / f"{name}.jpg", b"any bytes")
    write(tmp_path / "labels" / "x.csv", HEADER + ROWS)
    assert captions(read(tmp_path / "labels")) == THREE
    rows = ROWS.replace("b.jpg", str(tmp_path / "images" / "b.jpg")).replace("c.", "../images/c.")
    write(tmp_path / "labels" / "x.csv", HEADER + rows.replace("a.jpg", "../images/a.jpg"))
    assert [image.path.name for image in read(tmp_path / "labels").images] == [
        "a.jpg", "b.jpg", "c.jpg"
    ]  # fmt: skip


def test_a_whole_path_does_not_change_the_fingerprint(root: Path) -> None:
    write(root / "x.csv", HEADER + ROWS.replace("a.jpg", "pictures/a.jpg"))
    expected = read(root).fingerprint
    write(root / "x.csv", HEADER + ROWS.replace("a.jpg", str(root / "pictures" / "a.jpg")))
    assert read(root).fingerprint == expected


def test_a_file_of_another_layout_is_read_as_that_layout(root: Path) -> None:
    write(root / "captions.txt", "image,caption\na.jpg,A dog\nb.jpg,A cat\nc.jpg,A boy\n")
    assert read(root / "captions.txt").layout == "kaggle"
    splits = [("a", "train"), ("b", "val"), ("c", "test")]
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": "A dog"}]}
        for name, split in splits
    ]
    write(root / "dataset_mine.json", json.dumps({"images": images}))
    (root / "pictures").rename(root / "images")
    assert read(root / "dataset_mine.json").layout == "karpathy"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEADER + "a.jpg,A dog, running,train\n", r"x.csv:2: it has 4 cells in place of 3: put"),
        (HEADER + 'a.jpg,"A" dog,train\n', "x.csv:2: malformed"),
        (HEADER + ",A dog,train\n", "x.csv:2: it names no image"),
        (HEADER + ROWS + "a.jpg,A dog,extra\n", "x.csv:5: the split 'extra' is not one of train"),
        (HEADER + ROWS + "a.jpg,A dog,test\n", "x.csv:5: a.jpg is in the split test here"),
        (HEADER + ROWS + "a.jpg,,train\n", r"empty captions \(1\): .*x\.csv:5; data\.skip_bad"),
        (HEADER + ROWS + "d.jpg,A girl,train\n", r"without a file .*: d\.jpg \(.*x\.csv:5\)"),
        (HEADER + "http://x.y/a.jpg,A dog,train\n", "x.csv:2: http://x.y/a.jpg is an address"),
        (HEADER + "1.jpg,A dog,train\n2.jpg,A cat,test\n", "x.csv:2: there is no file '1.jpg'"),
        ("picture,words\na.jpg,A dog\n", r"x.csv has no columns image and caption.*rename"),
        (HEADER.encode() + b"a.jpg,caf\xe9,train\n", "x.csv:2: not UTF-8; save the file"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_table_is_one_sentence_with_its_line(
    root: Path, content: str | bytes, says: str
) -> None:
    write(root / "x.csv", content)
    assert re.search(says, refused(root, name="own"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": "a.jpg", "caption": 3}', "'caption' should be a string, or a list"),
        ('{"image": "a.jpg"}', "expected an object with the keys image and caption.*found image"),
        ('{"image": "", "caption": "A dog"}', "'image' should be the name of a file"),
        ('{"image": "a.jpg", "caption": "A dog", "split": 1}', "'split' should be one of train"),
        ('{"image": "a.jpg", "caption": "A', "not JSON, or cut short"),
    ],
)
def test_a_mistake_in_json_lines_is_one_sentence_with_its_line(
    root: Path, line: str, says: str
) -> None:
    write(root / "x.jsonl", '{"image": "b.jpg", "caption": "A cat"}\n' + line + "\n")
    message = refused(root, name="own")
    assert re.search(says, message)
    assert "x.jsonl:2" in message


def test_data_that_is_called_flickr8k_and_is_not_is_warned_of(root: Path) -> None:
    write(root / "x.csv", HEADER + ROWS)
    assert "not Flickr8k's" in read_corpus(root).warnings[0]
    assert not read(root).warnings


def test_what_could_mean_two_things_is_refused(root: Path) -> None:
    write(root / "x.csv", HEADER + ROWS)
    write(root / "y.csv", HEADER + ROWS)
    assert "several tables could be meant (x.csv, y.csv)" in refused(root, name="own")
    assert captions(read(root / "y.csv")) == THREE
    (root / "y.csv").unlink()
    write(root / "more" / "a.jpg", b"another")
    message = refused(root, name="own")
    assert "x.csv:2: 'a.jpg' may be" in message
    assert "more/a.jpg or" in message
    assert "give the folder, too" in message


def test_columns_of_other_names_and_numbered_captions() -> None:
    found = find_columns(["image", "caption_10", "caption_2", "Partition"])
    assert found is not None
    assert found.captions == ("caption_2", "caption_10")
    assert found.split == "Partition"
    assert find_columns(["image", "label"]) is None


def test_side_cars_may_have_several_captions_and_no_splits(tmp_path: Path) -> None:
    for n in range(10):
        write(tmp_path / f"{n}.HEIC", b"any bytes")
        write(tmp_path / f"{n}.txt", f"A dog {n}\n\n  Two dogs \n")
    corpus = read(tmp_path)
    assert corpus.layout == "sidecar"
    assert {image.captions for image in corpus.images} == {
        (f"A dog {n}", "Two dogs") for n in range(10)
    }
    assert "The data names no splits" in corpus.warnings[0]
    write(tmp_path / "3.txt", " \n")
    assert "3.txt:1" in refused(tmp_path, name="own")
    write(tmp_path / "3.txt", "A dog")
    write(tmp_path / "3.png", b"any bytes")
    assert "3.txt: it may belong to 3." in refused(tmp_path, name="own")


def test_a_file_of_no_table_is_said(tmp_path: Path) -> None:
    write(tmp_path / "photo.jpg", b"any bytes")
    message = refused(tmp_path / "photo.jpg", name="own")
    assert "no caption file here (a table is named .csv" in message
