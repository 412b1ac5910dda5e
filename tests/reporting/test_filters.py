"""``--filter``, which selects runs by their settings."""

from pathlib import Path

import pytest
from run_folders import ciders, rows_of, write_run

from captioning.apps.leaderboard import main


def test_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dropout in (0.3, 0.5):
        write_run(
            tmp_path / str(dropout), "a", ciders(1, dropout), config={"model": {"dropout": dropout}}
        )
    assert main([str(tmp_path), "--filter", "model.dropout=0.50", "--filter", "name=a*"]) == 0
    (row,) = rows_of(tmp_path)
    assert row["path"] == str(tmp_path / "0.5" / "results.json")
    assert main([str(tmp_path), "--filter", "model.drop=0.5"]) == 1
    assert "; did you mean model.dropout?\n" in capsys.readouterr().err
    assert main([str(tmp_path), "--filter", "colour=red"]) == 1
    assert "; there is name, data, model, encoder, decoding\n" in capsys.readouterr().err
    assert main([str(tmp_path), "--filter", "model"]) == 1
    assert "write key=value" in capsys.readouterr().err
    assert main([str(tmp_path), "--filter", "name=b"]) == 1
    assert "--filter name=b: no run has that value; there is a\n" in capsys.readouterr().err
    write_run(tmp_path / "b", "b", ciders(1, 0.5), config={"model": {"dropout": 0.3}})
    assert main([str(tmp_path), "--filter", "name=b", "--filter", "model.dropout=0.5"]) == 1
    assert "meets all filters: leave one of them out" in capsys.readouterr().err
