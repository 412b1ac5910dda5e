"""Names of files on the command line, as Hydra then reads them."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tiny import ODD_FILE_NAMES

from captioning.cli.literal_values import take_literally


@pytest.mark.parametrize("name", ODD_FILE_NAMES)
def test_hydra_is_given_names_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: str) -> list[Any]:
        monkeypatch.setattr(sys, "argv", ["caption.py", *arguments])
        take_literally("images", "out")
        overrides = OverridesParser.create().parse_overrides(sys.argv[1:])
        return [OmegaConf.create({"value": each.value()}).value for each in overrides]

    assert read(f"images={name}", "out=null", "batch_size=3") == [name, None, 3]
    if "'" not in name and "$" not in name and not name.endswith("\\"):  # quoted for Hydra
        assert read(f"images='{name}'", f'out="{name}"') == [name, name]


def test_a_plain_name_needs_no_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be in the command that ``results.json`` and a model card show."""
    given = ["train.py", "init_from=flickr8k-vgg16-attn", "data.root=photos"]
    monkeypatch.setattr(sys, "argv", [*given])
    take_literally("init_from", "data.root")
    assert sys.argv == given


def test_hydra_is_given_lists_of_files_whose_names_may_have_commas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1,seed=2").mkdir()
    for name in ("lr=0.1,seed=2/best.ckpt", "[odd,b.ckpt]"):
        Path(name).touch()

    def read(value: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["caption.py", f"ckpt={value}"])
        take_literally("ckpt", lists=["ckpt"])
        (override,) = OverridesParser.create().parse_overrides(sys.argv[1:])
        found = override.value()
        return [str(each) for each in found] if isinstance(found, list) else found

    assert read("[a.ckpt,2024/b.ckpt]") == ["a.ckpt", "2024/b.ckpt"]
    assert read("[ a.ckpt, Straße (1).ckpt ]") == ["a.ckpt", "Straße (1).ckpt"]
    assert read("[x=1.ckpt,lr=0.1,seed=2/best.ckpt,c]") == [
        "x=1.ckpt",
        "lr=0.1,seed=2/best.ckpt",
        "c",
    ]
    assert read("['a,1.ckpt',\"b,2.ckpt\"]") == ["a,1.ckpt", "b,2.ckpt"]
    assert read("[~/a.ckpt]") == [str(Path.home() / "a.ckpt")]
    assert read("[]") == []
    assert read("[odd,b.ckpt]") == "[odd,b.ckpt]"  # a file of this name
    assert read("a,b.ckpt") == "a,b.ckpt"
    assert read("[" + "x" * 5000 + "]") == ["x" * 5000]
