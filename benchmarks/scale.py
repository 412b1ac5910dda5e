"""The cost against captions, vocabulary, locations, attention dimension and beam size."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure as Drawing

from benchmarks.beam import LENGTH
from benchmarks.measure import native_precision, seconds
from benchmarks.training import (
    CAPTIONS,
    IMAGES,
    LOCATIONS,
    SIZE,
    WORDS,
    Step,
    batch_of,
    decoder_of,
    multiply_adds,
)
from captioning.decoding import Beam


class Series(NamedTuple):
    """Seconds against one size, and the multiply-adds that each needs."""

    name: str
    sizes: Sequence[int]
    seconds: list[float]
    multiply_adds: list[float]


def training(name: str, sizes: Sequence[int], rounds: int) -> Series:
    """A training step at each size, the others at their defaults."""
    taken, needed = [], []
    for size in sizes:
        values = {
            "captions": CAPTIONS, "words": WORDS, "locations": LOCATIONS, "attention_dim": SIZE,
        } | {name: size}  # fmt: skip
        of_model = {key: values[key] for key in ("words", "attention_dim")}
        of_batch = {key: values[key] for key in ("captions", "words", "locations")}
        batch = batch_of(torch.Generator().manual_seed(0), **of_batch)
        step = Step(decoder_of(**of_model), native_precision())
        taken.append(fastest(lambda step=step, batch=batch: step(*batch), rounds))
        tokens = int((batch[1][..., 1:] != 0).sum())
        shapes: dict[str, Any] = of_model | {"locations": values["locations"]}
        needed.append(3 * multiply_adds(tokens, images=IMAGES, **shapes))
    return Series(name, sizes, taken, needed)


def beams(sizes: Sequence[int], rounds: int) -> Series:
    """Decoding a batch at each beam size."""
    torch.manual_seed(0)
    decoder = decoder_of().eval()
    grid, _ = batch_of(torch.Generator().manual_seed(0))
    enabled = native_precision() == "bf16"

    def decode(width: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            Beam(beam_size=width, max_length=LENGTH)(decoder, grid)

    taken = [fastest(lambda width=width: decode(width), rounds) for width in sizes]
    needed = [multiply_adds(IMAGES * LENGTH * width, images=IMAGES) for width in sizes]
    return Series("beam_size", sizes, taken, needed)


def fastest(work: Callable[[], object], rounds: int) -> float:
    """The least of some times, after one that does not count."""
    work()
    return min(seconds(work) for _ in range(max(3, rounds)))


def draw(rounds: int, path: Path) -> list[dict[str, Any]]:
    """Measure all series, and draw each beside what its arithmetic predicts.

    The prediction is the multiply-adds at the one rate that makes the middle size come out right.
    """
    series = [
        training("captions", [1, 2, 5, 10], rounds),
        training("words", [1000, 2600, 10_000, 30_000], rounds),
        training("locations", [49, 98, 196, 392], rounds),
        training("attention_dim", [64, 128, 256, 512, 1024], rounds),
        beams([1, 2, 3, 5, 10], rounds),
    ]
    drawing = Drawing(figsize=(15, 3.2), layout="constrained")
    for axes, one in zip(drawing.subplots(1, len(series)), series, strict=True):
        middle = len(one.sizes) // 2
        rate = one.multiply_adds[middle] / one.seconds[middle]
        axes.plot(one.sizes, [1e3 * t for t in one.seconds], "o-", label="measured")
        predicted = [1e3 * n / rate for n in one.multiply_adds]
        axes.plot(one.sizes, predicted, "--", color="0.5", label="by multiply-adds")
        axes.set(xlabel=one.name, ylim=(0, None), xlim=(0, None))
    first = drawing.axes[0]
    first.set_ylabel("ms a step, or a batch of 16")
    first.legend()
    drawing.savefig(path, dpi=110)
    return [one._asdict() for one in series]
