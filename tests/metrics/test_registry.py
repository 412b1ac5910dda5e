"""The registry of metrics agrees with what the metrics compute, and is quick to import."""

import subprocess
import sys

import pytest

from captioning.metrics import CaptionScorer, registry, score_captions
from captioning.metrics.metric import Metric
from captioning.metrics.registry import (
    BUILT_IN,
    STANDARD,
    STANDARD_SCORES,
    ordered_scores,
    register,
)
from captioning.support.errors import CaptioningError

REFERENCES = {"1": ["A dog runs .", "The dog is running ."], "2": ["Two men sit there ."]}


def test_declared_scores_and_statistics_are_those_that_are_computed() -> None:
    scores = CaptionScorer(REFERENCES).score({"1": "a dog runs", "2": "two men sit there"})
    assert tuple(scores.corpus) == STANDARD_SCORES
    assert {name: table.shape for name, table in scores.statistics.tables.items()} == {
        metric.name: (2, metric.statistics) for metric in STANDARD
    }
    assert list(BUILT_IN) == [
        *STANDARD_SCORES, "SPICE", "SPIDEr", "CLIPScore", "RefCLIPScore", "PAC-S", "RefPAC-S",
    ]  # fmt: skip


def test_perfect_captions_reach_the_declared_highest_value() -> None:
    words = "abcdefghijklmnop"
    same = {c: " ".join(f"{c}{d}x" for d in words[:8]) for c in words}
    scores = score_captions(same, {image: [text] for image, text in same.items()})
    for name, score in scores.corpus.items():
        assert score == pytest.approx(BUILT_IN[name].highest, rel=0.01), name


def test_tables_have_the_standard_scores_then_optional_ones_then_ones_own() -> None:
    assert ordered_scores(["zeta", "CIDEr", "CLIPScore", "alpha", "SPICE"]) == [
        *STANDARD_SCORES, "SPICE", "CLIPScore", "alpha", "zeta",
    ]  # fmt: skip


def test_two_metrics_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", {})
    for _ in range(2):
        register(Metric("mine", ("mine",), highest=2.0))
    assert registry.find("mine") == Metric("mine", ("mine",), highest=2.0)
    with pytest.raises(CaptioningError, match="two metrics are called mine"):
        register(Metric("mine", ("mine",), highest=3.0))


def test_scoring_and_the_leaderboard_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from captioning.metrics import score_captions, METRICS, intervals\n"
        "import captioning.apps.leaderboard; assert 'torch' not in sys.modules\n"
        "from captioning.metrics import CaptionScores; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
