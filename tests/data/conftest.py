"""A data set that is read and encoded in a moment."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COUNTS = {"train": 22, "val": 5, "test": 4}
WORDS = (
    *("a", "red", "dog", "runs", "over", "the", "green"),
    *("grass", "and", "jumps", "into", "deep", "blue", "water"),
)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22, 5 and 4 images of noise, each with two captions of a length of its own."""
    root = tmp_path_factory.mktemp("small_set")
    (root / "images").mkdir()
    noise = np.random.default_rng(5)
    images = []
    for split, count in COUNTS.items():
        for number in range(count):
            name = f"{split}{number:02d}.png"
            pixels = noise.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name)
            words = [WORDS[: 2 + number % 12], WORDS[: 1 + number % 5]]
            sentences = [{"raw": " ".join(caption)} for caption in words]
            images.append({"filename": name, "split": split, "sentences": sentences})
    content = {"dataset": "flickr8k", "images": images}
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    return root
