"""Files of a run that cannot be read are told by name, whichever of them it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.reporting.per_image import read_captions, read_statistics
from captioning.reporting.results import read_results
from captioning.support.errors import CaptioningError

Read = Callable[[Path], Any]


@pytest.fixture(params=[read_captions, read_statistics, read_results])
def read(request: pytest.FixtureRequest) -> Read:
    found: Read = request.param
    return found


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "na', b"\xff\xfe\x00", b"null", b"3"])
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, read: Read) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(CaptioningError, match=r"file\.json:") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path, read: Read) -> None:
    with pytest.raises(CaptioningError, match=r"absent\.json: cannot be read \(No such file"):
        read(tmp_path / "absent.json")
    with pytest.raises(CaptioningError, match=r"cannot be read \(Is a directory"):
        read(tmp_path)


def test_brackets_without_end(tmp_path: Path, read: Read) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(CaptioningError, match=r"deep\.json:.* not JSON"):
        read(tmp_path / "deep.json")
