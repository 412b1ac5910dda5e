"""Which of several runs gets a folder."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioning.support.claims import check_unused, claim, claim_new, discard, release_claims
from captioning.support.errors import CaptioningError

HOLD = """
import sys
from pathlib import Path
from captioning.support.claims import claim_new
print(claim_new(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    release_claims()


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that claims a new folder and holds it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    processes = [holder(tmp_path / "runs" / "12-00-00") for _ in range(4)]
    names = set()
    for process in processes:
        assert process.stdout is not None
        names.add(Path(process.stdout.readline().strip()).name)
    for process in processes:
        process.communicate()
    assert names == {"12-00-00", "12-00-00-2", "12-00-00-3", "12-00-00-4"}


def test_a_folder_is_refused_while_its_run_goes_on_and_free_when_it_is_killed(
    tmp_path: Path,
) -> None:
    process = holder(tmp_path / "run")
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(CaptioningError, match=rf"has not ended \(process {process.pid} on .+\)"):
        claim(tmp_path / "run")
    process.kill()
    process.communicate()
    claim(tmp_path / "run")
    with pytest.raises(CaptioningError, match="has not ended"):
        claim(tmp_path / "run")
    release_claims()
    claim(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (claim, claim_new):
        for folder in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
            with pytest.raises(CaptioningError, match=r"hydra\.run\.dir=.* cannot be written"):
                make(folder)


def test_what_another_run_has_left_is_not_overwritten(tmp_path: Path) -> None:
    check_unused(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    with pytest.raises(CaptioningError, match=f"continue it by resume={last}"):
        check_unused(tmp_path)
    (tmp_path / "results.json").touch()
    with pytest.raises(CaptioningError, match="holds the results of another run"):
        check_unused(tmp_path)


def test_a_folder_in_which_nothing_was_done_is_removed_with_the_parents_made_for_it(
    tmp_path: Path,
) -> None:
    folder = claim_new(tmp_path / "runs" / "lstm" / "12-00-00")
    (folder / ".hydra").mkdir()
    (folder / "train.log").touch()
    (folder / "logs").mkdir()
    discard(folder)
    assert list(tmp_path.iterdir()) == []
    folder = claim_new(tmp_path / "runs" / "lstm" / "12-00-00")
    other = claim_new(tmp_path / "runs" / "lstm" / "12-00-00")
    discard(other)
    assert folder.is_dir()
    assert not other.exists()


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "logs/metrics.csv", "mine.txt"])
def test_a_folder_with_work_in_it_stays(name: str, tmp_path: Path) -> None:
    folder = claim_new(tmp_path / "runs" / "12-00-00")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    discard(folder)
    assert (folder / name).exists()


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    claim(tmp_path / "mine")
    discard(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
