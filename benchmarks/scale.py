"""Time as a function of captions, vocabulary, locations, dimensions and beam size, by decoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure as Drawing

from benchmarks.beam import LENGTH
from benchmarks.measure import native_precision, seconds
from benchmarks.parts import decoders, step_of
from benchmarks.training import (
    CAPTIONS,
    IMAGES,
    LOCATIONS,
    SIZE,
    WORDS,
    batch_of,
    multiply_adds,
)
from captioning.decoding import Beam
from captioning.support.special_tokens import PAD

SIZES = {
    "captions": (1, 3, 5, 10),
    "vocabulary": (1000, 2600, 10_000, 30_000),
    "locations": (49, 98, 196, 392),
    "dimensions": (128, 256, 512, 1024),
    "beam size": (1, 3, 5, 10),
}
"""The sizes of each series. The dimensions are those of states, embeddings and attention."""

DEFAULTS = {
    "captions": CAPTIONS, "vocabulary": WORDS, "locations": LOCATIONS, "dimensions": SIZE,
}  # fmt: skip

PREDICTED = "attn_lstm"  # the decoder whose multiply-adds are known


class Series(NamedTuple):
    """Measured seconds of a decoder as a function of one size.

    ``multiply_adds`` are the needed ones, if they are known.
    """

    name: str
    decoder: str
    sizes: Sequence[int]
    seconds: list[float]
    multiply_adds: list[float]


def training(name: str, sizes: Sequence[int], rounds: int) -> list[Series]:
    """Time a training step of each decoder for each value of one size; the others stay."""
    taken: dict[str, list[float]] = {}
    needed = []
    for size in sizes:
        values = DEFAULTS | {name: size}
        words, units = values["vocabulary"], values["dimensions"]
        of_batch: dict[str, Any] = {
            "captions": values["captions"],
            "locations": values["locations"],
        }
        batch = batch_of(torch.Generator().manual_seed(0), words=words, **of_batch)
        for decoder, module in decoders(words, units).items():
            step = step_of(module)
            work = fastest(lambda step=step, batch=batch: step(*batch), rounds)
            taken.setdefault(decoder, []).append(work)
        tokens = int((batch[1][..., 1:] != PAD).sum())
        needed.append(
            3 * multiply_adds(
                tokens, images=IMAGES, locations=values["locations"], words=words, size=units,
                attention_dim=units,
            )
        )  # fmt: skip
    return series(name, sizes, taken, needed)


def beams(sizes: Sequence[int], rounds: int) -> list[Series]:
    """Time decoding a batch with each decoder for each beam size."""
    torch.manual_seed(0)
    grid, _ = batch_of(torch.Generator().manual_seed(0))
    enabled = native_precision() == "bf16"
    taken = {}
    for name, decoder in decoders().items():
        decoder.eval()

        def decode(width: int, decoder: Any = decoder) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                Beam(beam_size=width, max_length=LENGTH)(decoder, grid)

        taken[name] = [fastest(lambda width=width: decode(width), rounds) for width in sizes]
    needed = [multiply_adds(IMAGES * LENGTH * width, images=IMAGES) for width in sizes]
    return series("beam size", sizes, taken, needed)


def series(
    name: str, sizes: Sequence[int], taken: dict[str, list[float]], needed: list[float]
) -> list[Series]:
    """A series for each decoder."""
    return [
        Series(name, decoder, sizes, of_sizes, needed if decoder == PREDICTED else [])
        for decoder, of_sizes in taken.items()
    ]


def fastest(work: Callable[[], object], rounds: int) -> float:
    """The shortest time of at most three calls, after one warm-up call."""
    work()
    return min(seconds(work) for _ in range(min(3, rounds)))


def draw(rounds: int, path: Path) -> list[dict[str, Any]]:
    """Measure all series, and plot them."""
    found = {
        name: beams(sizes, rounds) if name == "beam size" else training(name, sizes, rounds)
        for name, sizes in SIZES.items()
    }
    plot(found).savefig(path, dpi=110)
    return [one._asdict() for of_size in found.values() for one in of_size]


def plot(found: dict[str, list[Series]]) -> Drawing:
    """A panel for each size, a line for each decoder, and the time that arithmetic predicts.

    The prediction assumes a constant rate of multiply-adds, measured at the middle size.
    """
    drawing = Drawing(figsize=(15, 3.6), layout="constrained")
    panels = drawing.subplots(1, len(found))
    for axes, (name, of_size) in zip(panels, found.items(), strict=True):
        for one in of_size:
            axes.plot(one.sizes, [1e3 * t for t in one.seconds], "o-", ms=4, label=one.decoder)
        for one in of_size:
            if one.multiply_adds:
                middle = len(one.sizes) // 2
                rate = one.multiply_adds[middle] / one.seconds[middle]
                predicted = [1e3 * n / rate for n in one.multiply_adds]
                label = f"{one.decoder}, by multiply-adds"
                axes.plot(one.sizes, predicted, "--", color="0.5", label=label)
        axes.set(xlabel=name, ylim=(0, None), xlim=(0, None))
        axes.set_title("decoding" if name == "beam size" else "training", fontsize=10)
    panels[0].set_ylabel("ms a step, or a batch of 16")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return drawing
