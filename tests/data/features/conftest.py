"""Fixtures of the tests of the feature store."""

from pathlib import Path

import pytest
from tiny_store import Tiny, make_images


@pytest.fixture
def tiny() -> Tiny:
    Tiny.encoded.clear()
    return Tiny(weights="random", image_size=16)


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, Path]]:
    return make_images(tmp_path / "images")
