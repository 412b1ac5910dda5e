"""What ``import captioning`` offers, and what it costs."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import captioning
from captioning.__main__ import COMMANDS, SCRIPTS, main, run_command
from captioning.apps import leaderboard
from captioning.support.signals import Stopped

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "torchvision", "pytorch_lightning", "hydra", "matplotlib", "pydantic", "triton")


def loaded_after(statement: str) -> set[str]:
    """Which of the heavy packages a fresh process has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import captioning",
        "import captioning; dir(captioning)",
        "import captioning.metrics",
        "from captioning import score_captions",
        "from captioning.metrics import METRICS, CaptionScorer, compare, score_captions\n"
        "assert score_captions({'a': 'a dog'}, {'a': ['a dog runs']}, ('BLEU',)).corpus",
        "from captioning import CaptioningError",
    ],
)
def test_nothing_heavy_is_imported_for(statement: str) -> None:
    assert loaded_after(statement) == set()


def test_the_check_itself_would_notice() -> None:
    assert "torch" in loaded_after("from captioning import Beam")


@pytest.mark.parametrize("package", ["captioning", "captioning.metrics", "captioning.objectives",
                                     "captioning.decoding",
                                     "captioning.testing"])  # fmt: skip
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module)) or package == "captioning.metrics"
    scope: dict[str, object] = {}
    exec(f"from {package} import *", scope)  # as a notebook may
    assert set(module.__all__) <= scope.keys()


def test_public_names_are_what_they_are_called() -> None:
    for name in captioning.__all__:
        assert getattr(captioning, name).__name__ == name
    assert len({*captioning.__all__}) == len(captioning.__all__)
    with pytest.raises(AttributeError, match=r"'captioning' has no attribute 'Captionr'"):
        captioning.Captionr  # noqa: B018


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("leaderbord", "error: leaderbord: no such command; did you mean leaderboard?\n"),
        ("paint", "error: paint: no such command; there are train, eval, caption, leaderboard, "
         "average, demo, export, prepare.\n"),
    ],
)  # fmt: skip
def test_a_command_that_there_is_not_is_answered_with_the_nearest(
    command: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command) == 2
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_without_a_command_all_are_listed_which_is_a_mistake_unless_asked_for(
    arguments: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["captioning", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    said = capsys.readouterr()
    listed, other = (said.err, said.out) if status else (said.out, said.err)
    assert other == ""
    assert listed.startswith("usage: captioning COMMAND ...\n")
    assert [line.split()[0] for line in listed.splitlines()[2:]] == [*SCRIPTS, *COMMANDS]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM\n"),
    ],
)
def test_a_command_that_is_stopped_says_by_what(
    error: KeyboardInterrupt,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped() -> int:
        raise error

    monkeypatch.setattr(leaderboard, "main", stopped)
    monkeypatch.setattr(sys, "argv", ["captioning", "leaderboard"])
    assert run_command("leaderboard") == status
    assert capsys.readouterr() == ("", said)
