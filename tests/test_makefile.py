"""The Makefile: what it lists, and how it sets up .venv (with stand-ins for the tools)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
TARGETS = (
    "setup", "demo", "train", "test", "test-oldest", "lint", "format", "types", "docs",
    "leaderboard", "dist", "clean",
)  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Both write down how they are called; each makes what the real one would make of .venv.
PYTHON = """#!/bin/sh
echo "python $*" >> "$LOG"
case "$1 $2" in
    "-c import os"*) echo "$0" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m mypy") echo "what mypy says"; exit "${MYPY_STATUS:-0}" ;;
    "-m pytest") exit "${PYTEST_STATUS:-0}" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
case "$1" in
    venv) mkdir -p .venv/bin && cp "$(dirname "$0")/python3.11" .venv/bin/python ;;
    pip) exit "${UV_PIP_STATUS:-0}" ;;
esac
"""
BROKEN_UV = "#!/bin/sh\nexit 127\n"


def make(*arguments: str, folder: Path = REPOSITORY, **environment: str):
    # The flags of an outer `make test` are none of this one's business.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    inherited.pop("PYTHON", None)
    return subprocess.run(
        ("make", *arguments),
        cwd=folder,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


class Workshop:
    """A folder with the Makefile and a lock, whose python and uv are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a clone"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.folder.mkdir()
        self.bin.mkdir()
        shutil.copy(REPOSITORY / "Makefile", self.folder)
        (self.folder / "requirements.lock").touch()
        self.tool("python3.11", PYTHON)

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def setup(self, **environment: str):
        """Run ``make setup``; returns its result and the tools' calls."""
        self.log.write_text("")
        path = f"{self.bin}:/usr/bin:/bin"
        result = make("setup", folder=self.folder, PATH=path, LOG=str(self.log), **environment)
        return result, [line for line in self.log.read_text().splitlines() if " -c " not in line]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_bare_make_lists_every_target_with_a_line() -> None:
    listed = make().stdout
    for target in TARGETS:
        assert re.search(rf"^  {target} +\w.+$", listed, re.MULTILINE)


def test_every_target_that_is_listed_or_documented_exists() -> None:
    listed = re.findall(r"^  ([\w-]+)", make().stdout, re.MULTILINE)
    pages = (
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
        *(REPOSITORY / "docs").glob("*.md"),
    )
    documented = [
        target for page in pages for target in re.findall(r"\bmake ([a-z-]+)`", page.read_text())
    ]
    for target in {*listed, *documented}:
        result = make("--dry-run", target)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("uv", "installer"), [(UV, "uv pip"), (BROKEN_UV, "python -m pip")])
def test_setup_uses_uv_where_it_works_and_pip_where_not(
    workshop: Workshop, uv: str, installer: str
) -> None:
    workshop.tool("uv", uv)
    result, calls = workshop.setup()
    assert result.returncode == 0, result.stderr
    assert any(
        call.startswith(installer) and "--require-hashes -r requirements.lock" in call
        for call in calls
    )
    end = "editable_mode=compat -e ."  # else a clone called captioning hides the package beside it
    assert any(call.startswith(installer) and call.endswith(end) for call in calls)
    assert workshop.setup()[1] == []


def test_newer_lock_is_installed_into_the_environment_that_is_there(workshop: Workshop) -> None:
    workshop.tool("uv", UV)
    workshop.setup()
    mine = workshop.folder / ".venv" / "mine"
    mine.touch()
    stamp = (workshop.folder / ".venv" / ".installed").stat().st_mtime
    os.utime(workshop.folder / "requirements.lock", (stamp + 10, stamp + 10))
    _, calls = workshop.setup()
    assert any("-r requirements.lock" in call for call in calls)
    assert mine.exists()


def test_interrupted_installation_is_made_anew(workshop: Workshop) -> None:
    workshop.tool("uv", UV)
    result, _ = workshop.setup(UV_PIP_STATUS="1")
    assert result.returncode != 0
    half_made = workshop.folder / ".venv" / "half-made"
    half_made.touch()
    result, calls = workshop.setup()
    assert result.returncode == 0
    assert any(call.startswith("uv venv") for call in calls)
    assert not half_made.exists()
    assert not (workshop.folder / ".venv-unfinished").exists()


@pytest.mark.parametrize(("types", "tests"), [("0", "0"), ("1", "0"), ("0", "1")])
def test_make_test_fails_where_types_or_tests_do(
    workshop: Workshop, types: str, tests: str
) -> None:
    """Types are checked beside the tests, and what mypy says comes last, also where these fail."""
    status = {"MYPY_STATUS": types, "PYTEST_STATUS": tests, "LOG": str(workshop.log)}
    path = f"{workshop.bin}:/usr/bin:/bin"
    result = make("test", "ARGS=-x -v", folder=workshop.folder, PATH=path, **status)
    assert (result.returncode == 0) == (types == tests == "0")
    assert result.stdout.splitlines()[-1] == "what mypy says"
    calls = workshop.log.read_text()
    assert "python -m ruff check ." in calls
    assert ("python -m mypy -p hydra_plugins" in calls) == (types == "0")
    (tested,) = (line for line in calls.splitlines() if line.startswith("python -m pytest"))
    assert tested.endswith("-x -v")


def test_wrong_interpreter_is_told_in_a_sentence_and_touches_nothing(workshop: Workshop) -> None:
    result, calls = workshop.setup(PYTHON="/bin/false")
    assert result.returncode != 0
    assert "/bin/false is not a Python of 3.11 or newer: install one" in result.stderr
    assert calls == []
    assert not (workshop.folder / ".venv").exists()


def test_clean_keeps_runs_data_and_environment(workshop: Workshop) -> None:
    kept = ["runs/a/__pycache__/x", "data/x", ".venv/lib/__pycache__/x", "captioning/x.py"]
    removed = ["captioning/a/__pycache__/x.pyc", ".mypy_cache/x", "captioning.egg-info/x"]
    for name in kept + removed:
        (workshop.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (workshop.folder / name).touch()
    assert make("clean", folder=workshop.folder).returncode == 0
    assert [name for name in kept if not (workshop.folder / name).exists()] == []
    assert [name for name in removed if (workshop.folder / name).exists()] == []
