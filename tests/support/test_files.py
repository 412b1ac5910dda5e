import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from captioning.support.errors import CaptioningError
from captioning.support.files import (
    atomic_write_json,
    atomic_write_text,
    naming_disk_faults,
    writing,
)


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


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            errno.ENOSPC,
            "(No space left on device): make room on its disk, or choose another folder.",
        ),
        (errno.EDQUOT, "(Disk quota exceeded): make room on its disk, or choose another folder."),
        (errno.EFBIG, "(File too large): raise the limit of file sizes (ulimit -f), or choose "),
        (
            errno.EROFS,
            "(Read-only file system): choose another folder, one in which you may write.",
        ),
        (errno.EACCES, "(Permission denied): choose another folder, one in which you may write."),
    ],
)
def test_a_fault_of_the_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CaptioningError) as caught:
        atomic_write_text(target, "new")
    assert str(caught.value).startswith(f"{target} cannot be written {said}")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "captions.json"
    with pytest.raises(
        CaptioningError, match=r"captions\.json cannot be written \(.*choose another folder"
    ):
        atomic_write_json(target, {})


def test_what_is_in_the_cache_can_be_moved_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path))
    full = OSError(errno.ENOSPC, "full")
    with (
        pytest.raises(CaptioningError, match="set CAPTIONING_CACHE to another"),
        writing(tmp_path / "tokens" / "a.json"),
    ):
        raise full
    with (
        pytest.raises(CaptioningError, match=r"^out=a cannot be written .full.: make room"),
        writing("a", "out"),
    ):
        raise full


def test_libraries_that_write_files_get_the_same_sentence_for_faults_of_a_disk_alone() -> None:
    with (
        pytest.raises(CaptioningError, match=r"^runs/x cannot be read or written .*: make room"),
        naming_disk_faults("runs"),
    ):
        raise OSError(errno.ENOSPC, "full", "runs/x")
    with (
        pytest.raises(CaptioningError, match=r"^runs cannot be read or written"),
        naming_disk_faults("runs"),
    ):
        raise OSError(errno.EROFS, "read-only")
    with pytest.raises(CaptioningError, match=r"No usable .*TMPDIR"), naming_disk_faults("runs"):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    with pytest.raises(FileNotFoundError), naming_disk_faults("runs"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "a bug")
    with pytest.raises(BrokenPipeError), naming_disk_faults("runs"):
        raise BrokenPipeError
