"""Seeds, significance and fairness on the leaderboard, on files of runs."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from run_folders import IMAGES, ciders, rows_of, write_run

from captioning.apps.leaderboard import main
from captioning.metrics.bootstrap import MIN_IMAGES_FOR_P_VALUE, compare, mean_intervals
from captioning.metrics.statistics import Statistics
from captioning.reporting.per_image import write_statistics
from captioning.reporting.ranking import rank
from captioning.reporting.runs import find_runs


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
    assert "is not corrected for the number of comparisons." in shown


def test_each_seed_is_listed_when_asked_for(tmp_path: Path, two_models: object) -> None:
    assert main([str(tmp_path), "--seeds"]) == 0
    assert [row["seeds"] for row in rows_of(tmp_path)] == ["1"] * 4
    assert rows_of(tmp_path)[0]["CIDEr low"] != ""


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


def test_a_run_on_other_images_does_not_cost_the_others_their_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, mean in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        run = write_run(tmp_path / name, name, ciders(1, mean), dev=1 - mean)
    fewer = Statistics(tuple(IMAGES[:100]), {"CIDEr": ciders(1, 0.7)[:100, None]}, "r")
    write_statistics(run / "statistics_test.json", fewer)
    assert main([str(tmp_path)]) == 0
    assert [(row["run"], row["CIDEr p"] != "") for row in rows_of(tmp_path)] == [
        ("c", False), ("b", True), ("a", False),
    ]  # fmt: skip
    assert "from a, the best by CIDEr on dev" in capsys.readouterr().out
    assert "c is not compared: the two systems captioned different images" in caplog.text


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
