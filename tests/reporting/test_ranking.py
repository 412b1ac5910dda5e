"""Seeds, significance, fairness and published results on the leaderboard, on files of runs."""

import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioning.apps.leaderboard import main
from captioning.metrics.bootstrap import MIN_IMAGES_FOR_P_VALUE, compare, mean_intervals
from captioning.metrics.statistics import Statistics
from captioning.reporting.per_image import write_statistics
from captioning.reporting.ranking import rank
from captioning.reporting.runs import find_runs

PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "published.yaml"
IMAGES = [f"{number}.jpg" for number in range(200)]


def write_run(
    folder: Path,
    name: str,
    ciders: np.ndarray,
    *,
    seed: int | None = None,
    dev: float | None = None,
    scores: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    images: int = len(IMAGES),
    **data: Any,
) -> Path:
    """A run whose CIDEr is the mean of ``ciders``, with its statistics."""
    folder.mkdir(parents=True)
    test = {"CIDEr": float(ciders.mean()), "BLEU-4": 0.2} | (scores or {})
    content = {
        "schema": 1, "name": name, "created": "2026-11-23T05:49:53Z", "command": "", "commit": None,
        "config": (config or {}) | ({} if seed is None else {"seed": seed}),
        "data": {"name": "flickr8k", "fingerprint": "f", "images": {"test": images}} | data,
        "versions": {}, "free_running": True, "seconds": {},
        "scores": {"test": test} | ({} if dev is None else {"dev": {"CIDEr": dev}}),
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    write_statistics(
        folder / "statistics_test.json",
        Statistics(tuple(IMAGES), {"CIDEr": ciders[:, None]}, "r"),
    )
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ciders(seed: int, mean: float) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4, mean / 4, len(IMAGES))


@pytest.fixture
def two_models(tmp_path: Path) -> dict[str, list[np.ndarray]]:
    """Two models, two seeds; the one that is best on dev is not best on test."""
    runs = {"a": [ciders(1, 0.5), ciders(2, 0.55)], "b": [ciders(3, 0.9), ciders(4, 0.8)]}
    for name, seeds in runs.items():
        for seed, found in enumerate(seeds):
            write_run(
                tmp_path / f"{name}{seed}", name, found, seed=seed, dev=0.9 if name == "a" else 0.5
            )
    return runs


def test_seeds_are_one_row_with_mean_spread_interval_and_difference(
    tmp_path: Path, two_models: dict[str, list[np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    b, a = rows_of(tmp_path)
    assert (b["run"], b["seeds"], a["run"], a["seeds"]) == ("b", "2", "a", "2")
    means = {name: [float(run.mean()) for run in runs] for name, runs in two_models.items()}
    assert float(b["CIDEr"]) == pytest.approx(statistics.fmean(means["b"]), abs=1e-15)
    assert float(b["CIDEr sd"]) == pytest.approx(statistics.stdev(means["b"]), abs=1e-15)
    # The interval is that of the normal approximation, nearly.
    mean = np.mean(two_models["b"], axis=0)
    error = mean.std(ddof=1) / len(mean) ** 0.5
    assert float(b["CIDEr low"]) == pytest.approx(mean.mean() - 1.96 * error, abs=0.3 * error)
    assert float(b["CIDEr high"]) == pytest.approx(mean.mean() + 1.96 * error, abs=0.3 * error)
    # The best on dev is that which the others are compared with.
    assert a["CIDEr difference"] == ""
    apart = statistics.fmean(means["b"]) - statistics.fmean(means["a"])
    assert float(b["CIDEr difference"]) == pytest.approx(apart, abs=1e-12)
    assert float(b["CIDEr p"]) == pytest.approx(2 / 1001)
    apart_each = mean - np.mean(two_models["a"], axis=0)
    error = apart_each.std(ddof=1) / len(mean) ** 0.5
    assert float(b["CIDEr difference low"]) == pytest.approx(apart - 1.96 * error, abs=0.3 * error)
    assert float(b["CIDEr difference high"]) == pytest.approx(apart + 1.96 * error, abs=0.3 * error)
    shown = capsys.readouterr().out
    assert (
        f"{100 * statistics.fmean(means['b']):.1f} ±{100 * statistics.stdev(means['b']):.1f}"
        in shown
    )
    assert "from a, the best by CIDEr on dev" in shown
    assert "p=0.002" in shown


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


def test_each_seed_is_listed_when_asked_for(tmp_path: Path, two_models: object) -> None:
    assert main([str(tmp_path), "--seeds"]) == 0
    assert [row["seeds"] for row in rows_of(tmp_path)] == ["1"] * 4
    assert rows_of(tmp_path)[0]["CIDEr low"] != ""


def test_other_settings_or_the_same_seed_twice_are_no_further_seed(tmp_path: Path) -> None:
    config = {"model": {"dropout": 0.5}, "data": {"root": "here"}}
    write_run(tmp_path / "1", "a", ciders(1, 0.5), seed=0, config=config)
    elsewhere = config | {"data": {"root": "there"}, "new": False, "resume": "last.ckpt"}
    write_run(tmp_path / "2", "a", ciders(2, 0.5), seed=1, config=elsewhere)
    write_run(tmp_path / "3", "a", ciders(3, 0.4), seed=1, config=config)
    write_run(tmp_path / "4", "a", ciders(4, 0.3), seed=2, config={"model": {"dropout": 0.3}})
    assert main([str(tmp_path)]) == 0
    assert sorted(row["seeds"] for row in rows_of(tmp_path)) == ["1", "1", "2"]


@pytest.mark.usefixtures("two_models")
def test_against_a_named_run_or_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", str(tmp_path / "b1")):
        assert main([str(tmp_path), "--against", name]) == 0
        b, a = rows_of(tmp_path)
        assert b["CIDEr difference"] == ""
        assert float(a["CIDEr difference"]) < 0
    assert main([str(tmp_path), "--against", "b", "--seeds"]) == 1
    assert "give the folder of one" in capsys.readouterr().err
    assert main([str(tmp_path), "--against", "c"]) == 1
    assert "no run with scores on test has that name" in capsys.readouterr().err


def test_without_dev_scores_it_says_that_none_is_compared_and_how_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mean in (("theirs", 0.5), ("ours", 0.6)):
        write_run(tmp_path / name, name, ciders(1, mean))
    sentence = "No run on flickr8k has CIDEr on dev, to choose the best by; --against NAME"
    assert main([str(tmp_path)]) == 0
    assert sentence in capsys.readouterr().out
    page = (tmp_path / "leaderboard.md").read_text()
    assert sentence in page
    assert "dev CIDEr" not in page
    assert main([str(tmp_path), "--against", "ours"]) == 0
    assert "No run" not in capsys.readouterr().out
    assert rows_of(tmp_path)[1]["CIDEr p"] != ""


def test_a_difference_that_cannot_be_taken_is_no_silent_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mean in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        write_run(tmp_path / name, name, ciders(1, mean), dev=mean)
    (tmp_path / "a" / "statistics_test.json").unlink()
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "No difference is known of a: it takes statistics_test.json beside" in shown
    assert [row["CIDEr p"] != "" for row in rows_of(tmp_path)] == [False, True, False]


@pytest.mark.usefixtures("two_models")
def test_choose_on_test_chooses_on_test_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    assert "from a, the best by CIDEr on dev" in capsys.readouterr().out
    assert main([str(tmp_path), "--choose-on-test"]) == 0
    assert "from b, the best by CIDEr on test" in capsys.readouterr().out


def test_the_former_option_says_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--best-by", "test"]) == 1
    assert "--choose-on-test" in capsys.readouterr().err
    assert not (tmp_path / "leaderboard.csv").exists()


def test_equal_scores_are_ranked_by_name_in_whatever_order_they_are_found(tmp_path: Path) -> None:
    same = ciders(1, 0.5)
    for folder, name in (("1", "c"), ("2", "a"), ("3", "b")):
        write_run(tmp_path / folder, name, same, dev=0.5)
    runs, _ = find_runs([tmp_path])
    for order in (runs, runs[::-1]):
        (ranking,) = rank(order, "test").rankings
        assert [row.name for row in ranking.rows] == ["a", "b", "c"]
        assert ranking.against is not None
        assert ranking.against.name == "a"


def test_a_tie_on_dev_is_not_decided_by_the_test_scores(tmp_path: Path) -> None:
    write_run(tmp_path / "1", "a", ciders(1, 0.5), dev=0.5)
    write_run(tmp_path / "2", "b", ciders(2, 0.9), dev=0.5)
    (ranking,) = rank(find_runs([tmp_path])[0], "test").rankings
    assert [row.name for row in ranking.rows] == ["b", "a"]
    assert ranking.against is not None
    assert ranking.against.name == "a"


def test_systems_with_the_same_scores_have_a_p_value_of_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, name, ciders(1, 0.5), dev=0.5)
    assert main([str(tmp_path)]) == 0
    _, b = rows_of(tmp_path)
    assert (float(b["CIDEr difference"]), float(b["CIDEr p"])) == (0, 1)


def test_a_handful_of_images_has_no_p_value_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for few, shown in ((MIN_IMAGES_FOR_P_VALUE - 1, "p=-"), (MIN_IMAGES_FOR_P_VALUE, "p=0.0")):
        folder = tmp_path / str(few)
        for name, mean in (("a", 0.9), ("b", 0.1)):
            run = write_run(folder / name, name, ciders(1, mean), dev=mean, images=few)
            found = Statistics(tuple(IMAGES[:few]), {"CIDEr": ciders(1, mean)[:few, None]}, "r")
            write_statistics(run / "statistics_test.json", found)
        assert main([str(folder)]) == 0
        said = capsys.readouterr().out
        assert shown in said
        assert (f"There is no p-value on {few} images" in said) == (shown == "p=-")
        assert ("p=-" in (folder / "leaderboard.html").read_text()) == (shown == "p=-")
        _, b = rows_of(folder)
        assert b["CIDEr difference"] != ""
        assert (b["CIDEr p"] == "") == (shown == "p=-")


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


def test_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dropout in (0.3, 0.5):
        write_run(
            tmp_path / str(dropout), "a", ciders(1, dropout), config={"model": {"dropout": dropout}}
        )
    assert main([str(tmp_path), "--filter", "model.dropout=0.50", "--filter", "name=a*"]) == 0
    (row,) = rows_of(tmp_path)
    assert row["path"] == str(tmp_path / "0.5" / "results.json")
    assert main([str(tmp_path), "--filter", "model.drop=0.5"]) == 1
    assert "there is model.dropout" in capsys.readouterr().err
    assert main([str(tmp_path), "--filter", "model"]) == 1
    assert "write key=value" in capsys.readouterr().err
    assert main([str(tmp_path), "--filter", "name=b"]) == 1
    assert "--filter name=b: no run has that value; there is a\n" in capsys.readouterr().err
    write_run(tmp_path / "b", "b", ciders(1, 0.5), config={"model": {"dropout": 0.3}})
    assert main([str(tmp_path), "--filter", "name=b", "--filter", "model.dropout=0.5"]) == 0
    assert "meets all filters" in capsys.readouterr().out


def test_what_captions_are_like_is_shown_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, used in ((0, 1200), (1, 1300)):
        folder = write_run(tmp_path / str(seed), "a", ciders(seed, 0.5), seed=seed)
        content = json.loads((folder / "results.json").read_text())
        content["language"] = {
            "test": {
                "distinct_1": 0.25, "distinct_2": 0.5, "vocabulary": used, "length": 9.5 + seed,
                "novel": 0.875, "unknown": 0.0,
            }
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(content))
    assert main([str(tmp_path)]) == 0
    assert "words used" not in (tmp_path / "leaderboard.md").read_text() + capsys.readouterr().out
    assert float(rows_of(tmp_path)[0]["vocabulary"]) == 1250  # files for programs have all
    assert main([str(tmp_path), "--language"]) == 0
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    header, _, row = (line.split(" | ") for line in lines if line.startswith("| "))
    shown = dict(zip(header, row, strict=True))
    assert shown["words used"] == "1,250.0 ±70.7"
    assert shown["words a caption"] == "10.0 ±0.7"
    assert shown["not in train"] == "87.5 ±0.0"
    assert shown["\\<unk>"] == "0.0 ±0.0"
    assert "of the vocabulary" not in shown
    assert "1,250.0 ±70.7" in capsys.readouterr().out
    assert "1,250.0 ±70.7" in (tmp_path / "leaderboard.html").read_text()


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


def test_failed_jobs_are_listed_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "a", ciders(1, 0.5))
    (tmp_path / "dropout=2").mkdir()
    (tmp_path / "dropout=2" / "failed.json").write_text('{"reason": "out\\nof <memory>"}')
    assert main([str(tmp_path)]) == 0
    assert "failed: dropout=2: out of <memory>" in capsys.readouterr().out
    assert "failed: dropout=2: out of \\<memory>" in (tmp_path / "leaderboard.md").read_text()
    assert "out of &lt;memory&gt;" in (tmp_path / "leaderboard.html").read_text()


@pytest.mark.usefixtures("two_models")
def test_wandb_gets_the_table_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([str(tmp_path), "--wandb", "--out", str(tmp_path / "out")]) == 0
    (table,) = (tmp_path / "out").glob("wandb/offline-run-*/files/media/table/*.table.json")
    content = json.loads(table.read_text())
    place = content["columns"].index("run")
    assert [row[place] for row in content["data"]] == ["b", "a"]


def test_a_thousand_resamples_of_a_thousand_images_take_seconds() -> None:
    rng = np.random.default_rng(0)
    images = tuple(map(str, range(1000)))
    tables = {"BLEU": rng.integers(1, 9, (1000, 10)) * 1.0, "CIDEr": rng.random((1000, 1))}
    runs = [Statistics(images, tables) for _ in range(4)]
    start = time.perf_counter()
    mean_intervals(runs[:2])
    compare([runs[2:]], runs[:2])
    assert time.perf_counter() - start < 5
