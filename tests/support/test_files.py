import json
import os
import stat
import threading
from pathlib import Path

import pytest

from captioning.support.files import atomic_write_json, atomic_write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_as_given_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "captions.txt"
    atomic_write_text(target, "a dog\r\nein Hündchen 🐕\n")
    assert target.read_bytes() == "a dog\r\nein Hündchen 🐕\n".encode()
    assert names(target.parent) == ["captions.txt"]


def test_existing_file_is_replaced_never_rewritten_in_place(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")
    with target.open() as reader:  # a reader with the old file open still sees the old content
        atomic_write_text(target, "new")
        assert reader.read() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_text(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


def test_mode_follows_the_umask_so_that_a_group_can_share_the_file(tmp_path: Path) -> None:
    target = tmp_path / "shared.txt"
    before = os.umask(0o027)
    try:
        atomic_write_text(target, "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_writers_at_once_leave_one_whole_text(tmp_path: Path) -> None:
    target = tmp_path / "cache.json"
    texts = [str(number) * 100_000 for number in range(8)]
    writers = [threading.Thread(target=atomic_write_text, args=(target, text)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in texts
    assert names(tmp_path) == ["cache.json"]


def test_json_round_trip_keeps_every_string(tmp_path: Path) -> None:
    target = tmp_path / "captions.json"
    value = {"captions": ["Hündchen 🐕", "lone \ud800", "line\u2028break", ""], "score": 0.1}
    atomic_write_json(target, value)
    assert json.loads(target.read_bytes()) == value


def test_json_without_a_form_is_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    target = tmp_path / "captions.json"
    target.write_text("old")
    with pytest.raises(TypeError):
        atomic_write_json(target, {"object": object()})
    assert target.read_text() == "old"
