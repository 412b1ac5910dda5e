"""Which classes a checkpoint may name: none is imported before it is allowed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.optim import Optimizer

from captioning.decoding import Decoding, Greedy
from captioning.models.decoders.base import Decoder
from captioning.support import trust
from captioning.support.build import build, import_class
from captioning.support.errors import CaptioningError


@pytest.fixture(autouse=True)
def _nothing_named_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_named_by_user", set())


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Modules that can be imported: a file, and one in a package. Each has a Decoding."""
    source = "import captioning.decoding\nclass Own(captioning.decoding.Greedy): ...\n"
    (tmp_path / "helpers_of_a_stranger.py").write_text(source)
    (tmp_path / "package_of_a_stranger").mkdir()
    (tmp_path / "package_of_a_stranger" / "inner.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["helpers_of_a_stranger", "package_of_a_stranger", "package_of_a_stranger.inner"]
    yield names
    for name in names:
        sys.modules.pop(name, None)


HELPERS = "helpers_of_a_stranger.Own"
INNER = "package_of_a_stranger.inner.Own"


def refused(path: str, base: type = Decoding, *trusted: str) -> str:
    """The message by which a checkpoint's path is refused."""
    before = set(sys.modules)
    with trust.classes_of_a_checkpoint(trusted), pytest.raises(CaptioningError) as error:
        import_class(path, base, "part._target_")
    assert set(sys.modules) == before, "something was imported"
    return str(error.value)


def test_the_parts_of_the_package_and_torchs_optimisers_are_allowed() -> None:
    with trust.classes_of_a_checkpoint(()):
        assert import_class("captioning.decoding.Greedy", Decoding, "decoding") is Greedy
        for path in ("torch.optim.AdamW", "torch.optim.rmsprop.RMSprop"):
            assert issubclass(import_class(path, Optimizer, "optimizer"), Optimizer)


def test_a_class_of_a_stranger_is_refused_without_an_import(strangers: list[str]) -> None:
    for path, package in ((HELPERS, strangers[0]), (INNER, strangers[1])):
        message = refused(path)
        assert message.startswith(f"part._target_={path} is not a class of captioning")
        assert f"give trust={package}." in message
    assert "trust=antigravity" in refused("antigravity.Part", Decoder)
    # The name of a trusted package is no prefix of letters.
    assert "trust=helpers_of_a_stranger" in refused(HELPERS, Decoding, "helpers", "helpers_of")
    assert "trust=package_of_a_stranger" in refused(
        INNER, Decoding, "package_of_a_stranger.other", "inner"
    )


@pytest.mark.parametrize(
    "path",
    [
        "captioning.apps.demo.main",
        "captioning.cli.callbacks.Sweep",
        "captioning.__main__.main",
        "captioningx.Part",
        "captioning.decodingx.Part",
        "torch.hub.load",
        "torch.optimx.Part",
        "captioning.models..os.system",
        "..os.system",
        "os.system\n",
        " os.system",
        "os",
        "",
        "a" * 999,
    ],
)
def test_a_path_of_another_kind_is_refused_without_an_import(path: str) -> None:
    assert len(refused(path)) < 600


def test_a_class_of_a_trusted_package_is_imported(strangers: list[str]) -> None:
    for path, trusted in ((HELPERS, strangers[0]), (INNER, strangers[1]), (INNER, strangers[2])):
        with trust.classes_of_a_checkpoint([trusted]):
            assert issubclass(import_class(path, Decoding, "decoding"), Greedy)
            with pytest.raises(CaptioningError, match=r"is not a Decoder"):
                import_class(path, Decoder, "model")


def test_a_class_that_the_user_has_named_is_allowed_afterwards(strangers: list[str]) -> None:
    build(HELPERS, Decoding, "decoding")
    with trust.classes_of_a_checkpoint(()):
        assert isinstance(build(HELPERS, Decoding, "decoding"), Greedy)
    assert "give trust=package_of_a_stranger" in refused(INNER)


def test_what_a_checkpoint_was_refused_or_allowed_is_not_the_users_own_name(
    strangers: list[str],
) -> None:
    refused(HELPERS)
    with trust.classes_of_a_checkpoint([strangers[0]]):
        build(HELPERS, Decoding, "decoding")
    assert "trust=helpers_of_a_stranger" in refused(HELPERS)


def test_packages_are_named_in_a_text_or_a_list() -> None:
    assert trust.packages(None) == trust.packages("") == trust.packages([]) == ()
    assert trust.packages("my_package") == trust.packages(["my_package"]) == ("my_package",)
    assert trust.packages("a.b, c") == trust.packages(("a.b", "c")) == ("a.b", "c")
    for wrong in ("*", "./helpers.py", "a b", "a.", ["a-b"]):
        with pytest.raises(CaptioningError, match=r"trust=.*give the name of a Python package"):
            trust.packages(wrong)


def test_a_name_that_was_no_part_is_not_the_users_afterwards() -> None:
    """A mistake of the user's does not open the way for a checkpoint that names the same."""
    with pytest.raises(CaptioningError, match="is not a Decoder"):
        import_class("os.system", Decoder, "model._target_")
    assert "os.system is not a class of captioning" in refused("os.system", Decoder)
