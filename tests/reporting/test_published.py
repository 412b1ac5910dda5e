"""Published results of others beside runs."""

from pathlib import Path

import pytest
from run_folders import ciders, rows_of, write_run

from captioning.apps.leaderboard import main

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "published.yaml"


def test_published_results_stand_below_unranked_with_their_source(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.01), images=1000)
    assert main([str(tmp_path), "--published", str(PUBLISHED)]) == 0
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert table[2].startswith("| a |")  # the worst, and yet first
    assert table[3].startswith("| soft attention, Xu et al. 2015 (published) |")
    assert "| 67.0 | 44.8 | 29.9 | 19.5 | 18.9 | - | - |" in table[3]
    assert any("1502.03044" in line and "Not known" in line for line in lines)
    first, second, *_ = rows_of(tmp_path)
    assert first["published"] == ""
    assert "1502.03044" in second["published"]
    assert float(second["BLEU-1"]) == 0.67


def test_published_results_on_other_images_are_named_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.01))
    assert main([str(tmp_path), "--published", str(PUBLISHED)]) == 0
    sentence = "no run here is on the same images: soft attention, Xu et al. 2015; hard"
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "leaderboard.md").read_text()
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("BLEU-4: 0.2", "must be times 100"),
        ("BLEU-5: 20", "BLEU-5 is not one of"),
        ("BLEU-4: 120", "above its highest value"),
    ],
)
def test_wrong_published_figures_are_refused(
    tmp_path: Path, change: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.5))
    file = tmp_path / "p.yaml"
    file.write_text(f"[{{name: n, source: s, data: flickr8k, images: 9, scores: {{{change}}}}}]")
    assert main([str(tmp_path), "--published", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: entry 1, `scores`: ")
    assert sentence in error
