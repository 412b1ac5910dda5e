"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def flickr8k_mini() -> Path:
    """The folder of 200 real Flickr8k images in all three layouts; skips where it is absent."""
    root = REPOSITORY.parent / "shared" / "flickr8k" / "mini"
    if not root.is_dir():
        pytest.skip("the 200 real images are not beside this checkout: ../shared/flickr8k/mini")
    return root
