"""Which settings have columns, which runs are seeds of one row, and what is said of arithmetic."""

import csv
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from captioning.apps.leaderboard import main
from captioning.reporting.configurations import configuration, differing, grouped
from captioning.reporting.results import Decoding, Results, read_results

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "run",
    "data": {"root": "/here", "batch_size": 16, "workers": 2},
    "model": {"_target_": "captioning.models.attn_lstm.AttentionLSTM", "attention_dim": 512},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001},
    "trainer": {"precision": "auto", "max_epochs": 9},
    "logger": {},
}
ARITHMETIC = {
    "precision": "bf16-mixed",
    "device": "cpu: Intel Xeon",
    "backend": {"asked": "auto", "ops": {"attention": "c"}},
    "threads": 2,
}


def results_of(
    settings: dict[str, Any] | None = None,
    *,
    name: str = "run",
    model: str = "attn_lstm",
    arithmetic: dict[str, Any] | None = None,
    cider: float = 0.5,
) -> Results:
    config = json.loads(json.dumps(CONFIG))
    for key, value in (settings or {}).items():
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    content = {
        "name": name, "command": "", "commit": None, "config": config, "versions": {},
        "data": {"name": "flickr8k", "fingerprint": "f", "images": {"test": 1000}},
        "model": {"name": model, "trainable": 1}, "free_running": True, "seconds": {},
        "scores": {"test": {"CIDEr": cider}, "dev": {"CIDEr": cider}}, "arithmetic": arithmetic,
    }  # fmt: skip
    return Results.model_validate_json(json.dumps(content))


def write(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(results.model_dump_json(by_alias=True))


def columns(*runs: Results) -> dict[str, list[str]]:
    rows = differing([[run] for run in runs])
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_settings_that_differ_are_columns_the_models_first() -> None:
    found = columns(
        results_of({"trainer.max_epochs": 9, "model.attention_dim": 128, "optimizer.lr": 0.01}),
        results_of({"trainer.max_epochs": 3, "model.attention_dim": 512, "optimizer.lr": 0.001}),
    )
    assert found == {
        "model.attention_dim": ["128", "512"],
        "optimizer.lr": ["0.01", "0.001"],
        "trainer.max_epochs": ["9", "3"],
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1), ("name", "other"), ("data.root", "/there"), ("data.workers", 9),
        ("logger._target_", "WandbLogger"), ("resume", "x/last.ckpt"), ("model.off", False),
        ("model.none", None), ("encoder.weights", "../vgg.pth"), ("trainer.precision", "32"),
        ("callbacks.attention_images.count", 8), ("extra_metrics", ["SPICE"]),
        ("callbacks.best_checkpoint.dirpath", "runs/x"), ("backend", "torch"),
        ("model._target_", "captioning.models.decoders.attn_lstm.AttentionLSTM"),
    ],
)  # fmt: skip
def test_names_paths_loggers_and_moved_modules_are_no_settings(key: str, value: object) -> None:
    assert configuration(results_of({key: value})) == configuration(results_of())


def test_the_settings_that_tell_rows_apart_come_first() -> None:
    """The name and the decoding have columns of their own, so that they tell nothing new."""

    def run(name: str, dim: int, dropout: float, lr: float, beam_size: int) -> Results:
        given = {
            "model.attention_dim": dim, "model.dropout": dropout, "optimizer.lr": lr,
            "decoding.beam_size": beam_size,
        }  # fmt: skip
        return results_of(given, name=name)

    found = columns(
        run("a", 512, 0.1, 0.1, 5),
        run("a", 512, 0.2, 0.1, 5),
        run("a", 512, 0.3, 0.2, 5),
        run("b", 128, 0.3, 0.2, 5),
        run("c", 64, 0.3, 0.2, 5),
    )
    # The dropout tells the rows of one name apart. Then nothing is open, and the dimension, which
    # is of the model, precedes the learning rate.
    assert list(found) == ["model.dropout", "model.attention_dim", "optimizer.lr"]


def test_a_narrow_terminal_says_once_what_all_rows_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a_run_whose_long_name_is_broken_where_a_word_of_it_ends"
    for dim in (64, 128):
        results = results_of({"model.attention_dim": dim}, name=name)
        decoding = Decoding(name="beam", beam_size=5)
        write(tmp_path / str(dim), results.model_copy(update={"decoding": decoding}))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([str(tmp_path)]) == 0
    table = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).partition("At this width")[0]
    assert table.count("attn_lstm") == table.count("beam 5") == 1
    assert "All rows: model attn_lstm, decoding beam 5" in table
    lines = [line.split(" ")[1] for line in table.splitlines() if line.startswith(" ")]
    assert "a_run_whose_long_name_" in lines
    assert "is_broken_where_a_word_" in lines
    assert "of_it_ends" in lines


def test_views_have_columns_where_they_differ() -> None:
    trained = {"data": {"batch_size": 16, "train_views": ["original", "flip"]}}
    usual = results_of({"data.train_views": ["original"], "views": ["original"]})
    older, flips = results_of(), results_of({**trained, "views": ["original"]})
    averaged = results_of({**trained, "views": ["original", "flip"]})
    assert columns(older, usual) == {}
    assert (
        len(grouped([older, usual.model_copy(update={"config": usual.config | {"seed": 1}})])) == 1
    )
    assert columns(usual, flips, averaged) == {
        "data.train_views": ["-", *['["original", "flip"]'] * 2],
        "views": ["-", "-", '["original", "flip"]'],
    }


def test_an_evaluation_has_the_settings_of_data_that_its_model_was_trained_with() -> None:
    data = {"batch_size": 64, "train_views": ["flip"], "root": "/there", "name": "flickr30k"}
    training = CONFIG | {"data": data}
    given = {"data": {"batch_size": 16, "train_views": ["original"], "name": "flickr8k"}}
    evaluated = results_of(given).model_copy(update={"training": training})
    found = configuration(evaluated)
    assert found["data.batch_size"] == "64"
    assert found["data.train_views"] == '["flip"]'
    assert found["data.name"] == "flickr8k"


def test_what_another_model_lacks_is_no_difference_of_its_own() -> None:
    lstm = results_of({"model": {"_target_": "m.LSTM"}}, name="lstm", model="lstm")
    assert columns(results_of(), lstm) == {}
    wide = results_of({"model.attention_dim": 1024})
    assert columns(results_of(), wide, lstm) == {"model.attention_dim": ["512", "1024", "-"]}
    # Of the same model, a setting that one run lacks is one.
    older = results_of({"model": {"_target_": CONFIG["model"]["_target_"]}})
    assert columns(results_of(), older) == {"model.attention_dim": ["512", "-"]}


def test_classes_are_named_without_their_modules() -> None:
    other = results_of({"optimizer": {"_target_": "torch.optim.RMSprop", "lr": 0.001}})
    assert columns(results_of(), other) == {"optimizer": ["AdamW", "RMSprop"]}


def test_encoders_are_told_apart_by_their_own_names() -> None:
    def run(recorded: str, **settings: str) -> Results:
        content = results_of({"encoder": settings}).model_dump()
        content["encoder"] = {"name": recorded, "fingerprint": recorded, "weights_source": "random"}
        return Results.model_validate(content)

    torchvision = "m.TorchvisionEncoder"
    vgg = run("vgg16", _target_="m.VGG16")
    b0 = run("efficientnet_b0-f.8", _target_=torchvision, name="efficientnet_b0", layer="f.8")
    b1 = run("efficientnet_b1-f.8", _target_=torchvision, name="efficientnet_b1", layer="f.8")
    assert columns(vgg, b0) == {"encoder": ["vgg16", "efficientnet_b0-f.8"]}
    assert columns(b0, b1) == {"encoder": ["efficientnet_b0-f.8", "efficientnet_b1-f.8"]}


def test_arithmetic_has_a_column_only_where_nothing_else_tells_rows_apart() -> None:
    fast, exact = (
        results_of(arithmetic=ARITHMETIC | {"precision": precision, "device": precision[:2]})
        for precision in ("bf16-mixed", "32-true")
    )
    assert columns(fast, exact) == {
        "precision": ["bf16-mixed", "32-true"], "device": ["bf", "32"],
    }  # fmt: skip
    other = results_of({"model.attention_dim": 8}, arithmetic=ARITHMETIC)
    assert columns(fast, other) == {"model.attention_dim": ["512", "8"]}


def test_seeds_of_edited_code_are_not_one_row() -> None:
    runs = [
        results_of({"seed": seed}).model_copy(update={"own_code": code})
        for seed, code in enumerate(({"my.Decoder": "aaa"}, {"my.Decoder": "bbb"}, {}, None))
    ]
    assert grouped(runs) == [[0], [1], [2, 3]]  # of early files, nothing is known
    assert columns(runs[0], runs[1], runs[2]) == {"own code": ["aaa", "bbb", "-"]}


def test_seeds_of_one_arithmetic_are_grouped_first() -> None:
    runs = [
        results_of({"seed": seed}, arithmetic=ARITHMETIC | {"precision": precision})
        for seed, precision in ((0, "32-true"), (0, "16-mixed"), (1, "16-mixed"), (1, "32-true"))
    ]
    assert grouped(runs) == [[0, 3], [1, 2]]
    assert grouped([runs[0], runs[2]]) == [[0, 1]]
    assert grouped([runs[0], results_of({"seed": 1, "model.attention_dim": 8})]) == [[0], [1]]
    assert grouped([results_of({"seed": None}), results_of({"seed": None})]) == [[0], [1]]


def test_a_row_of_mixed_arithmetic_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = {
        "precision": "bf16-mixed", "device": "cuda: NVIDIA H100", "threads": 2,
        "backend": {"asked": "auto", "ops": {"attention": "triton", "topk": "torch"}},
    }  # fmt: skip
    write(tmp_path / "0", results_of({"seed": 0}, arithmetic=ARITHMETIC))
    write(tmp_path / "1", results_of({"seed": 1}, arithmetic=gpu))
    assert main([str(tmp_path)]) == 0
    sentence = (
        "The runs of run count as seeds of one row although their arithmetic differs: device cpu: "
        "Intel Xeon and cuda: NVIDIA H100; backend c and torch (topk), triton (attention)."
    )
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "leaderboard.md").read_text()
    assert sentence in (tmp_path / "leaderboard.html").read_text()
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["2"]


def test_seeds_of_the_same_arithmetic_need_no_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        write(tmp_path / str(seed), results_of({"seed": seed}, arithmetic=ARITHMETIC))
    assert main([str(tmp_path)]) == 0
    assert "arithmetic" not in capsys.readouterr().out


def test_many_settings_are_named_below_and_the_file_for_programs_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"callbacks.c.{n}" for n in range(9)] + ["decoding.beam_size", "model.dropout"]
    for value in (1, 2):
        write(tmp_path / str(value), results_of(dict.fromkeys(keys, value)))
    assert main([str(tmp_path)]) == 0
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    (header,) = (line.split(" | ") for line in lines if line.startswith("| run | model"))
    assert header[1:3] == ["model.dropout", "decoding.beam_size"]
    # A screen shows what stands first, and that should be the scores.
    assert header.index("CIDEr") < header.index(keys[0])
    assert header[-7:-1] == keys[:6]
    page = (tmp_path / "leaderboard.html").read_text()
    assert ">decoding.<wbr>beam_<wbr>size</button>" in page  # a long name may be several lines
    assert "also differ in callbacks.c.6, callbacks.c.7 and callbacks.c.8" in "\n".join(lines)
    printed = capsys.readouterr().out
    assert "also differ in" in printed
    assert "No difference is known of run (model.dropout=2):" in printed
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        assert set(keys) < set(next(csv.reader(file)))


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["flickr8k", "sweep", "scenes"])
def test_no_line_of_a_terminal_is_too_wide_and_no_number_is_cut(
    name: str, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    folder = Path(__file__).parents[2] / "docs" / "results" / name
    assert main([str(folder), "--out", str(tmp_path)]) == 0
    printed = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    lines = printed.partition("Beside or below")[0].splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in printed
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert any(
            row["run"][:12] in line  # longer names go on in the next line
            and f"{100 * float(row['CIDEr']):.1f}" in line
            for line in lines
        )
        if name == "sweep":
            assert any(
                all(row[key] in line for key in ("model.attention_dim", "model.dropout"))
                for line in lines
            )


def test_a_leaderboard_of_200_runs_takes_seconds(tmp_path: Path) -> None:
    for n in range(200):
        settings = {"seed": n % 2, "model.attention_dim": n // 2, "optimizer.lr": n // 2 / 1000}
        write(tmp_path / str(n), results_of(settings, arithmetic=ARITHMETIC, cider=n / 200))
    start = time.perf_counter()
    assert main([str(tmp_path)]) == 0
    assert time.perf_counter() - start < 15  # with the tests' checks of types


def test_a_recipe_of_version_0_1_is_the_same_under_the_present_names() -> None:
    """Two files of the same recipe, written before and after settings were renamed and grouped."""
    runs = Path(__file__).parents[2] / "docs" / "results" / "flickr8k"
    before = read_results(runs / "attn_lstm_seed0" / "results.json")
    after = read_results(runs / "attn_lstm_seed0_again" / "results.json")
    assert (before.schema_version, after.schema_version) == (1, 2)
    assert {"patience", "average_decay", "schedule"} <= before.config.keys()
    assert configuration(before) == configuration(after)
    assert configuration(before)["callbacks.early_stopping.patience"] == "4"
    changed = before.model_copy(update={"config": {**before.config, "patience": 7}})
    assert {
        key
        for key, value in configuration(changed).items()
        if configuration(after).get(key) != value
    } == {"callbacks.early_stopping.patience"}


def test_settings_without_effect_on_scores_do_not_part_the_seeds_of_a_row() -> None:
    without = {
        "data.split_seed": 0,
        "callbacks.last_epochs.save_top_k": 5,
        "callbacks.ema.decay": 1,
    }
    assert configuration(results_of(without)) == configuration(
        results_of({"callbacks.ema.decay": 1})
    )
    assert configuration(results_of(without)) != configuration(results_of())
