"""The references against each other, beside the scores of rounds written out."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from captioning.evaluation.humans import rounds, score_humans
from captioning.metrics.caption_scorer import score_captions
from captioning.reporting.leaderboard import to_markdown
from captioning.reporting.ranking import rank
from captioning.reporting.results import read_results
from captioning.reporting.runs import find_runs
from captioning.support.errors import CaptioningError

REFERENCES = {
    "1": ["a dog runs over grass", "the dog is running", "a brown dog on the"],
    "2": ["two men sit on a bench", "two people are sitting", "men sit"],
    "3": ["a red ball", "a ball that is red lies there", "the ball", "one more red ball"],
}


def settings(references: Path) -> dict[str, object]:
    return {
        "captions": "humans", "references": str(references), "split": "test",
        "data": {"name": "flickr8k"},
    }  # fmt: skip


def test_the_mean_of_rounds_written_out(tmp_path: Path) -> None:
    path = tmp_path / "references.json"
    path.write_text(json.dumps(REFERENCES))
    found = score_humans(settings(path), tmp_path, "command")["test"]
    expected = [
        score_captions(
            {image: texts[place] for image, texts in REFERENCES.items()},
            {
                image: [text for n, text in enumerate(texts) if n != place]
                for image, texts in REFERENCES.items()
            },
        ).corpus
        for place in range(3)
    ]
    assert found == pytest.approx(
        {name: fmean(scores[name] for scores in expected) for name in expected[0]}
    )
    written = read_results(tmp_path / "results.json")
    assert written.name == "humans"
    assert written.leave_one_out == 3
    assert written.language["test"].bad_endings == pytest.approx(1 / 9)
    low, high = written.intervals["test"]["BLEU-1"]
    assert low <= found["BLEU-1"] <= high

    # Captions scored on all references are in a table of their own.
    system = read_results(tmp_path / "results.json").model_copy(
        update={
            "name": "system",
            "leave_one_out": None,
            "data": written.data.model_copy(update={"references": {"test": "all"}}),
        }
    )
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "results.json").write_text(system.model_dump_json(by_alias=True))
    runs, errors = find_runs([tmp_path])
    assert not errors
    board = rank(runs, "test")
    assert [len(ranking.rows) for ranking in board.rankings] == [1, 1]
    page = to_markdown(board)
    assert "because runs differ in references" in page
    assert "humans: each reference caption is scored against the others" in page


def test_an_image_with_one_reference_is_named() -> None:
    with pytest.raises(CaptioningError, match=r"captions=humans needs two references.* 2 has 1"):
        rounds({"1": ["a", "b"], "2": ["c"]})


def test_each_caption_meets_all_others() -> None:
    found = rounds(REFERENCES)
    assert len(found) == 3
    for said, others in found:
        for image, texts in REFERENCES.items():
            assert sorted([said[image], *others[image]]) == sorted(texts)
