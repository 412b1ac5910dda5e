"""The files of the user's own classes: which are found, and that an edit is noticed."""

import hashlib
from pathlib import Path

import pytest

from captioning.support.own_code import own_code

SETTINGS = {
    "model": {"_target_": "mine.parts.Decoder", "hidden_dim": 3, "dropout": None},
    "callbacks": [{"_target_": "my_callback.Stop"}],
    "encoder": {"layer": "features.8", "weights": "mine/parts.pth"},
    "objective": {"_target_": "captioning.objectives.CrossEntropy"},
    "optimizer": {"_target_": "torch.optim.AdamW"},
    "scheduler": "mine.parts.Nothing",
}


def test_own_classes_are_found_and_an_edit_changes_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, library = tmp_path / "mine", tmp_path / "lib" / "site-packages"
    package.mkdir()
    library.mkdir(parents=True)
    (package / "parts.py").write_text("class Decoder: ...")
    (tmp_path / "my_callback.py").write_text("from mine.parts import Decoder as Stop")
    (library / "installed.py").write_text("class Part: ...")
    monkeypatch.syspath_prepend(library)
    settings = SETTINGS | {"data": {"layout": "installed.Part"}}

    found = own_code(settings, start=tmp_path)
    digest = hashlib.sha256(b"class Decoder: ...").hexdigest()
    assert found.keys() == {"mine.parts.Decoder", "my_callback.Stop"}
    assert digest.startswith(found["mine.parts.Decoder"])
    assert own_code({}, settings, start=tmp_path) == found
    assert own_code(settings) == {}  # in another folder

    (package / "parts.py").write_text("class Decoder: edited = True")
    edited = own_code(settings, start=tmp_path)
    assert edited["mine.parts.Decoder"] != found["mine.parts.Decoder"]
    assert edited["my_callback.Stop"] == found["my_callback.Stop"]
