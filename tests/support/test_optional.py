"""Optional packages of other libraries are left out only where nothing can need them."""

import subprocess
import sys
from importlib import metadata

import pytest

from captioning.support.optional import as_if_not_installed, has_foreign_class


def test_within_the_block_a_package_is_not_found_and_others_are() -> None:
    with as_if_not_installed("numpy"):
        with pytest.raises(metadata.PackageNotFoundError):
            metadata.version("numpy")
        assert metadata.version("torch")
    assert metadata.version("numpy")


def test_a_class_from_outside_is_found_at_any_depth() -> None:
    own = {"_target_": "captioning.models.decoders.lstm.LSTM", "size": 3}
    foreign = {"_target_": "my_package.Callback"}
    assert not has_foreign_class({"model": own, "optimizer": {"_target_": "torch.optim.AdamW"}})
    assert has_foreign_class({"model": own, "callbacks": {"mine": foreign}})
    assert has_foreign_class({"parts": [own, foreign]})


@pytest.mark.parametrize(("settings", "imported"), [("{}", False), ("{'trust': 'mine'}", True)])
def test_lightning_comes_without_transformers_unless_they_may_be_needed(
    settings: str, imported: bool
) -> None:
    pytest.importorskip("transformers")
    script = (
        "import sys; from captioning.support.optional import import_lightning; "
        f"import_lightning({settings}); "
        "print('pytorch_lightning' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", str(imported)]
