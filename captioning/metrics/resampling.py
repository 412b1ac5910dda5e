"""The scores of many systems on the same resamples of their images.

A resample is a number for each image: how often it was drawn. With the statistics of each image,
the scores of a thousand resamples are one matrix product.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from captioning.metrics.metric import Samples
from captioning.metrics.statistics import Statistics

# Numbers in a block of resamples: 8 MiB as float64, and as much for the drawn indices.
_BLOCK_VALUES = 1 << 20

# Systems whose statistics are summed by one product: 2 MiB of them for Flickr8k's test split.
_SYSTEMS_AT_ONCE = 8


def scores_of_resamples(systems: Sequence[Statistics], resamples: int, seed: int) -> list[Samples]:
    """The scores of each system on the same resamples.

    Args:
        systems: statistics of each, of the same images in the same order; at least one.
        resamples: how many to draw.
        seed: equal seeds draw the same resamples of as many images.
    """
    columns = [system.columns() for system in systems]
    blocks: list[list[Samples]] = []
    for counts in _draws(len(systems[0].images), resamples, seed):
        sizes, block = counts.sum(axis=1), []
        # One product for several systems: products of few columns are limited by memory.
        for start in range(0, len(systems), _SYSTEMS_AT_ONCE):
            some = slice(start, start + _SYSTEMS_AT_ONCE)
            sums = counts @ np.hstack(columns[some])
            ends = np.cumsum([part.shape[1] for part in columns[some]])
            parts = np.split(sums, ends[:-1], axis=1)
            block += [
                system.scores(part, sizes)
                for system, part in zip(systems[some], parts, strict=True)
            ]
        blocks.append(block)
    return [
        {score: np.concatenate([block[place][score] for block in blocks]) for score in samples}
        for place, samples in enumerate(blocks[0])
    ]


def _draws(
    images: int, resamples: int, seed: int
) -> Iterable[Float[np.ndarray, "resamples images"]]:
    """Resamples as counts of the images, in blocks whose size does not change the counts."""
    if images * resamples <= _BLOCK_VALUES:  # as for 1,000 resamples of Flickr8k's test split
        return _one_block(images, resamples, seed)
    return _blocks(images, resamples, seed)


@lru_cache(maxsize=1)
def _one_block(
    images: int, resamples: int, seed: int
) -> tuple[Float[np.ndarray, "resamples images"], ...]:
    # A leaderboard compares hundreds of runs on the same resamples.
    return tuple(_blocks(images, resamples, seed))


def _blocks(
    images: int, resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "resamples images"]]:
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // images)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(images, size=(rows, images))
        drawn += images * np.arange(rows)[:, None]  # give each row its own range of numbers
        counts = np.bincount(drawn.ravel(), minlength=rows * images)
        yield counts.reshape(rows, images).astype(np.float64)
