"""Files of captions and statistics: what is written is read again, and what is wrong is told."""

import json
from pathlib import Path

import numpy as np
import pytest

from captioning.metrics.statistics import Statistics
from captioning.reporting.per_image import (
    read_captions,
    read_statistics,
    write_captions,
    write_statistics,
)
from captioning.support.errors import CaptioningError


def test_statistics_come_back_and_other_files_are_told_by_name(tmp_path: Path) -> None:
    table = np.array([[0.1 + 0.2], [3.0]])
    write_statistics(tmp_path / "s.json", Statistics(("a", "b"), {"CIDEr": table}, "refs"))
    found = read_statistics(tmp_path / "s.json")
    assert (found.images, found.references) == (("a", "b"), "refs")
    assert np.array_equal(found.tables["CIDEr"], table)
    for content in ("", "{}", '{"references": "", "images": ["a"], "tables": {"CIDEr": []}}'):
        (tmp_path / "s.json").write_text(content)
        with pytest.raises(CaptioningError, match=r"s\.json:.* again\.?$"):
            read_statistics(tmp_path / "s.json")


def test_captions_come_back_whatever_they_hold(tmp_path: Path) -> None:
    captions = {
        "1.jpg": "a dog runs",
        "2.jpg": "",
        "3.jpg": 'two\nlines\u2028and \x00 ||| \U0001f415 "quoted"',
    }
    write_captions(
        tmp_path / "captions_test.json",
        captions,
        {"1.jpg": {"METEOR": 0.25}},
        {"2.jpg": {"length": 0, "novel": True}},
    )
    assert read_captions(tmp_path / "captions_test.json") == captions
    entries = json.loads((tmp_path / "captions_test.json").read_text())
    assert entries[:2] == [
        {"image_id": "1.jpg", "caption": "a dog runs", "scores": {"METEOR": 0.25}},
        {"image_id": "2.jpg", "caption": "", "language": {"length": 0, "novel": True}},
    ]


def test_captions_are_read_by_the_coco_tools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"images": [{"id": "a.jpg"}, {"id": "b.jpg"}], "annotations": []}
    coco.createIndex()
    write_captions(tmp_path / "c.json", {"a.jpg": "a dog", "b.jpg": "a cat"}, {"a.jpg": {}})
    loaded = coco.loadRes(str(tmp_path / "c.json"))
    assert [loaded.imgToAnns[image][0]["caption"] for image in ("a.jpg", "b.jpg")] == [
        "a dog",
        "a cat",
    ]


def test_cocos_integer_ids_and_further_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_text('[{"image_id": 42, "caption": "a dog", "id": 1}]')
    assert read_captions(path) == {"42": "a dog"}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"image_id": 1, "caption": ""}, {"image_id": "1", "caption": ""}], "entry 2 .*image 1"),
        ([{"image_id": "1", "caption": ""}, {"image_id": 1, "caption": ""}], "entry 2 .*image 1"),
        ([{"image_id": 1, "caption": "x"}, {"caption": "y"}], "entry 2 needs an `image_id`"),
        ([{"image_id": True, "caption": "x"}], "entry 1 needs an `image_id`"),
        ([{"image_id": 1.5, "caption": "x"}], "entry 1 needs an `image_id`"),
        ([{"image_id": "a.jpg", "caption": ["x"]}], r"entry 1 \(a\.jpg\) needs a `caption`"),
        (["x"], "entry 1 needs an `image_id`"),
        ({"1": "x"}, "holds no list"),
    ],
)
def test_wrong_caption_file_is_told(tmp_path: Path, entries: object, problem: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(CaptioningError, match=rf"captions\.json: .*{problem}"):
        read_captions(path)


def test_scores_of_an_image_without_caption_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"b\.jpg"):
        write_captions(tmp_path / "c.json", {"a.jpg": "a dog"}, {"b.jpg": {"METEOR": 0.1}})
    with pytest.raises(ValueError, match=r"b\.jpg"):
        write_captions(tmp_path / "c.json", {"a.jpg": "a dog"}, {}, {"b.jpg": {"length": 1}})
    assert not (tmp_path / "c.json").exists()
