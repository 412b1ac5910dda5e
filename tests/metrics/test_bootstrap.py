"""Statistics against really scoring the resampled images, and intervals against theory."""

import json
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from captioning.metrics import (
    CaptionScorer,
    Paired,
    Scores,
    Statistics,
    bootstrap,
    compare,
    intervals,
    paired,
    score_captions,
)
from captioning.metrics.meteor import meteor_scores
from captioning.metrics.tokenizer import tokenize
from captioning.metrics.torchmetric import CaptionScores
from captioning.support.errors import CaptioningError

ALL = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]


@dataclass
class Case:
    """A corpus, its scores, and its tokens as the original tools take them."""

    hypotheses: dict[str, str]
    references: dict[str, list[str]]

    def __post_init__(self) -> None:
        self.scorer = CaptionScorer(self.references)
        self.scores = self.scorer.score(self.hypotheses)
        self.captions = tokenize([self.hypotheses[image] for image in self.references])
        every = [caption for captions in self.references.values() for caption in captions]
        tokens = iter(tokenize(every, remember=True))
        self.tokens = [[next(tokens) for _ in captions] for captions in self.references.values()]

    def scored_again(self, drawn: list[int]) -> dict[str, float]:
        """The original tools' scores of images that were drawn, as so many images."""
        gts = {place: self.tokens[image] for place, image in enumerate(drawn)}
        res = {place: [self.captions[image]] for place, image in enumerate(drawn)}
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        scores = {f"BLEU-{n}": float(score) for n, score in enumerate(bleu, start=1)}
        scores["METEOR"] = meteor_scores([res[place][0] for place in gts], list(gts.values()))[0]
        scores["ROUGE-L"] = float(Rouge().compute_score(gts, res)[0])
        cider = cider_scorer.CiderScorer()
        cider.crefs = [cider_scorer.cook_refs(captions) for captions in self.tokens]
        cider.compute_doc_freq()  # of the whole corpus, and no others hereafter
        cider.crefs = [cider_scorer.cook_refs(gts[place]) for place in gts]
        cider.ctest = [cider_scorer.cook_test(res[place][0]) for place in gts]
        scores["CIDEr"] = float(np.mean(cider.compute_cider()))
        return scores


def made_up_corpus(images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions of few words, so that many n-grams are shared; empty ones and whole matches too."""
    rng = random.Random(0)
    words = ["a", "the", "on", "dog", "dogs", "puppy", "man", "runs", "running", "big", "field"]
    references = {
        f"{i}.jpg": [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(i % 5 + 1)]
        for i in range(images)
    }
    kinds: list[Callable[[list[str]], str]] = [
        lambda captions: captions[-1],
        lambda captions: "",
        lambda captions: " ".join(reversed(captions[0].split())),
        lambda captions: " ".join(rng.choices(words, k=rng.randint(1, 12))),
        lambda captions: captions[0].replace("dog", "puppy") + " today",
    ]
    hypotheses = {
        image: kinds[min(place % 7, 4)](captions)
        for place, (image, captions) in enumerate(references.items())
    }
    return hypotheses, references


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the corpora that the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made_up() -> Case:
    return Case(*made_up_corpus())


@pytest.fixture(scope="module")
def people(real_captions: dict[str, list[str]]) -> Case:
    """What one person wrote against what the others did, of 200 images.

    Of each fifth image the caption breaks off, and of each ninth it is among the references.
    """
    numbered = list(enumerate(real_captions.items()))
    return Case(
        {
            image: " ".join(c[0].split()[: 4 if place % 5 == 0 else None])
            for place, (image, c) in numbered
        },
        {image: c[0 if place % 9 == 0 else 1 :] for place, (image, c) in numbered},
    )


@pytest.fixture(params=["made up", "people"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(request.param.replace(" ", "_"))
    return found


def whole(statistics: Statistics) -> dict[str, float]:
    samples = statistics.corpus(np.ones((1, len(statistics.images))))
    return {name: float(sample[0]) for name, sample in samples.items()}


def test_a_row_of_ones_gives_the_scores_of_the_corpus(case: Case) -> None:
    statistics = case.scores.statistics
    assert list(statistics.images) == list(case.references)
    assert list(whole(statistics)) == list(case.scores.corpus) == ALL
    assert whole(statistics) == pytest.approx(case.scores.corpus, rel=1e-12, abs=1e-15)


def test_a_row_of_one_image_gives_the_scores_of_that_image(case: Case) -> None:
    samples = case.scores.statistics.corpus(np.eye(len(case.references)))
    for place, expected in enumerate(case.scores.per_image.values()):
        found = {name: float(sample[place]) for name, sample in samples.items()}
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_resamples_score_as_if_each_drawing_were_an_image_of_its_own(case: Case) -> None:
    images = len(case.references)
    rng = random.Random(1)
    draws = [rng.choices(range(images), k=images) for _ in range(5)]
    counts = np.array([np.bincount(drawn, minlength=images) for drawn in draws], dtype=float)
    samples = case.scores.statistics.corpus(counts)
    for row, drawn in enumerate(draws):
        found = {name: float(sample[row]) for name, sample in samples.items()}
        assert found == pytest.approx(case.scored_again(drawn), rel=1e-12, abs=1e-15)


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


def test_the_size_of_a_block_changes_nothing(
    made_up: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made_up.scores.statistics
    rolled = {metric: np.roll(table, 1, axis=0) for metric, table in first.tables.items()}
    second = Statistics(first.images, rolled, first.references)
    at_once = intervals(first), paired(first, second)
    monkeypatch.setattr(bootstrap, "_BLOCK_VALUES", 7 * 40 + 3)
    by_blocks = intervals(first), paired(first, second)
    for name in ALL:
        assert by_blocks[0][name] == pytest.approx(at_once[0][name], rel=1e-12)
        assert vars(by_blocks[1][name]) == pytest.approx(vars(at_once[1][name]), abs=1e-12)


def test_memory_does_not_grow_with_the_resamples() -> None:
    statistics = mean_of(np.random.default_rng(0).normal(size=20_000))
    tracemalloc.start()
    try:
        intervals(statistics, resamples=400)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20  # all at once they would take 64 MiB, and their indices as much


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


def test_validation_gives_statistics_of_the_images_seen() -> None:
    hypotheses, references = made_up_corpus()
    metric = CaptionScores(references, ["BLEU", "ROUGE-L", "CIDEr"])
    seen = list(references)[5:30]
    metric.update(seen, [hypotheses[image] for image in seen])
    computed = {name: score.item() for name, score in metric.compute().items()}
    assert list(metric.scores().statistics.images) == seen
    assert whole(metric.scores().statistics) == pytest.approx(computed, rel=1e-12)


def test_statistics_survive_json_as_plain_numbers(case: Case) -> None:
    statistics = case.scores.statistics
    written = json.dumps(statistics.to_json(), allow_nan=False)
    read = Statistics.from_json(json.loads(written))
    assert read.images == statistics.images
    assert intervals(read) == intervals(statistics)
    tables = json.loads(written)["tables"]
    assert {metric: len(rows[0]) for metric, rows in tables.items()} == {
        "BLEU": 10,
        "METEOR": 23,
        "ROUGE-L": 1,
        "CIDEr": 1,
    }
    assert all(type(number) is int for number in tables["BLEU"][0] + tables["METEOR"][0])
    assert Statistics.from_json(json.loads(written), ["CIDEr", "SPICE"]).tables.keys() == {"CIDEr"}
    assert paired(statistics, read)["BLEU-4"].difference == 0  # the references are the same
    nothing = Statistics()
    assert Statistics.from_json(nothing.to_json()).images == ()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"ROUGE-L": [[0.5]]}, "'ROUGE-L' must be 1 finite numbers for each of 2 images"),
        ({"ROUGE-L": [[0.5], [0.5, 1]]}, "'ROUGE-L' must be 1 finite"),
        ({"WMD": [[0.5, 1], [0.5, 1]]}, "'WMD' must be 1 finite"),
        ({"BLEU": [[1] * 10, [1] * 9 + ["1"]]}, "'BLEU' must be 10 finite"),
        ({"CIDEr": [[1], [math.nan]]}, "'CIDEr' must be 1 finite"),
        ({"CIDEr": [[1], [None]]}, "'CIDEr' must be 1 finite"),
        ({"CIDEr": [[True], [False]]}, "'CIDEr' must be 1 finite"),
        ({"CIDEr": [1, 2]}, "'CIDEr' must be 1 finite"),
        ({"CIDEr": 3.0}, "'CIDEr' must be 1 finite"),
        ([], "not statistics"),
    ],
)
def test_tables_of_anything_else_are_refused_by_name(tables: Any, message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        Statistics.from_json({"references": "", "images": ["1.jpg", "2.jpg"], "tables": tables})


@pytest.mark.parametrize(
    "written",
    [
        None,
        {"1.jpg": {"CIDEr": [1.0]}},
        {"references": "", "images": ["1.jpg", "1.jpg"], "tables": {}},
        {"references": "", "images": [1], "tables": {}},
        {"references": None, "images": [], "tables": {}},
    ],
)
def test_what_is_no_statistics_at_all_is_refused(written: object) -> None:
    with pytest.raises(CaptioningError, match="not statistics"):
        Statistics.from_json(written)


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
