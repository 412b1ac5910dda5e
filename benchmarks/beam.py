"""Beam search with 5 beams and 12 words, compared with a tutorial's of one image at a time."""

import torch
from torch import Tensor

from benchmarks.measure import Figure, matrix_rate, native_precision, time_in_turns
from benchmarks.textbook import Textbook
from benchmarks.training import CHANNELS, LOCATIONS, SIZE, decoder_of, multiply_adds
from captioning.decoding import Beam
from captioning.models.decoders.base import Decoder
from captioning.support.memory import keep_freed_memory

IMAGES, WIDTH, LENGTH, BATCH = 240, 5, 12, 80

PLAIN = {"allow_unknown": True, "allow_repeats": True, "no_repeat_ngram": 0, "min_length": 0}
"""Options that switch off this project's decoding rules, which the textbook does not have."""


def decode(decoder: Decoder, grid: Tensor, precision: str) -> None:
    """Decode images by beam search with all decoding rules on, as ``eval.py`` does."""
    search = Beam(beam_size=WIDTH, max_length=LENGTH)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for batch in torch.split(grid, BATCH):
            search(decoder, batch)


def run(rounds: int) -> list[Figure]:
    """Time beam search with all decoding rules on.

    The weights are random, so that nearly every caption has the full 12 words.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    decoder = decoder_of().eval()
    textbook = Textbook(decoder).eval()
    grid = torch.randn(IMAGES, LOCATIONS, CHANNELS).relu()
    precision = native_precision()
    few = 4  # images that the textbook captions in a round

    def theirs() -> None:
        for image in grid[:few]:
            textbook.beam(image, WIDTH, LENGTH)

    mine, other, ratio = time_in_turns(
        lambda: decode(decoder, grid, precision), theirs, rounds=rounds
    )
    needed = 2 * multiply_adds(WIDTH * LENGTH, images=1, size=SIZE)
    rate = matrix_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    return [
        Figure(
            f"beam search, {precision}",
            IMAGES / mine,
            "images/s",
            few / other,
            ratio * IMAGES / few,
            rate / needed,
            goal_ratio=32 if precision == "bf16" else None,
        )
    ]
