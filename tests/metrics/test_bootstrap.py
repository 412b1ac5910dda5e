"""Intervals and comparisons against really scoring the resampled images, and against theory."""

import math
from typing import Any

import numpy as np
import pytest
from scored_corpora import ALL, Case, made_up_corpus, whole

from captioning.metrics import (
    CaptionScorer,
    Paired,
    Scores,
    Statistics,
    compare,
    intervals,
    paired,
    score_captions,
)
from captioning.support.errors import CaptioningError


def test_intervals_are_the_quantiles_of_the_resamples_scores(made_up: Case) -> None:
    images = list(made_up.references)
    # Sorted by id: an interval must not depend on the order in which a file holds the images.
    order = sorted(range(len(images)), key=lambda place: images[place])
    draws = np.random.default_rng(7).integers(len(images), size=(30, len(images))).tolist()
    scores = [made_up.scored_again([order[place] for place in drawn]) for drawn in draws]
    statistics = made_up.scores.statistics
    found = intervals(statistics, resamples=30, seed=7, level=0.8)
    assert list(found) == ALL
    for name, ends in found.items():
        values = np.sort([score[name] for score in scores])
        # Position 0.1 x 29 = 2.9 from either end, between the third and the fourth value.
        low = values[2] + 0.9 * (values[3] - values[2])
        high = values[-3] + 0.9 * (values[-4] - values[-3])
        assert ends == pytest.approx((low, high), rel=1e-12)
    assert found == intervals(statistics.select(images[::-1]), 30, seed=7, level=0.8)


def mean_of(values: Any, metric: str = "CIDEr") -> Statistics:
    """Statistics of images whose scores are the values, of a corpus score that is their mean."""
    table = np.asarray(values, dtype=float)[:, None]
    return Statistics(tuple(f"{i:05}.jpg" for i in range(len(table))), {metric: table})


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        (low, high) = intervals(mean_of(rng.normal(3.0, 2.0, size=200)), 500, seed=trial)["CIDEr"]
        assert high - low == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(200), rel=0.35)
        inside += low <= 3.0 <= high
    assert 0.92 <= inside / 300 <= 0.98


def test_of_two_equal_systems_few_differ_significantly_and_the_interval_agrees() -> None:
    rng = np.random.default_rng(0)
    significant = 0
    for trial in range(300):
        image = rng.normal(3.0, 5.0, size=200)  # what makes an image easy for both
        first, second = (mean_of(image + rng.normal(size=200)) for _ in range(2))
        found = paired(first, second, 500, seed=trial)["CIDEr"]
        significant += found.p_value < 0.05
        if abs(found.p_value - 0.05) > 0.01:
            assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
    assert 0.02 <= significant / 300 <= 0.08


@pytest.mark.parametrize("sign", [1, -1])
def test_the_p_value_is_that_of_the_paired_z_test(sign: int) -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(3.0, 5.0, size=(2, 1)) + rng.normal(size=(2, 400))
    second += first.mean() - second.mean() - sign * 0.12
    z = 0.12 / (np.std(first - second) / math.sqrt(400))
    found = paired(mean_of(first), mean_of(second), resamples=20_000)["CIDEr"]
    assert found.difference == pytest.approx(sign * 0.12)
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert 0.02 < found.p_value < 0.3  # or the comparison would say nothing


def test_a_system_against_itself_shows_no_difference(made_up: Case) -> None:
    statistics = made_up.scores.statistics
    found = paired(statistics, statistics.select(statistics.images[::-1]))
    assert list(found) == ALL
    assert set(found.values()) == {Paired(0.0, 0.0, 0.0, p_value=1.0)}


def test_resamples_in_which_both_score_the_same_count_against_a_difference() -> None:
    """One image of 40 differs: resamples without it, 0.975^40 = 0.363 of them, are ties."""
    first = np.full(40, 0.5)
    second = first.copy()
    second[7] += 0.2
    for one, other in ((first, second), (second, first)):
        found = paired(mean_of(one), mean_of(other), resamples=20_000)["CIDEr"]
        assert found.p_value == pytest.approx(2 * (1 - 1 / 40) ** 40, abs=0.02)
        assert found.low <= 0 <= found.high


@pytest.mark.parametrize("images", [29, 30])
def test_there_is_no_p_value_for_fewer_than_thirty_images(images: int) -> None:
    values = np.random.default_rng(0).random(images)
    found = paired(mean_of(values + 1), mean_of(values))["CIDEr"]
    assert found.difference == pytest.approx(1)
    assert found.p_value == (None if images < 30 else pytest.approx(2 / 1001))


def test_a_clearly_better_system_is_significantly_better(people: Case) -> None:
    images = list(people.references)
    others = dict(zip(images, images[1:] + images[:1], strict=True))
    right = people.scores
    wrong = people.scorer.score({i: people.hypotheses[other] for i, other in others.items()})
    better = paired(right.statistics, wrong.statistics)
    worse = paired(wrong.statistics, right.statistics)
    for name in ALL:
        assert better[name].p_value == worse[name].p_value == pytest.approx(2 / 1001)
        assert 0 < better[name].low < better[name].difference < better[name].high
        assert better[name].difference == pytest.approx(right.corpus[name] - wrong.corpus[name])
        assert worse[name].difference == -better[name].difference
        assert (worse[name].low, worse[name].high) == pytest.approx(
            (-better[name].high, -better[name].low)
        )


def test_pairing_finds_what_the_intervals_of_each_alone_would_hide() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(3.0, 5.0, size=200)
    first, second = mean_of(image + 0.3 + 0.1 * rng.normal(size=200)), mean_of(image)
    (low, _), (_, high) = intervals(first)["CIDEr"], intervals(second)["CIDEr"]
    assert low < high
    assert paired(first, second)["CIDEr"].p_value < 0.01


def test_the_same_seed_gives_the_same_and_another_seed_another() -> None:
    rng = np.random.default_rng(0)
    first, second = mean_of(rng.normal(size=50)), mean_of(rng.normal(size=50))
    assert intervals(first) == intervals(first, seed=0)
    assert intervals(first) != intervals(first, seed=1)
    assert paired(first, second) == paired(first, second, seed=0)
    assert paired(first, second) != paired(first, second, seed=1)


def test_one_image_has_scores_but_no_interval_and_no_comparison() -> None:
    scores = score_captions({"x": "a dog runs"}, {"x": ["The dog runs .", "a cat"]})
    assert whole(scores.statistics) == pytest.approx(scores.corpus, rel=1e-12)
    assert intervals(scores.statistics) == {}
    assert paired(scores.statistics, scores.statistics) == {}


def test_captions_without_a_word_score_nothing_for_sure(made_up: Case) -> None:
    statistics = made_up.scorer.score(dict.fromkeys(made_up.references, "")).statistics
    assert intervals(statistics) == dict.fromkeys(ALL, (0.0, 0.0))
    assert {found.p_value for found in paired(statistics, statistics).values()} == {1.0}


def test_only_the_metrics_asked_for_have_intervals(made_up: Case) -> None:
    scorers = [CaptionScorer(made_up.references, some) for some in (["ROUGE-L", "BLEU"], ["BLEU"])]
    some, other = (scorer.score(made_up.hypotheses).statistics for scorer in scorers)
    assert list(intervals(some)) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]
    assert list(paired(some, other)) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]


def test_scores_that_were_not_taken_from_captions_have_none() -> None:
    assert intervals(Scores({"CIDEr": 1.0}, {"x": {}}).statistics) == {}


def test_references_are_told_apart_by_their_words_not_by_their_order() -> None:
    hypotheses, references = made_up_corpus(6)

    def scored(references: dict[str, list[str]]) -> Statistics:
        return CaptionScorer(references, ["ROUGE-L"]).score(hypotheses).statistics

    turned = {image: captions[::-1] for image, captions in reversed(references.items())}
    assert paired(scored(references), scored(turned))["ROUGE-L"].difference == 0
    fewer = {**references, "4.jpg": references["4.jpg"][1:]}
    with pytest.raises(CaptioningError, match="against different references"):
        paired(scored(references), scored(fewer))


def test_a_system_of_several_runs_is_compared_by_their_mean() -> None:
    rng = np.random.default_rng(0)
    one, two, other = (mean_of(list(rng.normal(size=30))) for _ in range(3))
    (name,) = one.tables
    mean = mean_of(list((one.tables[name] + two.tables[name])[:, 0] / 2))
    found, alone, itself = compare([[one, two], [one], [other]], [other])
    assert vars(found[name]) == pytest.approx(vars(paired(mean, other)[name]))
    assert alone == paired(one, other)
    assert itself[name].difference == itself[name].low == itself[name].high == 0
    assert itself[name].p_value == 1


def test_bad_input_is_refused() -> None:
    some, others = mean_of([1.0, 2.0, 3.0]), mean_of([1.0, 2.0])
    with pytest.raises(CaptioningError, match=r"different images \(1 .* '00002\.jpg'\)"):
        paired(some, others)
    with pytest.raises(CaptioningError, match="resamples=0"):
        intervals(some, resamples=0)
    with pytest.raises(CaptioningError, match=r"level=95\.0"):
        paired(some, some, level=95.0)
