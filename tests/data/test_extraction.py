"""Reading images ahead, in threads."""

import threading

import pytest
import torch
from torch import Tensor

from captioning.data.extraction import load_in_batches
from captioning.errors import CaptioningError


def load(number: int) -> Tensor:
    if number % 5 == 3:
        raise CaptioningError(f"{number} is broken")
    return torch.tensor(number)


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_keep_the_order_and_name_what_is_broken(workers: int) -> None:
    batches = list(load_in_batches(load, range(10), batch_size=4, workers=workers))
    assert [list(images) for images, _ in batches] == [[0, 1, 2], [4, 5, 6, 7], [9]]
    assert [list(errors) for _, errors in batches] == [[3], [], [8]]
    for images, errors in batches:
        assert all(int(image) == number for number, image in images.items())
        assert all(str(error) == f"{number} is broken" for number, error in errors.items())
    assert list(load_in_batches(load, [], batch_size=4, workers=workers)) == []
    ((images, errors),) = load_in_batches(load, [3], batch_size=4, workers=workers)
    assert not images
    assert list(errors) == [3]


def test_it_reads_two_batches_ahead_and_no_more() -> None:
    loaded = threading.Semaphore(0)
    asked: list[int] = []

    def counted(number: int) -> Tensor:
        asked.append(number)
        loaded.release()
        return torch.tensor(number)

    batches = load_in_batches(counted, range(1000), batch_size=4, workers=2)
    next(batches)
    for _ in range(12):  # the batch itself, and the two after it
        assert loaded.acquire(timeout=10)
    assert not loaded.acquire(timeout=0.2)
    batches.close()
    assert len(asked) == 12
