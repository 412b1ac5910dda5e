"""The same small data set, written in each layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.data.corpus import read_corpus
from captioning.support.errors import CaptioningError

LISTS = "Flickr_8k.{}Images.txt"


CAPTIONS = {
    "t1.jpg": ["A dog runs .", 'Two dogs , "really" .'],
    "t2.jpg": ["A cat 's hat ."],
    "d1.jpg": ["A boy .", "A boy ."],
    "e1.jpg": ["A girl ."],
    "spare.jpg": ["In no split ."],
}


SPLIT_LISTS = {"train": ["t2.jpg", "t1.jpg"], "dev": ["d1.jpg"], "test": ["e1.jpg"]}


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_images(folder: Path) -> None:
    for image in CAPTIONS:
        write(folder / image, b"any bytes: reading a corpus does not decode images")


def write_lists(folder: Path) -> None:
    for split, images in SPLIT_LISTS.items():
        write(folder / LISTS.format(split), "".join(f"{image}\n" for image in images))


def official(root: Path) -> Path:
    lines = [
        f"{image}#{number}\t{caption}\n"
        for image, captions in CAPTIONS.items()
        for number, caption in enumerate(captions)
    ]
    write(root / "Flickr8k_text" / "Flickr8k.token.txt", "".join(lines))
    write_lists(root / "Flickr8k_text")
    write_images(root / "Flicker8k_Dataset")
    return root


def kaggle(root: Path) -> Path:
    lines = [
        '{},"{}"\n'.format(image, caption.replace('"', '""'))
        for image, captions in CAPTIONS.items()
        for caption in captions
    ]
    write(root / "captions.txt", "image,caption\n" + "".join(lines))
    write_lists(root)
    write_images(root / "Images")
    return root


def karpathy_data() -> dict[str, Any]:
    names = {"train": "train", "dev": "val", "test": "test"}
    images = [
        {
            "filename": image,
            "split": names[split],
            "sentences": [{"raw": caption, "tokens": []} for caption in CAPTIONS[image]],
        }
        for split, listed in SPLIT_LISTS.items()
        for image in listed
    ]
    return {"dataset": "flickr8k", "images": images}


def karpathy(root: Path) -> Path:
    write(root / "dataset_flickr8k.json", json.dumps(karpathy_data()))
    write_images(root / "Flicker8k_Dataset")
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "official": official,
    "kaggle": kaggle,
    "karpathy": karpathy,
}


def refused(root: Path, **options: Any) -> str:
    with pytest.raises(CaptioningError) as error:
        read_corpus(root, **options)
    message = str(error.value)
    assert "\n" not in message
    return message
