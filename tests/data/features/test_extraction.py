"""Reading images ahead, in threads."""

import hashlib
import threading
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captioning.data.features.extraction import extract_grids, load_in_batches
from captioning.data.scenes import draw, scenes
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.errors import CaptioningError


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


@pytest.mark.gpu
def test_a_gpu_computes_the_grids_of_the_cpu(tmp_path: Path) -> None:
    files = {}
    for number, scene in enumerate(islice(scenes("test"), 12)):
        path = tmp_path / f"{number}.png"
        draw(scene)[0].save(path)
        files[hashlib.sha256(path.read_bytes()).hexdigest()] = path
    encoder = VGG16(weights="random")

    def grids(device: str, precision: str) -> dict[str, Tensor]:
        batches = extract_grids(
            encoder,
            files,
            batch_size=5,
            workers=2,
            device=torch.device(device),
            precision=precision,
        )
        return {
            digest: torch.from_numpy(grid).float()
            for batch in batches
            for digest, grid in zip(batch.digests, batch.grids, strict=True)
        }

    expected = grids("cpu", "fp32")
    for precision, least in (("fp32", 0.99999), ("bf16", 0.999)):
        found = grids("cuda", precision)
        assert found.keys() == expected.keys() == files.keys()
        for name, grid in found.items():
            cosine = torch.cosine_similarity(grid.flatten(), expected[name].flatten(), 0)
            assert cosine > least
