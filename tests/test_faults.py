"""The faults: outcomes are told apart, and the documentation has the figures of the record."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from captioning.support.errors import CaptioningError
from faults import images, readers
from faults.__main__ import DOCS, PARTS, main
from faults.attempt import attempt
from faults.outcome import SUCCESSES, Outcome, Try
from faults.record import fill

ROOT = Path(__file__).parents[1]


def refuse(message: str) -> None:
    raise CaptioningError(message)


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda: None, "right"),
        (lambda: refuse("a.json, line 3: not a number."), "refused"),
        (lambda: refuse("a message\nof two lines"), "refused"),  # the exception makes it one
        (lambda: refuse("a long message " * 200), "refused"),  # and shortens it
        (lambda: refuse(""), "traceback"),
        (lambda: {}["key"], "traceback"),
        (lambda: time.sleep(5), "hang"),
    ],
)
def test_outcomes_are_told_apart(work: Callable[[], object], outcome: Outcome) -> None:
    assert attempt(work, seconds=0.2)[0] == outcome


def test_a_failure_is_printed_counted_kept_and_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
        assert folder.is_dir()
        for number in range(tries):
            yield Try("cut", f"{seed}-{number}", "right" if number else "lost", "best.ckpt is gone")

    monkeypatch.setattr(images, "run", run)
    assert main(["images", "--tries", "3", "--seed", "7", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "images: cut, 7-0: lost: best.ckpt is gone" in printed
    path = tmp_path / "reliability.json"
    record = json.loads(path.read_text())
    assert record["images"]["kinds"] == {"cut": {"lost": 1, "right": 2}}
    assert [each["case"] for each in record["images"]["failed"]] == ["7-0"]

    path.write_text(json.dumps(record | {"kills": record["images"]}))
    monkeypatch.setattr(images, "run", lambda *_: iter([Try("whole", "a", "refused")]))
    assert main(["images", "--out", str(tmp_path)]) == 0
    record = json.loads(path.read_text())
    assert [*record] == ["kills", "images"]  # in the order of the parts; the other one is kept
    assert record["images"]["kinds"] == {"whole": {"refused": 1}}


def test_the_documentation_has_the_figures_of_the_record() -> None:
    records = json.loads((DOCS / "results" / "reliability.json").read_text())
    page = (DOCS / "reliability.md").read_text()
    assert fill(page, records) == page
    assert [record["failed"] for record in records.values() if record["failed"]] == []
    for part in PARTS:
        assert f"| `{part}` |" in page


def test_every_part_has_the_same_interface() -> None:
    folder = Path(images.__file__).parent
    for part in PARTS:
        if (folder / f"{part}.py").exists():
            module = importlib.import_module(f"faults.{part}")
            assert callable(module.run)
            assert module.DEFAULT_TRIES >= 1


def test_images_of_every_kind_end_well(tmp_path: Path) -> None:
    found = list(images.run(13, tmp_path, seed=5))
    assert len({each.kind for each in found}) == 12
    assert [each for each in found if each.outcome not in ("right", "refused")] == []


def test_damaged_files_are_read_or_refused_by_every_reader(tmp_path: Path) -> None:
    found = list(readers.run(300, tmp_path, seed=1))
    assert [each for each in found if each.outcome not in SUCCESSES] == []
    assert {each.outcome for each in found} == {"right", "refused"}


def test_faults_of_the_file_system_end_well(tmp_path: Path) -> None:
    """In a process of its own, since it forks, and replaces Java."""
    command = [sys.executable, "-m", "faults", "file_system", "--tries", "8", "--seed", "5"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = json.loads((tmp_path / "reliability.json").read_text())
    kinds = record["file_system"]["kinds"]
    assert sum(sum(outcomes.values()) for outcomes in kinds.values()) == 8
    assert len(kinds) >= 7
