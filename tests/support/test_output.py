"""Commands whose output nobody reads any more, or cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMAND = """
import logging, sys
from rich.console import Console
from captioning.support.output import lasting_output
with lasting_output():
    logging.basicConfig(stream=sys.{stream}, force=True)
    for number in range(20000):
        print("a line", number, file=sys.{stream}, flush=number % 100 == 0)
        logging.warning("another")
    Console(file=sys.{stream}).print("a table")
    open("done", "w").close()
"""


def command(stream: str, shell: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``PYTHON -c COMMAND`` in a shell line; its status is the last line of stderr."""
    (folder / "command.py").write_text(COMMAND.format(stream=stream))
    return subprocess.run(
        ["bash", "-c", f"{{ {sys.executable} command.py; echo $? >status; }} {shell}"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "shell"), [("stdout", "| head -1"), ("stderr", "2>&1 | head -1")]
)
def test_a_command_outlives_its_reader(stream: str, shell: str, tmp_path: Path) -> None:
    ended = command(stream, shell, tmp_path)
    assert (ended.stdout, ended.stderr) == ("a line 0\n", "")
    assert (tmp_path / "done").exists()
    assert (tmp_path / "status").read_text() == "0\n"


def test_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    ended = command("stdout", ">/dev/full", tmp_path)
    assert ended.stderr == "error: the output cannot be written: No space left on device.\n"
    assert (tmp_path / "done").exists()
    assert (tmp_path / "status").read_text() == "1\n"


def test_help_is_cut_quietly(tmp_path: Path) -> None:
    commands = ("train.py", "eval.py", "caption.py", "-m captioning leaderboard")
    lines = [f"{command} --help" for command in (*commands, "-m captioning train", "-m captioning")]
    pipes = [f"{sys.executable} {line} | head -1" for line in lines]
    pipes += [f"{sys.executable} train.py --cfg job | true"]  # whose output nobody reads at all
    ended = subprocess.run(
        ["bash", "-c", "set -o pipefail; " + "; ".join(f"{pipe}; echo $? >&2" for pipe in pipes)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.stderr.split() == ["0"] * len(pipes)
    assert len(ended.stdout.splitlines()) == len(lines)
