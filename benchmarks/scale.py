"""Time as a function of captions, vocabulary, locations, attention dimension and beam size."""

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
from captioning.support.special_tokens import PAD


class Series(NamedTuple):
    """Measured seconds and needed multiply-adds as functions of one size."""

    name: str
    sizes: Sequence[int]
    seconds: list[float]
    multiply_adds: list[float]


def training(name: str, sizes: Sequence[int], rounds: int) -> Series:
    """Time a training step for each value of one size; all other sizes keep their defaults."""
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
        tokens = int((batch[1][..., 1:] != PAD).sum())
        shapes: dict[str, Any] = of_model | {"locations": values["locations"]}
        needed.append(3 * multiply_adds(tokens, images=IMAGES, **shapes))
    return Series(name, sizes, taken, needed)


def beams(sizes: Sequence[int], rounds: int) -> Series:
    """Time decoding a batch for each beam size."""
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
    """The shortest time of at least three calls, after one warm-up call."""
    work()
    return min(seconds(work) for _ in range(max(3, rounds)))


def draw(rounds: int, path: Path) -> list[dict[str, Any]]:
    """Measure all series, and plot each with the time that its multiply-adds predict.

    The prediction assumes a constant rate of multiply-adds, measured at the middle size.
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
