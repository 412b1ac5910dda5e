"""Feature extraction with VGG16, compared with torchvision's network in single precision."""

import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

from benchmarks.measure import Figure, matrix_rate, native_precision, time_in_turns
from captioning.data.features.digests import try_image_digests
from captioning.data.features.extraction import encode, extract_grids
from captioning.models.encoders.vgg16 import VGG16

BATCH, FILES = 16, 64


def run(rounds: int) -> list[Figure]:
    """Time the network alone, and extraction from files, whose decoding runs in parallel."""
    torch.manual_seed(0)
    encoder = VGG16(weights="random")
    plain = torchvision.models.vgg16().features[:30].eval()
    plain.load_state_dict(encoder.features.state_dict(), strict=False)
    precision, device = native_precision(), torch.device("cpu")
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(smooth(generator)) for _ in range(BATCH)]
    images = [encoder.preprocessing(picture) for picture in pictures]
    batch = torch.stack(images)

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return plain(batch).flatten(2).mT

    ours = encode(encoder, images, device, precision).float()
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(1), theirs().flatten(1), dim=1)
    mine, other, ratio = time_in_turns(
        lambda: encode(encoder, images, device, precision), theirs, rounds=rounds
    )
    convolutions = 2 * sum(
        layer.weight.numel() * (224 // 2 ** (sum(p < place for p in (4, 9, 16, 23)))) ** 2
        for place, layer in enumerate(plain)
        if isinstance(layer, torch.nn.Conv2d)
    )
    rate = matrix_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    network = Figure(
        f"VGG16's grids, {precision}", BATCH / mine, "images/s", BATCH / other, ratio,
        rate / convolutions, f"cosine to fp32 at least {cosine.min():.5f}", goal_ratio=3,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), FILES, distinct=FILES)
        digests = try_image_digests(paths, Path(folder) / "digests.json", progress=False)
        files = {str(digest): path for digest, path in zip(digests, paths, strict=True)}
        start = time.perf_counter()
        for _ in extract_grids(
            encoder, files, batch_size=BATCH, device=device, precision=precision, workers=2
        ):
            pass
        from_files = FILES / (time.perf_counter() - start)
    note = "JPEG files of 500 x 375, read and resized in parallel; the floor is the network alone"
    return [
        network,
        Figure("grids from files", from_files, "images/s", floor=BATCH / mine, note=note),
    ]


def smooth(generator: np.random.Generator) -> np.ndarray:
    """A smooth picture: 14 x 14 pixels of noise, enlarged to 224 x 224."""
    noise = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC))


def write_photographs(folder: Path, count: int, distinct: int = 50) -> list[Path]:
    """JPEG files of 500 x 375 pixels, of which only some are distinct pictures."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(min(distinct, count)):
        file = BytesIO()
        Image.fromarray(smooth(generator)).resize((500, 375)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(made[number % len(made)])
    return paths


def write_splits(root: Path, names: Sequence[str], counts: Sequence[int]) -> None:
    """Flickr8k's lists of the images of each split: the first ones train, then dev, then test."""
    left = iter(names)
    for split, count in zip(("train", "dev", "test"), counts, strict=True):
        lines = "".join(f"{name}\n" for name in islice(left, count))
        (root / f"Flickr_8k.{split}Images.txt").write_text(lines)
