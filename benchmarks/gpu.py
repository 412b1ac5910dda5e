"""Training on a GPU: ``make bench ARGS=gpu`` on any machine that has one.

The whole way from photographs to the report, on made-up photographs as many as Flickr8k has; an
epoch of that size with all grids in the GPU's memory, in a plain loop and in Lightning's; and an
epoch of self-critical training.
"""

import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from benchmarks.features import write_photographs, write_splits
from benchmarks.loading import make_grid, make_store
from benchmarks.measure import Figure, matrix_rate, native_precision, seconds, time_in_turns
from benchmarks.parts import SampledStep, trained_decoder
from benchmarks.scoring import make_captions
from benchmarks.startup import command
from benchmarks.textbook import Textbook
from benchmarks.training import (
    CAPTIONS,
    CHANNELS,
    IMAGES,
    LOCATIONS,
    WORDS,
    Step,
    TextbookStep,
    batch_of,
    decoder_of,
    multiply_adds,
)
from captioning.captioner import Captioner
from captioning.data.corpus import CaptionedImage
from captioning.data.datamodule import Batch, CaptionDataModule
from captioning.data.dataset import CaptionDataset
from captioning.data.features.packed_grids import pack
from captioning.data.sampler import LengthGroupedSampler
from captioning.data.views import ORIGINAL
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.special_tokens import PAD
from captioning.trainer import make_trainer, quieten
from captioning.training.callbacks.ema import EMA

EPOCH = 6000  # images in Flickr8k's training split
STEPS = 25  # steps of the reference that are timed, and extrapolated to an epoch
EPOCHS = 4  # epochs that Lightning's loop runs


def run(rounds: int) -> list[Figure]:
    """Measure everything; without a GPU, nothing is measured."""
    if not torch.cuda.is_available():
        print("gpu: there is no CUDA device here; nothing is measured.")
        return []
    print(f"gpu: {software()}")
    return [
        whole_way(), epoch(torch.device("cuda"), rounds), trained("gpu", "bf16-mixed"),
        self_critical_epoch(torch.device("cuda"), trained_decoder()),
    ]  # fmt: skip


def software() -> str:
    """The GPU, its driver and the libraries that the measurements depend on."""
    parts = [name_of("cuda")]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout
        parts.append(f"driver {driver.split()[0]}")
    parts.append(f"CUDA {torch.version.cuda}")
    for package in ("torch", "triton", "pytorch-lightning"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            parts.append(f"{package} {metadata.version(package)}")
    return ", ".join(parts)


def whole_way(
    arguments: Sequence[str] = (), splits: Sequence[int] = (EPOCH, 1000, 1000), epochs: int = 9
) -> Figure:
    """Time ``train.py`` from photographs to the report, with dev scores after every epoch.

    Args:
        arguments: further settings of ``train.py``.
        splits: the number of images of the train, dev and test splits.
        epochs: how many, without early stopping.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_photographs(place / "data", splits)
        script = command(
            f"data.root={place}/data", f"data.cache={place}/cache", "logger=csv",
            f"trainer.max_epochs={epochs}", "~callbacks.early_stopping",
            f"hydra.run.dir={place}/run", *arguments,
        )  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        parts = json.loads((place / "run" / "results.json").read_text())["seconds"]
    parts["start, report and the rest"] = taken - sum(parts.values())
    note = ", ".join(f"{name} {part:.1f} s" for name, part in parts.items())
    return Figure(
        f"from {sum(splits):,} photographs to the report", taken, "s", note=note, goal_value=60
    )


def make_photographs(root: Path, splits: Sequence[int]) -> None:
    """Photographs and captions in Kaggle's layout, with the lists of Flickr8k's splits."""
    (root / "Images").mkdir(parents=True)
    total = sum(splits)
    paths = write_photographs(root / "Images", total, distinct=200)
    for number, path in enumerate(paths):
        with path.open("ab") as file:  # after the end of the picture, so that no two are equal
            file.write(str(number).encode())
    captions = make_captions(np.random.default_rng(0), CAPTIONS, total)
    lines = [f"{image},{caption}" for image, of in captions.items() for caption in of]
    (root / "captions.txt").write_text("\n".join(["image,caption", *lines]) + "\n")
    write_splits(root, [path.name for path in paths], splits)


def self_critical_epoch(
    device: torch.device, decoder: Decoder, images: int = EPOCH, locations: int = LOCATIONS
) -> Figure:
    """Time an epoch of self-critical training, with five samples of each image."""
    torch.manual_seed(0)
    precision = "bf16" if device.type == "cuda" else native_precision()
    step = SampledStep(decoder.to(device), precision, images)
    step.step.optimizer.param_groups[0]["lr"] = 0.0  # captions keep their lengths
    held = torch.randn(images, locations, CHANNELS, dtype=torch.float16, device=device).relu_()

    def work() -> None:
        for first in range(0, images - IMAGES + 1, IMAGES):
            step(held[first : first + IMAGES], first)
        if device.type == "cuda":
            torch.cuda.synchronize()

    first = seconds(work)
    taken = min(seconds(work) for _ in range(2))
    return Figure(
        f"a self-critical epoch of {images:,} images", taken, "s",
        note=f"on {name_of(device.type)}, {CAPTIONS} samples; the first epoch took {first:.1f} s",
        goal_value=6,
    )  # fmt: skip


def epoch(
    device: torch.device, rounds: int, images: int = EPOCH, locations: int = LOCATIONS
) -> Figure:
    """Time an epoch over ``images`` images in bfloat16, compared with the textbook's."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batches = [batch_of(generator, locations=locations)[1] for _ in range(images // IMAGES)]
    held = torch.randn(images, locations, CHANNELS, dtype=torch.float16, device=device).relu_()
    step = Step(decoder_of().to(device), "bf16")
    textbook = TextbookStep(Textbook(decoder_of()).to(device))
    steps = min(STEPS, len(batches))

    def grids(number: int) -> torch.Tensor:
        which = torch.arange(number * IMAGES, (number + 1) * IMAGES)
        return held.index_select(0, which.to(device, non_blocking=True))

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def ours() -> None:
        for number, tokens in enumerate(batches):
            step(grids(number), tokens)
        finish()

    def theirs() -> None:
        for number, tokens in enumerate(batches[:steps]):
            textbook(grids(number).float(), tokens.to(device))
        finish()

    theirs()
    first = seconds(ours)
    mine, other, ratio = time_in_turns(ours, theirs, rounds=rounds)
    share = len(batches) / steps
    tokens = sum(int((of_batch[..., 1:] != PAD).sum()) for of_batch in batches)
    needed = 3 * 2 * multiply_adds(tokens, images=images, locations=locations)
    return Figure(
        f"an epoch of {images * CAPTIONS:,} captions", mine, "s", share * other, share * ratio,
        needed / matrix_rate(torch.bfloat16, device.type),
        f"on {name_of(device.type)}, {len(batches)} steps; the first epoch took {first:.1f} s",
        goal_value=0.8,
    )  # fmt: skip


def name_of(device: str) -> str:
    """The name of the GPU, or ``CPU``."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


class MadeUp(CaptionDataModule):
    """Synthetic data: random captions of 9 to 17 words, and the same grid for every image."""

    def __init__(self, folder: Path, images: int, device: torch.device) -> None:
        super().__init__(batch_size=IMAGES)
        encoder, generator = VGG16(weights="random"), torch.Generator().manual_seed(0)
        row = pack(make_grid(encoder))
        store = make_store(folder, encoder, images, row)
        self.features.stores = {ORIGINAL.name: store}
        (store.folder / "grids.bin").write_bytes(row * images)
        self.load_resident(device)
        _, made = batch_of(generator, images=images, locations=1)
        tokens = [[row[row != PAD].tolist() for row in of_image] for of_image in made]
        listed = [CaptionedImage(str(number), Path(), "train", ()) for number in range(images)]
        self.made = CaptionDataset(listed, tokens, self.stores, encoder)

    def prepare_data(self) -> None:
        """There is nothing to download."""

    def setup(self, stage: str | None = None) -> None:
        """There is nothing to set up: ``__init__`` has made the data."""

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = LengthGroupedSampler(self.made, IMAGES, seed=0)
        return self._dataloader(self.made, IMAGES, sampler)


class Times(pl.Callback):
    """Records how many seconds the batches of each epoch take."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.epochs.append(time.perf_counter() - self.start)


def fitted(
    accelerator: str, precision: str, images: int, epochs: int, callback: pl.Callback
) -> Captioner:
    """Train on made-up data as ``train.py`` does: Lightning's loop, gradient clipping and EMA."""
    quieten()
    torch.manual_seed(0)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    captioner = Captioner(
        vocabulary=[f"w{number}" for number in range(WORDS - 4)],
        encoder={"_target_": "captioning.models.encoders.vgg16.VGG16", "weights": "random"},
        model={"_target_": "captioning.models.decoders.attn_lstm.AttentionLSTM"},
        optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3, "fused": True},
    )
    settings = {
        "accelerator": accelerator, "devices": 1, "precision": precision, "max_epochs": epochs,
        "gradient_clip_val": 2.0, "limit_val_batches": 0, "enable_checkpointing": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data = MadeUp(Path(folder), images, device)
        trainer = make_trainer(settings, Path(folder), [EMA(0.998), callback], [])
        trainer.fit(captioner, datamodule=data)
    return captioner


def trained(accelerator: str, precision: str, images: int = EPOCH, epochs: int = EPOCHS) -> Figure:
    """Time an epoch of :func:`fitted`."""
    times = Times()
    captioner = fitted(accelerator, precision, images, epochs, times)
    device = "cuda" if accelerator == "gpu" else "cpu"
    return Figure(
        "the same by train.py's trainer", statistics.median(times.epochs[1:]), "s",
        note=f"on {name_of(device)}; epochs: {', '.join(f'{t:.2f}' for t in times.epochs)} s; "
        f"{len(captioner.graphs)} graphs", goal_value=0.8,
    )  # fmt: skip
