"""A network of one convolution, and images for its feature store.

Run as a script, this file builds a store slowly, for the tests that kill or race a builder.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from captioning.data.features.building import build_store
from captioning.data.features.store import FeatureStore
from captioning.models.encoders.base import GridEncoder

OPTIONS: dict[str, Any] = {
    "batch_size": 2,
    "device": "cpu",
    "precision": "fp32",
    "progress": False,
}


class Tiny(GridEncoder):
    """A 2 x 2 grid of 4 channels; counts the images it is given, and can be slow."""

    name = "tiny"
    channels = 4
    stride = 8
    encoded: ClassVar[list[int]] = []
    seconds: ClassVar[float] = 0.0

    def build(self) -> None:
        self.conv = nn.Conv2d(3, 4, kernel_size=8, stride=8)

    def map(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        self.encoded.append(len(images))
        time.sleep(self.seconds)
        result: Tensor = self.conv(images)
        return result

    def last_block(self) -> list[nn.Parameter]:
        return list(self.conv.parameters())


def make_images(folder: Path, count: int = 5) -> list[tuple[str, Path]]:
    folder.mkdir()
    draw = np.random.default_rng(3)
    images = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
        images.append((path.name, path))
    return images


@contextmanager
def builder(directory: Path, images: Path, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that builds a store of these images, and pauses after every batch."""
    command = [sys.executable, __file__, str(directory), str(images), str(seconds)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in directory.glob("tiny-*/index.txt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def contents(store: FeatureStore) -> dict[str, bytes]:
    return {name: (store.folder / name).read_bytes() for name in ("grids.bin", "index.txt")}


def without_checksums(index: Path) -> None:
    """Make the index one that an earlier version wrote."""
    lines = [line.rpartition(" ")[0] for line in index.read_text().splitlines()]
    index.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    directory, folder, seconds = sys.argv[1:]
    Tiny.seconds = float(seconds)
    build_store(
        Path(directory),
        Tiny(weights="random", image_size=16),
        [(path.name, path) for path in sorted(Path(folder).glob("*.png"))],
        **OPTIONS,
    )
