"""Versions and commit of the code that made a run's figures."""

import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from captioning.reporting.provenance import commit, versions


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert found["python"].startswith("3.")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of one commit, made without an identity of the machine's user."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    try:
        git(folder, "init", "--quiet")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git(folder, "add", "code.py")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    git(folder, *identity, "commit", "--quiet", "--message=first")
    git(folder, *identity, "tag", "--annotate", "--message=first", "v1")
    return folder


def git(folder: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_DIR")}
    return subprocess.run(
        ("git", *arguments), cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_is_the_checkouts_and_says_when_it_is_edited(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))  # as in a hook of another repository
    assert commit(checkout / "code.py") == head
    (checkout / "code.py").write_text("x = 2\n")
    assert commit(checkout / "code.py") == f"{head}-dirty"


def test_no_commit_outside_a_checkout_or_without_git(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "site-packages").mkdir()
    (checkout / "site-packages" / "results.py").write_text("")
    (tmp_path / "results.py").write_text("")
    assert commit(checkout / "site-packages" / "results.py") is None
    assert commit(tmp_path / "results.py") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(checkout / "code.py") is None
