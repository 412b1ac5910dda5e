"""Which runs are ranked together, and what the heading of their table says."""

import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import ciders, rows_of, write_run

from captioning.apps.leaderboard import main
from captioning.reporting.ranking import rank
from captioning.reporting.runs import find_runs

LONG = {"fingerprint": "9af9fdf745ead635", "references": {"test": "cf00098f3eb4e7a6"}}


def headings(folder: Path) -> list[str]:
    """Those of the tables in ``leaderboard.md``, which are also those of the page."""
    found = re.findall(r"^## (.*)$", (folder / "leaderboard.md").read_text(), re.MULTILINE)
    page = (folder / "leaderboard.html").read_text()
    assert re.findall(r"<h2[^>]*>(.*)</h2>", page) == found
    return found


def test_a_heading_names_the_test_set_and_a_note_below_has_the_fingerprints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.5), images=1000, tokenization="ptb", **LONG)
    assert main([str(tmp_path)]) == 0
    assert headings(tmp_path) == ["flickr8k, test split, 1,000 images"]
    assert "9af9fdf7" not in capsys.readouterr().out
    note = (
        "Protocol: fingerprint of the data 9af9fdf7, fingerprint of the references cf00098f, "
        "tokeniser ptb."
    )
    for ending in ("md", "html"):
        page = (tmp_path / f"leaderboard.{ending}").read_text()
        assert note in page
        assert page.index("</table>" if ending == "html" else "| a |") < page.index(note)
    assert rows_of(tmp_path)[0]["fingerprint"] == LONG["fingerprint"]


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        ({}, {"fingerprint": "b" * 20}, [
            "fingerprint of the data 9af9fdf7", "fingerprint of the data bbbbbbbb",
        ]),
        ({}, {"references": {"test": "cf00098f and more"}}, [
            "fingerprint of the references cf00098f and more",
            "fingerprint of the references cf00098f3eb4e7a6",
        ]),
        ({}, {"references": {}}, [
            "fingerprint of the references unknown", "fingerprint of the references cf00098f",
        ]),
        ({"tokenization": "a"}, {"tokenization": "b"}, ["tokeniser a", "tokeniser b"]),
        ({"config": {"clip_weights": "y"}}, {"config": {"clip_weights": "x"}}, [
            "CLIPScore with x", "CLIPScore with y",
        ]),
    ],
)  # fmt: skip
def test_headings_of_one_test_set_say_in_what_the_tables_differ(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], parts: list[str]
) -> None:
    clip = {"scores": {"CLIPScore": 0.7}} if "config" in one else {}
    write_run(tmp_path / "a", "a", ciders(1, 0.5), **(LONG | clip | one))
    write_run(tmp_path / "b", "b", ciders(1, 0.5), **(LONG | clip | other))
    assert main([str(tmp_path)]) == 0
    assert headings(tmp_path) == [f"flickr8k, test split, 200 images ({part})" for part in parts]


def test_a_sentence_about_one_of_several_tables_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, tokenizer in enumerate("aabb"):
        write_run(tmp_path / str(number), f"{number}", ciders(number, 0.5), tokenization=tokenizer)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for tokenizer in "ab":
        title = f"flickr8k, test split, 200 images (tokeniser {tokenizer})"
        assert f"No run on {title} has CIDEr on dev" in shown


def test_other_test_sets_need_no_fingerprints(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.5), **LONG)
    write_run(tmp_path / "b", "b", ciders(1, 0.5), images=100, fingerprint="b")
    write_run(tmp_path / "c", "c", ciders(1, 0.5), leave_one_out=5, **LONG)
    assert main([str(tmp_path)]) == 0
    assert headings(tmp_path) == [
        "flickr8k, test split, 200 images",
        "flickr8k, test split, 100 images",
        "flickr8k, test split, 200 images, human captions against each other",
    ]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"references": {"test": "other"}}, "references"),
        ({"tokenization": "other"}, "tokenisation"),
        ({"scores": {"CLIPScore": 0.7}, "config": {"clip_weights": "x"}}, "weights of CLIPScore"),
    ],
)
def test_other_protocols_are_other_tables_with_the_reason(
    tmp_path: Path, other: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    same: dict[str, Any] = {"references": {"test": "r"}, "tokenization": "t"}
    clip = {"scores": {"CLIPScore": 0.7}, "config": {"clip_weights": "y"}}
    write_run(tmp_path / "a", "a", ciders(1, 0.5), **same, **clip)
    write_run(tmp_path / "b", "b", ciders(2, 0.5), **(same | clip | other))
    assert main([str(tmp_path)]) == 0
    assert f"2 tables, because runs differ in {reason}:" in capsys.readouterr().out
    assert reason in (tmp_path / "leaderboard.html").read_text()


def test_a_run_without_clipscore_stands_beside_one_with_it(tmp_path: Path) -> None:
    clip = {"scores": {"CLIPScore": 0.7}, "config": {"clip_weights": "y"}}
    write_run(tmp_path / "a", "a", ciders(1, 0.5), **clip)
    write_run(tmp_path / "b", "b", ciders(2, 0.5))
    assert len(rank(find_runs([tmp_path])[0], "test").rankings) == 1
    assert main([str(tmp_path), "--sort", "CLIPScore"]) == 0
    assert [row["CLIPScore"] for row in rows_of(tmp_path)] == ["0.7", ""]
