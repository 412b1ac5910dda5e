"""The layout with a JSON file, for COCO too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_layouts import SPLIT_LISTS, karpathy, karpathy_data, refused, write, write_images

from captioning.data.corpus import read_corpus


def test_coco_finds_images_by_filepath_and_trains_on_restval(tmp_path: Path) -> None:
    entries = [
        ("train2014", "COCO_train2014_1.jpg", "train"),
        ("val2014", "COCO_val2014_2.jpg", "restval"),
        ("val2014", "COCO_val2014_3.jpg", "val"),
        ("val2014", "COCO_val2014_4.jpg", "test"),
    ]
    images = []
    for folder, name, split in entries:
        write(tmp_path / folder / name, b"")
        sentences = [{"raw": "A man .\n"}]
        images.append(
            {"filepath": folder, "filename": name, "split": split, "sentences": sentences}
        )
    write(tmp_path / "dataset_coco.json", json.dumps({"dataset": "coco", "images": images}))
    write(tmp_path / "dataset_flickr8k.json", json.dumps(karpathy_data()))
    corpus = read_corpus(tmp_path, name="coco")
    assert [i.id for i in corpus.split("train")] == [entries[0][1], entries[1][1]]
    assert corpus.split("train")[1].path == tmp_path / "val2014" / entries[1][1]
    assert corpus.references("dev") == {entries[2][1]: ["A man ."]}
    assert corpus.notes == ()
    write_images(tmp_path / "Images")
    assert list(read_corpus(tmp_path, name="flickr8k").references("dev")) == SPLIT_LISTS["dev"]
    shutil.rmtree(tmp_path / "train2014")
    assert "train2014" in refused(tmp_path, name="coco")


def set_split(data: dict[str, Any]) -> None:
    data["images"][1]["split"] = "valid"


def drop_sentences(data: dict[str, Any]) -> None:
    del data["images"][1]["sentences"]


def drop_raw(data: dict[str, Any]) -> None:
    data["images"][1]["sentences"][1] = {"tokens": []}


def half_a_character(data: dict[str, Any]) -> None:
    data["images"][1]["sentences"][0]["raw"] = "\ud83d"


def drop_images(data: dict[str, Any]) -> None:
    del data["images"]


def twice(data: dict[str, Any]) -> None:
    data["images"].append(data["images"][0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (set_split, "images[1]: the split 'valid'"),
        (drop_sentences, "images[1]: 'sentences'"),
        (drop_raw, "images[1].sentences[1]: 'raw'"),
        (half_a_character, "images[1].sentences[0]: 'raw' has a broken"),
        (drop_images, "'images'"),
        (twice, "t2.jpg (in train and train)"),
    ],
)
def test_malformed_karpathy_json_is_refused_with_its_place(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], says: str
) -> None:
    data = karpathy_data()
    damage(data)
    karpathy(tmp_path)
    write(tmp_path / "dataset_flickr8k.json", json.dumps(data))
    assert says in refused(tmp_path)


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    karpathy(tmp_path)
    path = write(tmp_path / "dataset_flickr8k.json", '{"images": [\n}')
    assert f"{path}:2: not JSON" in refused(tmp_path)


def test_json_of_several_other_data_sets_is_refused(tmp_path: Path) -> None:
    karpathy(tmp_path)
    shutil.copy(tmp_path / "dataset_flickr8k.json", tmp_path / "dataset_coco.json")
    assert "dataset_flickr30k.json" in refused(tmp_path, name="flickr30k")
