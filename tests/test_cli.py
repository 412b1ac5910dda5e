"""The folders of single runs, through ``eval.py``, which needs no model to score a file."""

import datetime
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core import utils

from captioning.reporting.results import read_results
from captioning.support.claims import claim, release_claims

ROOT = Path(__file__).parents[1]

Evaluate = Callable[..., str]


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Score one caption; returns what was printed on stderr. All happens in the same second."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Clock":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(utils, "datetime", Clock)
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("captions.json").write_text(json.dumps([{"image_id": "a", "caption": "a dog runs"}]))
    Path("references.json").write_text(json.dumps({"a": ["a dog runs fast"]}))

    def run(*overrides: str) -> str:
        given = ["captions=captions.json", "references=references.json", *overrides]
        monkeypatch.setattr(sys, "argv", ["eval.py", *given])
        with suppress(SystemExit):
            runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
        return capsys.readouterr().err

    return run


def test_runs_of_the_same_second_have_folders_of_their_own(evaluate: Evaluate) -> None:
    for name in ("first", "second", "third"):
        assert evaluate(f"name={name}") == ""
    folder = Path("runs/eval/2026-01-02_03-04-05")
    for name, place in (("first", ""), ("second", "-2"), ("third", "-3")):
        mine = folder.with_name(folder.name + place)
        assert read_results(mine / "results.json").name == name
        assert (mine / ".hydra" / "overrides.yaml").read_text().count(name) == 1
        assert (mine / "eval.log").exists()


def test_a_folder_with_results_is_not_overwritten(evaluate: Evaluate) -> None:
    assert evaluate("name=first", "hydra.run.dir=mine") == ""
    said = evaluate("name=second", "hydra.run.dir=mine")
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "mine holds the results of another run" in said
    assert read_results(Path("mine/results.json")).name == "first"


def test_a_folder_in_which_another_run_goes_on_is_refused(evaluate: Evaluate) -> None:
    claim(Path("mine"))
    try:
        said = evaluate("hydra.run.dir=mine")
    finally:
        release_claims()
    assert said.startswith("error: mine belongs to another run, which has not ended (process ")
    assert evaluate("hydra.run.dir=mine") == ""


def test_relative_paths_are_of_the_folder_of_the_command(evaluate: Evaluate) -> None:
    shutil.move("captions.json", "mine.json")
    assert evaluate("captions=mine.json", "hydra.run.dir=mine", "hydra.job.chdir=true") == ""
    assert Path("mine/results.json").exists()
