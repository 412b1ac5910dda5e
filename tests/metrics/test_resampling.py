"""The scores of resamples: blocks, memory, and many systems at once."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scored_corpora import ALL, Case

from captioning.metrics import Statistics, bootstrap, compare, intervals, paired, resampling


def test_the_size_of_a_block_changes_nothing(
    made_up: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_up.scores.statistics
    rolled = {metric: np.roll(table, 1, axis=0) for metric, table in first.tables.items()}
    second = Statistics(first.images, rolled, first.references)
    at_once = intervals(first), paired(first, second)
    monkeypatch.setattr(resampling, "_BLOCK_VALUES", 7 * 40 + 3)
    by_blocks = intervals(first), paired(first, second)
    for name in ALL:
        assert by_blocks[0][name] == pytest.approx(at_once[0][name], rel=1e-12)
        assert vars(by_blocks[1][name]) == pytest.approx(vars(at_once[1][name]), abs=1e-12)


def test_memory_does_not_grow_with_the_resamples() -> None:
    images = tuple(f"{number:05}.jpg" for number in range(20_000))
    table = np.random.default_rng(0).normal(size=(20_000, 1))
    statistics = Statistics(images, {"CIDEr": table})
    tracemalloc.start()
    try:
        intervals(statistics, resamples=400)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20  # all at once they would take 64 MiB, and their indices as much


@pytest.mark.parametrize("images", [40, 3000])  # one block of resamples, and several
def test_many_systems_at_once_have_the_samples_that_each_has_alone(images: int) -> None:
    rng = np.random.default_rng(0)
    names = tuple(str(number) for number in range(images))

    def made_up() -> Statistics:
        bleu = np.sort(rng.integers(1, 9, (images, 10)), axis=1)[:, ::-1].astype(float)
        tables = {
            "BLEU": bleu,
            "ROUGE-L": rng.random((images, 1)),
            "CIDEr": rng.random((images, 1)),
        }
        return Statistics(names, tables, "the same")

    systems = [[made_up()] for _ in range(9)] + [[made_up(), made_up()]]
    together = bootstrap.resampled(systems, resamples=400)
    for system, found in zip(systems, together, strict=True):
        alone = bootstrap.resampled([system], resamples=400)[0]
        for score, samples in alone.samples.items():
            np.testing.assert_allclose(found.samples[score], samples, rtol=1e-12)
        assert found.intervals() == intervals_of_mean(system)
    whole = together[0].minus(together[9])
    assert whole == compare([systems[0]], systems[9], resamples=400)[0]


def intervals_of_mean(system: list[Statistics]) -> dict[str, Any]:
    return {
        score: pytest.approx(ends, rel=1e-12)
        for score, ends in bootstrap.mean_intervals(system, resamples=400).items()
    }
