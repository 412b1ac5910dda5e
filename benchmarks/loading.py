"""The time that a training step waits for its data, and start-up with a corpus of COCO's size.

The file of the feature store is sparse: only the grids that are read are written.
"""

import hashlib
import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch

from benchmarks.measure import Figure, native_precision, seconds
from benchmarks.training import IMAGES, Step, batch_of, decoder_of
from captioning.data.corpus import CaptionedImage
from captioning.data.dataset import CaptionDataset
from captioning.data.features.meta import identity_of, store_folder, write_meta
from captioning.data.features.packed_grids import pack
from captioning.data.features.rows import index_line
from captioning.data.features.store import FeatureStore
from captioning.data.sampler import LengthGroupedSampler
from captioning.data.views import ORIGINAL
from captioning.models.encoders.vgg16 import VGG16
from captioning.support.special_tokens import START

COCO = 120_000  # images, about as many as in COCO's training and validation sets
BATCHES = 300  # batches that are timed


def make_grid(encoder: VGG16, zeros: float = 0.92) -> np.ndarray:
    """A random grid of VGG16's shape with a share of ``zeros``; in real grids it is 92 %."""
    generator = np.random.default_rng(0)
    grid = generator.random((encoder.locations, encoder.channels)).astype(np.float16)
    grid[generator.random(grid.shape) < zeros] = 0
    return grid


def make_store(folder: Path, encoder: VGG16, images: int, row: bytes) -> FeatureStore:
    """A feature store whose index says that ``row`` is the grid of each of ``images``.

    The file of the grids has the size of all rows, and no contents.
    """
    place = store_folder(folder, encoder)
    write_meta(place, identity_of(encoder, ORIGINAL), "fp32")
    digests = {str(n): hashlib.sha256(str(n).encode()).hexdigest() for n in range(images)}
    (place / "index.txt").write_text("".join(index_line(d, row) for d in digests.values()))
    with (place / "grids.bin").open("wb") as file:
        file.truncate(images * len(row))
    start = time.perf_counter()
    store = FeatureStore(place, digests)
    store.opened_in = time.perf_counter() - start  # type: ignore[attr-defined]
    return store


def memory() -> float:
    """The peak memory of this process in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def run(rounds: int) -> list[Figure]:
    """Time loading a training batch, compared with a training step."""
    encoder = VGG16(weights="random")
    generator = torch.Generator().manual_seed(0)
    step = Step(decoder_of(), native_precision())
    batch = batch_of(generator)
    step(*batch)
    of_step = min(seconds(lambda: step(*batch)) for _ in range(max(3, rounds)))
    with tempfile.TemporaryDirectory() as folder:
        row = pack(make_grid(encoder))
        store = make_store(Path(folder), encoder, COCO, row)
        before = memory()
        start = time.perf_counter()
        lengths = torch.randint(11, 20, (COCO, 5), generator=generator).tolist()
        tokens = [[[START] * length for length in of_image] for of_image in lengths]
        images = [CaptionedImage(str(n), Path(), "train", ()) for n in range(COCO)]
        data = CaptionDataset(images, tokens, {ORIGINAL.name: store}, encoder)
        sampler = LengthGroupedSampler(data, IMAGES, seed=0)
        order = iter(sampler)
        batches = [[next(order) for _ in range(IMAGES)] for _ in range(1 + BATCHES)]
        ready = time.perf_counter() - start + cast(float, store.opened_in)  # type: ignore[attr-defined]
        with (store.folder / "grids.bin").open("r+b") as file:
            for image in itertools.chain(*batches):
                file.seek(image * len(row))
                file.write(row)
        first, *loads = (seconds(lambda batch=batch: data.__getitems__(batch)) for batch in batches)
        held = memory() - before
    of_load, whole = sorted(loads)[BATCHES // 2], encoder.locations * encoder.channels * 2
    packed = f"{COCO * len(row) / 1e9:.1f} GB, not {COCO * whole / 1e9:.1f}"
    return [
        Figure(
            "a step's wait for data", 1e3 * of_load, "ms", note=f"{of_load / of_step:.1%} of a step"
        ),
        Figure(
            "COCO's size: to the first batch", ready + first, "s",
            note=f"{COCO:,} images; leaving out zeros, the store has {packed}; "
            f"{BATCHES} batches added {held:.1f} GB of memory",
        ),
    ]  # fmt: skip
