"""Garbage is not searched for during imports, and what they made is not searched afterwards."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from captioning.support.imports import importing


@pytest.fixture(autouse=True)
def nothing_exempt() -> Iterator[None]:
    """As in a new process."""
    gc.unfreeze()
    yield
    gc.unfreeze()


class Node:
    """An object that refers to itself, which only a search for garbage can free."""

    def __init__(self) -> None:
        self.itself = self


def test_within_the_block_no_search_happens_and_afterwards_garbage_is_found_again() -> None:
    with importing():
        assert not gc.isenabled()
        kept = weakref.ref(Node())
        many = [[] for _ in range(5 * gc.get_threshold()[0])]
        assert kept() is not None
    assert gc.isenabled()
    assert not any(each is many for each in gc.get_objects())  # as if they were not there
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None


def test_what_a_job_leaves_behind_is_freed_although_another_job_begins() -> None:
    with importing():
        pass
    left = Node()
    behind = weakref.ref(left)
    del left
    with importing():
        pass
    gc.collect()
    assert behind() is None


def test_an_import_that_fails_leaves_the_search_on_and_one_that_was_off_stays_off() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_process_ends_without_reports_of_leaks() -> None:
    """Triton's library reports each of its objects that still exists after Python's last search."""
    pytest.importorskip("triton")
    script = (
        "from captioning.support.imports import importing\nwith importing():\n    import triton"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
