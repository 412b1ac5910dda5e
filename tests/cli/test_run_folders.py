"""The folders of single runs, through ``eval.py``, which needs no model to score a file."""

import datetime
import errno
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core import utils
from hydra.core.hydra_config import HydraConfig

from captioning.cli.callbacks import Claim
from captioning.cli.errors import options_first
from captioning.reporting.results import read_results
from captioning.support.claims import claim, release_claims

ROOT = Path(__file__).parents[2]

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


def test_options_may_stand_between_settings() -> None:
    arguments = ["a=1", "--config-dir", "D", "b=[1,2]", "-m", "~c"]
    assert options_first(arguments) == ["--config-dir", "D", "-m", "a=1", "b=[1,2]", "~c"]
    for wrong in (["a=1", "--config-dir"], ["--hlp", "a=1"]):  # Hydra says what is wrong
        assert options_first(wrong) == wrong


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


@pytest.mark.parametrize(
    "override",
    ["captions=nothing.json", "references=nothing.json", "extra_metrics=[Spice]", "decodin=greedy"],
)
def test_a_mistyped_command_leaves_no_folder(evaluate: Evaluate, override: str) -> None:
    before = set(Path.cwd().iterdir())
    assert evaluate(override).startswith("error: ")
    assert set(Path.cwd().iterdir()) == before
    assert evaluate(override, "hydra.run.dir=deep/in/mine").startswith("error: ")
    assert set(Path.cwd().iterdir()) == before


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


def test_a_training_claims_its_folder_whose_name_has_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name refers to a choice that Hydra makes known only after its callbacks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["model=lstm"], return_hydra_config=True)
    Claim().on_run_start(config)
    (claimed,) = Path("runs", "lstm").iterdir()
    assert config.hydra.run.dir == str(claimed)
    assert (claimed / ".lock").exists()
    release_claims()


def test_a_disk_that_cannot_be_written_is_one_sentence_wherever_it_is_met(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever file: Hydra's own, the log, the results, the report; the next command works."""
    opened: list[str] = []
    place, armed, failing = str(Path.cwd()), [True], [""]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if armed[0] and event == "open" and arguments[2] & os.O_CREAT:
            path = str(arguments[0])
            if path.startswith(place) or not path.startswith("/"):
                opened.append(path)
                if failing[0] and failing[0] in path:
                    raise OSError(errno.ENOSPC, "No space left on device", path)

    sys.addaudithook(hook)
    try:
        assert evaluate("hydra.run.dir=whole") == ""
        written = {name for name in map(file_name, opened) if name != "tokens"}
        assert {".lock", "config.yaml", "eval.log", "results.json"} <= written
        for number, name in enumerate(sorted(written)):
            failing[0] = name
            said = evaluate(f"hydra.run.dir=full{number}")
            assert said.startswith("error: "), (name, said)
            assert "cannot be" in said, (name, said)
            assert "make room on its disk" in said, (name, said)
            assert said.count("\n") == 1, (name, said)
        failing[0] = ""
        assert evaluate("hydra.run.dir=full0") == ""
    finally:
        armed[0] = False


def file_name(path: str) -> str:
    """The name under which an atomic write leaves what it writes to ``path``."""
    name = Path(path).name
    if Path(path).parent.name == "tokens":
        return "tokens"  # a cache that cannot be written is no error
    return name[1:].rsplit(".", 3)[0] if name.endswith(".tmp") else name
