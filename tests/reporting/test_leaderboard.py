"""The leaderboard, as its users call it: on folders of results files."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from captioning.apps.leaderboard import main
from captioning.metrics.registry import STANDARD_SCORES
from captioning.reporting.terminal import score_table


def write_run(
    folder: Path,
    name: str,
    test: dict[str, float] | None,
    *,
    dev: dict[str, float] | None = None,
    fingerprint: str = "aaaaaaaaaaaa",
    images: int = 1000,
) -> None:
    scores = {"dev": dev, "test": test}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "name": name,
                "created": "2026-11-23T05:49:53+01:00",
                "command": "python train.py",
                "config": {},
                "data": {
                    "name": "flickr8k",
                    "fingerprint": fingerprint,
                    "images": {"train": 6000, "dev": 1000, "test": images},
                },
                "vocabulary": {"size": 2548, "fingerprint": "v"},
                "encoder": {"name": "vgg16", "fingerprint": "e", "weights_source": "random"},
                "model": {"name": "attn_lstm", "parameters": 1},
                "versions": {},
                "free_running": True,
                "commit": None,
                "seconds": {},
                "scores": {split: row for split, row in scores.items() if row is not None},
                "decoding": {"name": "beam", "beam_size": 5},
            }
        )
    )


def all_metrics(bleu4: float, cider: float) -> dict[str, float]:
    return dict.fromkeys(STANDARD_SCORES, 0.3) | {"BLEU-4": bleu4, "CIDEr": cider}


def markdown_tables(path: Path) -> list[list[dict[str, str]]]:
    """Each table of a Markdown file, as one dictionary a row."""
    tables: list[list[dict[str, str]]] = []
    header: list[str] | None = None
    for line in path.read_text().splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [
            cell.strip().replace("\0", "|")
            for cell in line.replace("\\|", "\0").strip("|").split("|")
        ]
        if header is None:
            header = cells
            tables.append([])
        elif set(cells) != {"---"}:
            tables[-1].append(dict(zip(header, cells, strict=True)))
    return tables


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def far_from_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as context:
        context.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
def test_best_cider_first_and_best_of_each_column_bold(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a", "low", all_metrics(0.2249, 0.5), dev={"CIDEr": 0.6})
    write_run(tmp_path / "b" / "deep", "high", all_metrics(0.21, 0.55))
    write_run(tmp_path / "c", "middle", all_metrics(0.20, 0.526))
    assert main([str(tmp_path)]) == 0

    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert [row["run"] for row in rows] == ["high", "middle", "low"]
    assert [row["CIDEr"] for row in rows] == ["**55.0**", "52.6", "50.0"]
    assert [row["BLEU-4"] for row in rows] == ["21.0", "20.0", "**22.5**"]
    assert [row["dev CIDEr"] for row in rows] == ["-", "-", "**60.0**"]
    assert rows[0]["decoding"] == "beam 5"
    assert rows[0]["when (UTC)"] == "2026-11-23 04:49"

    shown = capsys.readouterr().out
    title = "flickr8k, test split, 1,000 images"
    positions = [shown.index(text) for text in (title, "high", "middle", "low")]
    assert positions == sorted(positions)
    assert "55.0" in shown


def test_csv_has_scores_in_full_on_their_own_scale(tmp_path: Path) -> None:
    score = 0.1 + 0.2
    write_run(tmp_path / "a", "run", all_metrics(score, 1.2345678901234567))
    assert main([str(tmp_path), "--out", str(tmp_path / "new" / "folder")]) == 0
    (row,) = csv_rows(tmp_path / "new" / "folder" / "leaderboard.csv")
    assert float(row["BLEU-4"]) == score
    assert float(row["CIDEr"]) == 1.2345678901234567
    assert row["fingerprint"] == "aaaaaaaaaaaa"
    assert row["dev CIDEr"] == ""
    assert not (tmp_path / "leaderboard.csv").exists()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"fingerprint": "bbbbbbbbbbbb"}, "data fingerprint"),
        ({"images": 200}, "number of images"),
    ],
)
def test_runs_on_different_data_are_never_ranked_together(
    tmp_path: Path, capsys, other, reason: str
) -> None:
    write_run(tmp_path / "a", "one", all_metrics(0.2, 0.5))
    write_run(tmp_path / "b", "two", all_metrics(0.2, 0.9), **other)
    assert main([str(tmp_path)]) == 0
    tables = markdown_tables(tmp_path / "leaderboard.md")
    assert sorted(row["run"] for table in tables for row in table) == ["one", "two"]
    assert [len(table) for table in tables] == [1, 1]
    sentence = f"2 tables, because runs differ in {reason}:"
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "leaderboard.md").read_text()


def test_split_chooses_the_scores_and_unscored_runs_are_named(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a", "both", all_metrics(0.2, 0.5), dev=all_metrics(0.1, 0.4))
    write_run(tmp_path / "b", "tested", all_metrics(0.2, 0.6))
    write_run(tmp_path / "c", "nothing", None)
    assert main([str(tmp_path), "--split", "dev"]) == 0
    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert [(row["run"], row["CIDEr"]) for row in rows] == [("both", "40.0")]
    assert "dev CIDEr" not in rows[0]
    sentence = f"Without scores on dev: nothing ({tmp_path / 'c'}), tested ({tmp_path / 'b'})."
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "leaderboard.md").read_text()


def test_run_without_cider_stands_last(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "no cider", {"BLEU-4": 0.9})
    write_run(tmp_path / "b", "cider", {"CIDEr": 0.0})
    assert main([str(tmp_path)]) == 0
    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert [(row["run"], row["CIDEr"]) for row in rows] == [("cider", "**0.0**"), ("no cider", "-")]


def test_unreadable_file_is_named_the_rest_goes_on_and_the_status_tells(
    tmp_path: Path, capsys
) -> None:
    write_run(tmp_path / "a", "good", all_metrics(0.2, 0.5))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text('{"schema": 1, "na')
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert str(tmp_path / "b" / "results.json") in captured.err
    assert captured.err.count("\n") == 1
    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert [row["run"] for row in rows] == ["good"]


def test_folder_without_runs_and_missing_folder_get_one_sentence(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path}: no run below has a readable results.json; ")
    assert "train.py" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []

    assert main([str(tmp_path / "absent")]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(tmp_path / "absent") in captured.err


def test_run_below_two_of_the_folders_is_one_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "run", all_metrics(0.2, 0.5))
    assert main([str(tmp_path), str(tmp_path / "a" / ".." / "a")]) == 0
    assert len(csv_rows(tmp_path / "leaderboard.csv")) == 1


def test_runs_of_one_name_and_the_same_settings_have_the_end_of_their_folders(
    tmp_path: Path,
) -> None:
    write_run(tmp_path / "x" / "run", "attn_lstm", all_metrics(0.2, 0.5))
    write_run(tmp_path / "y" / "run", "attn_lstm", all_metrics(0.2, 0.6))
    write_run(tmp_path / "z", "lstm", all_metrics(0.2, 0.4))
    assert main([str(tmp_path)]) == 0
    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert [row["run"] for row in rows] == ["attn_lstm (y/run)", "attn_lstm (x/run)", "lstm"]


def test_hostile_names_break_no_table_and_run_no_formula(tmp_path: Path, capsys) -> None:
    name = "=1+1|two\nlines\u2028 [bold]x[/nothing] \x1b[31m"
    write_run(tmp_path / "a", name, all_metrics(0.2, 0.5), fingerprint="[red]|\n")
    write_run(tmp_path / "b", "plain", all_metrics(0.2, 0.4), fingerprint="[red]|\n")
    assert main([str(tmp_path)]) == 0

    (rows,) = markdown_tables(tmp_path / "leaderboard.md")
    assert len(rows) == 2
    assert rows[0]["run"].startswith("=1+1|two lines")
    evil, plain = csv_rows(tmp_path / "leaderboard.csv")
    assert evil["run"] == f"'{name}"
    assert plain["run"] == "plain"
    shown = capsys.readouterr().out
    assert "=1+1|two lines  [bold]x[/nothing]" in shown
    assert "\x1b" not in shown


def test_own_scores_are_shown_a_hundredfold_and_gaps_as_gaps() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(score_table({"dev": {"CIDEr": 0.488}, "test": all_metrics(0.2051, 0.526)}))
    header, *_, dev, test = [line.split() for line in capture.get().splitlines() if line.strip()]
    assert header == ["split", *STANDARD_SCORES]
    assert dev == ["dev", *"------", "48.8"]
    assert test == ["test", "30.0", "30.0", "30.0", "20.5", "30.0", "30.0", "52.6"]
