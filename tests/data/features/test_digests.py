"""Digests of image files."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from captioning.data.features.digests import image_digests


def test_digests_are_sha256_and_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    old, new, cache = tmp_path / "old", tmp_path / "new", tmp_path / "digests.json"
    for path, text in ((old, "one"), (new, "two")):
        path.write_text(text)
    os.utime(old, ns=(10**18, 10**18))
    expected = [hashlib.sha256(text).hexdigest() for text in (b"one", b"two")]
    assert image_digests([old, new], cache) == expected
    assert list(json.loads(cache.read_text())) == [str(old)]  # the other may still be changing

    # Same size and time: believed without reading. Another time: read.
    old.write_text("six")
    os.utime(old, ns=(10**18, 10**18))
    assert image_digests([old, new], cache) == expected
    os.utime(old, ns=(10**18 + 1, 10**18 + 1))
    assert image_digests([old], cache) == [hashlib.sha256(b"six").hexdigest()]


@pytest.mark.parametrize("damage", ["{", "[1]", '{"a": 1}', '{"a": [1, 2]}'])
def test_a_damaged_digest_file_is_only_a_cache(tmp_path: Path, damage: str) -> None:
    image, cache = tmp_path / "image", tmp_path / "digests.json"
    image.write_text("one")
    os.utime(image, ns=(10**18, 10**18))
    cache.write_text(damage)
    assert image_digests([image], cache) == [hashlib.sha256(b"one").hexdigest()]
    assert str(image) in json.loads(cache.read_text())
