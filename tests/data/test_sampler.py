"""The order of the training images, and the images that each process of DDP training sees."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from torch import Tensor, nn

from captioning.data.batch import Batch
from captioning.data.corpus import CaptionedImage
from captioning.data.datamodule import CaptionDataModule
from captioning.data.dataset import CaptionDataset
from captioning.data.sampler import LengthGroupedSampler

EPOCHS = 2


@pytest.fixture(scope="module")
def dataset() -> CaptionDataset:
    """120 images, each with five captions of 3 to 22 tokens that are about equally long."""
    generator = torch.Generator().manual_seed(0)
    shortest = torch.randint(3, 20, (120, 1), generator=generator)
    lengths = (shortest + torch.randint(4, (120, 5), generator=generator)).tolist()
    tokens = [[[1] * length for length in of_image] for of_image in lengths]
    images = [CaptionedImage(str(number), Path(), "train", ()) for number in range(120)]
    return CaptionDataset(images, tokens, None, tiny.Encoder())


def order(
    dataset: CaptionDataset, epoch: int, *, ranks: int = 1, rank: int = 0, seed: int = 3
) -> list[int]:
    sampler = LengthGroupedSampler(dataset, 7, num_replicas=ranks, rank=rank, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_the_order_depends_on_seed_and_epoch_and_has_every_image_once(
    dataset: CaptionDataset,
) -> None:
    first, again, second = order(dataset, 0), order(dataset, 0), order(dataset, 1)
    assert first == again
    assert first != second
    assert order(dataset, 0, seed=4) != first
    assert sorted(first) == sorted(second) == list(range(120))


def test_torchs_own_seeds_of_64_bits_are_taken(dataset: CaptionDataset) -> None:
    orders = [order(dataset, 1, seed=seed) for seed in (2**64 - 1, 2**63 - 1, 67280421310721)]
    assert all(sorted(each) == list(range(120)) for each in orders)


@pytest.mark.parametrize(("ranks", "repeated"), [(2, 0), (3, 0), (7, 6)])
def test_ranks_share_an_epoch(dataset: CaptionDataset, ranks: int, repeated: int) -> None:
    """Each rank has as many images as the others, for which some may have to be repeated."""
    for epoch in range(2):
        parts = [order(dataset, epoch, ranks=ranks, rank=rank) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        assert set(chain(*parts)) == set(range(120))
        assert sum(map(len, parts)) == 120 + repeated


def test_batches_of_similar_length_need_fewer_steps_than_random_ones(
    dataset: CaptionDataset,
) -> None:
    def steps(order: list[int]) -> int:
        batches = [order[i : i + 7] for i in range(0, len(order), 7)]
        return sum(max(len(dataset.tokens[index][0]) for index in batch) for batch in batches)

    random = torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()
    assert steps(order(dataset, 0)) < 0.85 * steps(random)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that fork: OpenMP's threads do not survive in the new processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore")  # of forking, and of a loop without validation
def test_each_rank_of_ddp_training_sees_its_own_images(small_set: Path, tmp_path: Path) -> None:
    """The ranks seed torch differently, as for noise of their own, and still share the images."""
    train_in_two_processes(str(small_set), tmp_path)
    everything = {f"train{number:02d}.png" for number in range(22)}
    seen: dict[str, list[list[list[str]]]] = {}  # run, then epoch, then rank
    for run in ("torch5", "torch5again", "explicit5", "torch6"):
        seen[run] = [
            [json.loads((tmp_path / f"{run}-{epoch}-{rank}.json").read_text()) for rank in (0, 1)]
            for epoch in range(EPOCHS)
        ]
        for first, second in seen[run]:
            assert len(first) == len(second) == 11
            assert set(first) | set(second) == everything
        # Another order in the second epoch, and other images for each rank.
        for rank in (0, 1):
            assert set(seen[run][0][rank]) != set(seen[run][1][rank])
    assert seen["torch5"] == seen["torch5again"] == seen["explicit5"]
    assert seen["torch5"] != seen["torch6"]


class Witness(pl.LightningModule):
    """Writes down the ids of the images that it is trained on."""

    def __init__(self, folder: Path, run: str) -> None:
        super().__init__()
        self.encoder = tiny.Encoder()
        self.weight = nn.Parameter(torch.zeros(()))
        self.folder, self.run, self.seen = folder, run, list[str]()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen += batch.ids
        return self.weight * batch.grid.float().mean()

    def on_train_epoch_end(self) -> None:
        file = self.folder / f"{self.run}-{self.current_epoch}-{self.global_rank}.json"
        file.write_text(json.dumps(self.seen))
        self.seen = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


class RanksSeededApart(CaptionDataModule):
    """Seeds torch by the rank before anything else."""

    torch_seed = 0

    def setup(self, stage: str | None = None) -> None:
        assert self.trainer is not None
        torch.manual_seed(self.torch_seed + self.trainer.global_rank)
        super().setup(stage)


def train_in_two_processes(root: str, folder: Path) -> None:
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        "torch5": (5, {}),
        "torch5again": (5, {}),
        "explicit5": (8, {"seed": 5}),
        "torch6": (6, {}),
    }
    for run, (torch_seed, settings) in runs.items():
        data = RanksSeededApart(root, batch_size=4, min_count=1, cache=str(folder), **settings)
        data.torch_seed = torch_seed
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp_fork",
            max_epochs=EPOCHS,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Witness(folder, run), datamodule=data)
