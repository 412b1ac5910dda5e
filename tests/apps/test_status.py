"""How the commands that need no Hydra end."""

import errno
from pathlib import Path

import pytest

from captioning.apps.status import status_of
from captioning.support.errors import CaptioningError


def fails(error: Exception) -> int:
    raise error


def test_the_status_is_that_of_the_command() -> None:
    assert status_of(lambda: None) == 0
    assert status_of(lambda: 3) == 3


def test_a_mistake_of_the_user_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(lambda: fails(CaptioningError("no such file: give another."))) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "error: no such file: give another.\n")


def test_a_full_disk_is_one_sentence_if_it_is_known_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert status_of(lambda: fails(full), tmp_path) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path} cannot be read or written (No space left on device): make room"
    )
    with pytest.raises(OSError, match="No space left"):  # such a command names its files itself
        status_of(lambda: fails(full))
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: 1 // 0, tmp_path)
