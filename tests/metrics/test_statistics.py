"""Statistics of images against really scoring the images that are drawn."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from scored_corpora import ALL, Case, made_up_corpus, whole

from captioning.metrics import Statistics
from captioning.metrics.torchmetric import CaptionScores
from captioning.support.errors import CaptioningError


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
    for metric, table in statistics.tables.items():
        assert np.array_equal(read.tables[metric], table)
    tables = json.loads(written)["tables"]
    assert {metric: len(rows[0]) for metric, rows in tables.items()} == {
        "BLEU": 10,
        "METEOR": 23,
        "ROUGE-L": 1,
        "CIDEr": 1,
    }
    assert all(type(number) is int for number in tables["BLEU"][0] + tables["METEOR"][0])
    assert Statistics.from_json(json.loads(written), ["CIDEr", "SPICE"]).tables.keys() == {"CIDEr"}
    assert read.references == statistics.references
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
