"""References of one split, from every kind of file that has some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioning.data.corpus import read_corpus
from captioning.data.references import read_references
from captioning.support.errors import CaptioningError


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 7, "file_name": "seven.jpg"}, {"id": 3, "file_name": "three.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "A cat ."},
            {"id": 2, "image_id": 7, "caption": "A dog\nruns . "},
            {"id": 3, "image_id": 3, "caption": "Cats"},
        ],
    }
    return content | changes


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_form_of_a_data_set_gives_what_a_run_on_it_is_scored_against(
    flickr8k_mini: Path, split: str
) -> None:
    corpus = read_corpus(flickr8k_mini)
    forms = [
        flickr8k_mini,
        flickr8k_mini / "dataset_flickr8k.json",
        flickr8k_mini / "Flickr8k_text" / "Flickr8k.token.txt",
    ]
    train = [caption for image in corpus.split("train") for caption in image.captions]
    for form in forms:
        found = read_references(form, split)
        assert found.captions == corpus.references(split)
        assert found.fingerprint == corpus.fingerprint
        assert found.name == "flickr8k"
        assert sorted(found.train or ()) == sorted(train)


def test_cocos_annotations_keep_their_images_order_and_the_captions_as_they_are(
    tmp_path: Path,
) -> None:
    found = read_references(write(tmp_path / "captions_val.json", coco()), "test")
    assert list(found.captions.items()) == [("7", ["A dog\nruns . "]), ("3", ["A cat .", "Cats"])]
    assert found.name == "captions_val"
    assert found.train is None
    assert found.aliases[0]["seven.jpg"] == "7"
    other = coco()
    other["annotations"][0]["caption"] = "A cat."
    edited = read_references(write(tmp_path / "b.json", other), "test")
    assert found.fingerprint != edited.fingerprint


def test_an_image_without_annotations_is_none_to_score(tmp_path: Path) -> None:
    content = coco(images=[{"id": 7}, {"id": 3}, {"id": 9}])
    assert "9" not in read_references(write(tmp_path / "a.json", content), "dev").captions


def test_plain_lists(tmp_path: Path) -> None:
    lists = {"b.jpg": ["A dog .", "Dogs"], "a.jpg": ["A cat ."]}
    found = read_references(write(tmp_path / "mine.json", lists), "test")
    assert list(found.captions.items()) == list(lists.items())
    assert found.name == "mine"


def test_a_token_file_of_another_data_set_is_taken_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "flickr30k.token", "x.jpg#1\tSecond\nx.jpg#0\tFirst\ny.jpg#0\tY\n")
    found = read_references(path, "test")
    assert found.captions == {"x.jpg": ["First", "Second"], "y.jpg": ["Y"]}
    assert found.name == "flickr30k"
    assert found.train is None


KARPATHY = {"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "A ."}]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a dog runs", "neither JSON nor a token file; references can be COCO's"),
        ("", "neither JSON"),
        ('{"images": [', r"refs\.json:1: not JSON"),
        ({"a.jpg": ["A dog", " "]}, r"a\.jpg\[1\]: the caption is empty"),
        (
            coco(annotations=[{"image_id": 3, "caption": " "}]),
            r"annotations\[0\]: the capt",
        ),
        ([], "of no known format"),
        ({}, "of no known format"),
        ([{"image_id": 1, "caption": "a dog"}], "COCO's result format, which has no references"),
        ({"a.jpg": "A dog"}, "'a.jpg' should have a list of captions"),
        ({"a.jpg": ["A dog", 3]}, "'a.jpg' should have a list of captions"),
        ({"a.jpg": ["A dog"], "b.jpg": []}, "the image 'b.jpg' has no caption"),
        (coco(images={}), "'images' should be a list"),
        (coco(images=[{"id": 7}, {"id": 3}, {"id": 7}]), r"images\[2\]: the image 7 is there twic"),
        (coco(images=[{"id": True}]), r"images\[0\]: 'id' should be there and be an integer"),
        (coco(images=[{"id": 7}]), r"annotations\[0\]: its image 3 is not among 'images'"),
        (coco(annotations=[{"image_id": 7}]), r"annotations\[0\]: 'caption' should be there"),
        (coco(annotations=["x"]), r"annotations\[0\]: 'image_id' should be there"),
        (coco(annotations=[]), "there is no caption in it"),
        (KARPATHY, "the test split has no image"),
        ("a.jpg#0\tA dog\na.jpg#0\tA cat\n", "caption 0 of a.jpg is already on line 1"),
    ],
)
def test_what_is_wrong_is_told_by_file_and_place(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = write(tmp_path / "refs.json", content)
    with pytest.raises(CaptioningError, match=message) as caught:
        read_references(path, "test")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"nowhere\.json: cannot be read"):
        read_references(tmp_path / "nowhere.json", "test")


def test_references_without_a_word_or_without_spaces_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_references(write(tmp_path / "r.json", {"a.jpg": ["A dog .", "..."]}), "test")
    assert "without a word (1): of a.jpg" in caplog.text
    chinese = {"a.jpg": ["一只棕色的狗在草地上奔跑"]}
    read_references(write(tmp_path / "r.json", chinese), "test")
    assert "no spaces between their words" in caplog.text
