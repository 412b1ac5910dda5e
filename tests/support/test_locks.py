"""Locks where there are none, and the cache where there is no home."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from captioning.support.errors import CaptioningError
from captioning.support.locks import file_lock
from captioning.support.paths import cache_dir


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "lock"
    with pytest.raises(CaptioningError) as caught, file_lock(path, "it works"):
        pass
    assert str(caught.value) == (
        f"{path} cannot be locked ({os.strerror(code)}): choose a folder whose file system has "
        "locks, such as one on a local disk; CAPTIONING_CACHE moves the cache."
    )


def test_an_error_within_the_lock_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "lock", "it works"):
        raise FileNotFoundError("another file")


def test_a_user_without_a_home_is_told_to_name_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CAPTIONING_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(CaptioningError, match=r"home directory.*set CAPTIONING_CACHE to a folder"):
        cache_dir()
