"""Which runs are one row of the leaderboard, and by what rows of one name are told apart."""

from pathlib import Path

import pytest
from run_folders import ciders, rows_of, write_run

from captioning.apps.leaderboard import main


def test_rows_of_one_name_have_columns_for_what_differs_but_not_for_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dropout in (0.3, 0.5):
        for seed in (0, 1):
            folder = tmp_path / f"dim=8,dropout={dropout},seed={seed}"
            config = {"model": {"dropout": dropout, "dim": 8}, "data": {"root": str(folder)}}
            write_run(folder, "a", ciders(seed, 1 - dropout), seed=seed, config=config, dev=dropout)
    assert main([str(tmp_path)]) == 0
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    header, _, *rows = (line for line in lines if line.startswith("|"))
    assert header.startswith("| run | model.dropout | seeds | model |")
    assert [row[:16] for row in rows] == ["| a | 0.3 | 2 | ", "| a | 0.5 | 2 | "]
    assert "from a (model.dropout=0.5), the best by CIDEr on dev" in capsys.readouterr().out
    assert [row["model.dropout"] for row in rows_of(tmp_path)] == ["0.3", "0.5"]
    assert str(tmp_path) not in (tmp_path / "leaderboard.md").read_text()


def test_other_settings_or_the_same_seed_twice_are_no_further_seed(tmp_path: Path) -> None:
    config = {"model": {"dropout": 0.5}, "data": {"root": "here"}}
    write_run(tmp_path / "1", "a", ciders(1, 0.5), seed=0, config=config)
    elsewhere = config | {"data": {"root": "there"}, "new": False, "resume": "last.ckpt"}
    write_run(tmp_path / "2", "a", ciders(2, 0.5), seed=1, config=elsewhere)
    write_run(tmp_path / "3", "a", ciders(3, 0.4), seed=1, config=config)
    write_run(tmp_path / "4", "a", ciders(4, 0.3), seed=2, config={"model": {"dropout": 0.3}})
    assert main([str(tmp_path)]) == 0
    assert sorted(row["seeds"] for row in rows_of(tmp_path)) == ["1", "1", "2"]


def test_what_a_row_lacks_is_an_empty_cell_for_programs(tmp_path: Path) -> None:
    for name, model in (("a", {"dropout": 0.5}), ("b", {"dropout": -0.25, "dim": 8}), ("c", {})):
        write_run(tmp_path / name, "run", ciders(1, 0.5), config={"model": model})
    assert main([str(tmp_path)]) == 0
    cells = [(row["model.dropout"], row["model.dim"]) for row in rows_of(tmp_path)]
    assert sorted(cells) == [("", ""), ("-0.25", "8"), ("0.5", "")]
