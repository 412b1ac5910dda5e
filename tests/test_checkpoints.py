"""Checkpoints that are damaged, strange or a stranger's: each is refused in one sentence."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from PIL import Image

from captioning.apps import demo
from captioning.captioner import Captioner
from captioning.checkpoints import read_checkpoint
from captioning.support.errors import CaptioningError
from faults import checkpoints as faults
from faults.outcome import SUCCESSES

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]

Content = dict[str, Any]


def contain_encoder(content: Content, more: float = 0.0) -> None:
    """Put weights of the encoder into a checkpoint, as where they came from a file."""
    weights = tiny.Encoder().state_dict()
    content["encoder"]["state_dict"] = {name: value + more for name, value in weights.items()}


def name_a_file(content: Content) -> None:
    content["hyper_parameters"]["encoder"]["weights"] = "/etc/hostname"


def save(captioner: Captioner, path: Path) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    words = [f"word{number}" for number in range(9)]
    decoder = "captioning.models.decoders.attn_lstm.AttentionLSTM"
    model = {"_target_": decoder, "hidden_dim": 12, "embed_dim": 8, "attention_dim": 6}
    captioner = Captioner(words, encoder=tiny.ENCODER, model=model)
    return save(captioner, tmp_path_factory.mktemp("saved") / "best.ckpt")


@pytest.fixture
def changed(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the checkpoint with a change of its content."""

    def write(change: Callable[[Content], Any]) -> Path:
        content = torch.load(saved, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CaptioningError) as error:
        Captioner.load_from_checkpoint(path, **options)
    message = str(error.value)
    assert message.startswith(f"ckpt={path}")
    assert "\n" not in message
    assert len(message) < 1500
    return message


# Files


def test_each_flipped_bit_of_a_tensor_is_noticed(saved: Path, tmp_path: Path) -> None:
    """Also by a Trainer that is given the file as ``ckpt_path``, which Lightning reads itself."""
    whole, path = saved.read_bytes(), tmp_path / "flipped.ckpt"
    weight = torch.load(saved, weights_only=True)["state_dict"]["decoder.embedding.weight"]
    start = whole.index(weight.numpy().tobytes())
    for place in range(start, start + weight.nbytes, 29):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        path.write_bytes(data)
        message = refusal(path)
        assert "does not match its checksum" in message
        assert "use another checkpoint" in message
    captioner = Captioner.load_from_checkpoint(saved)
    with pytest.raises(CaptioningError, match=r"ckpt_path=.*flipped.ckpt.*checksum"):
        tiny.trainer(tmp_path).test(captioner, dataloaders=[], ckpt_path=str(path))


def test_a_file_that_is_cut_short_at_any_length_is_called_so(saved: Path, tmp_path: Path) -> None:
    whole, path = saved.read_bytes(), tmp_path / "cut.ckpt"
    lengths = {*range(100), *range(len(whole) - 100, len(whole))}
    for length in {*lengths, *random.Random(0).sample(range(len(whole)), 100)}:
        path.write_bytes(whole[:length])
        assert refusal(path) == f"ckpt={path}: not a checkpoint, or cut short."


def test_a_folder_is_called_a_folder_and_its_checkpoint_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("is a folder: name a file in it.")
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert refusal(tmp_path).endswith(f"name a file in it, such as {best}.")
    assert refusal(tmp_path / "checkpoints").endswith(f"such as {best}.")
    with pytest.raises(CaptioningError, match=r"resume=.* is a folder: .*checkpoints/last.ckpt"):
        read_checkpoint(tmp_path, "resume")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe or a device" in refusal(tmp_path / "pipe")
    assert "no such file" in refusal(tmp_path / "none")
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("x" * 300))


# Contents


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("run"), "the name of its run is missing"),
        (lambda c: c["run"].pop("name"), "the name of its run is missing"),
        (lambda c: c.update(run=[]), "the run of this checkpoint is a list"),
        (lambda c: c.pop("noise_seed"), "noise_seed is missing"),
        (lambda c: c.pop("state_dict"), "has no state_dict"),
        (lambda c: c["hyper_parameters"].pop("vocabulary"), "no list of words"),
        (lambda c: c["hyper_parameters"].update(vocabulary=["a", 1]), "no list of words"),
        (lambda c: c["hyper_parameters"].update(vocabulary=["a", "a"]), "the word 'a' twice"),
        (lambda c: c["hyper_parameters"].update(more=1), "hyper_parameters.more: Captioner has no"),
        (lambda c: c["hyper_parameters"].update(encoder=3), "hyper_parameters.encoder=3"),
        (lambda c: c["hyper_parameters"]["model"].update(more=1), "model.more: AttentionLSTM has"),
        (lambda c: c["hyper_parameters"]["model"].update(hidden_dim="x"), "model.hidden_dim=x"),
        (lambda c: c["hyper_parameters"]["model"].update(hidden_dim=13), "do not belong together"),
        (lambda c: c["hyper_parameters"]["model"].update(hidden_dim=20_000), "a larger model than"),
        (lambda c: c["hyper_parameters"]["model"].update(hidden_dim=10**9), "model"),
        (lambda c: c["hyper_parameters"]["model"].update(dropout={}), "model.dropout={}"),
        (lambda c: c["hyper_parameters"]["model"].update(gate=10**100), "number that is too large"),
        (lambda c: c["state_dict"].update(more=torch.ones(1)), "the weights have more"),
        (
            lambda c: c["state_dict"].pop("decoder.embedding.weight"),
            "lack decoder.embedding.weight",
        ),
        (lambda c: c["state_dict"]["decoder.embedding.weight"].fill_(torch.nan), "are no numbers"),
        (lambda c: c["state_dict"]["decoder.embedding.weight"].fill_(torch.inf), "are no numbers"),
        (lambda c: c["state_dict"].update(more=[1]), "no tensors with names"),
        (lambda c: c["encoder"].update(state_dict={"a": torch.ones(1)}), "the weights have a"),
        (lambda c: contain_encoder(c, more=1), "other weights than those of its fingerprint"),
        (lambda c: c["encoder"].update(fingerprint="0"), "trained with other weights of tiny than"),
        (name_a_file, "lacks the weights of its encoder, and names a file (/etc/hostname)"),
        (lambda c: c["encoder"].pop("weights_source"), "weights_source of its encoder is missing"),
    ],
)
def test_a_checkpoint_of_another_shape_is_one_sentence(
    changed: Callable[..., Path], change: Callable[[Content], Any], said: str
) -> None:
    assert said in refusal(changed(change))


def test_an_encoder_goes_by_name_or_in_the_file_if_it_came_from_one(
    saved: Path, changed: Callable[..., Path], tmp_path: Path
) -> None:
    """The file may be gone when the checkpoint is loaded, and loading does not look for it."""
    assert torch.load(saved, weights_only=True)["encoder"]["state_dict"] == {}
    other = {name: value + 1 for name, value in tiny.Encoder().state_dict().items()}
    torch.save(other, tmp_path / "mine.pth")
    words, encoder = ["a", "dog"], tiny.ENCODER | {"weights": str(tmp_path / "mine.pth")}
    first = Captioner(
        words, encoder=encoder, model={"_target_": "lstm", "hidden_dim": 12, "embed_dim": 8}
    )
    path = save(first, tmp_path / "own.ckpt")
    (tmp_path / "mine.pth").unlink()
    again = save(Captioner.load_from_checkpoint(path), tmp_path / "again.ckpt")
    for each in (path, again):
        loaded = Captioner.load_from_checkpoint(each).encoder
        assert all(torch.equal(value, other[name]) for name, value in loaded.state_dict().items())
    # Checkpoints of earlier versions contain weights that have a name.
    earlier = save(Captioner.load_from_checkpoint(changed(contain_encoder)), tmp_path / "old.ckpt")
    assert torch.load(earlier, weights_only=True)["encoder"]["state_dict"] == {}
    Captioner.load_from_checkpoint(earlier)


def test_values_without_end_are_refused_at_once(changed: Callable[..., Path]) -> None:
    doubled: Any = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    assert "values" in refusal(changed(lambda c: c["run"].update(config={"a": doubled})))
    endless: list[Any] = []
    endless.append(endless)
    path = changed(lambda c: c["hyper_parameters"]["model"].update(dropout=endless))
    assert "nested too deeply" in refusal(path)


def test_the_checkpoint_itself_loads_as_it_was_saved(changed: Callable[..., Path]) -> None:
    captioner = Captioner.load_from_checkpoint(changed(lambda c: None))
    assert captioner.run == {"name": "captioner", "seed": 0}
    assert captioner.encoder.weights_source.startswith("random numbers")


@pytest.mark.parametrize("seed", [5])
def test_faults_of_each_kind_are_loaded_right_or_refused(tmp_path: Path, seed: int) -> None:
    found = list(faults.run(15, tmp_path, seed))
    assert len({each.kind for each in found}) == 15
    assert [each for each in found if each.outcome not in SUCCESSES] == []


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("optimizer_states"), "weights alone, without the state of"),
        (
            lambda c: c.update(optimizer_states=3),
            "the optimizer_states of this checkpoint is a int",
        ),
        (
            lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"),
            "lr of the optimiser",
        ),
        (lambda c: c["lr_schedulers"][0].update(last_epoch={}), "last_epoch of the optimiser or"),
        (lambda c: c["loops"].pop("fit_loop"), "KeyError: 'fit_loop'"),
    ],
)
def test_a_training_whose_state_is_odd_does_not_go_on(
    tmp_path: Path, change: Callable[[Content], Any], said: str
) -> None:
    path = tmp_path / "last.ckpt"
    faults._train(path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(CaptioningError) as error:
        faults._resume(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


# Classes


def test_the_commands_import_a_strangers_class_only_if_its_package_is_trusted(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file ``helpers.py`` lies in the folder in which the command is given."""
    content = torch.load(saved, weights_only=True)
    content["hyper_parameters"]["encoder"]["_target_"] = "helpers.Own"
    torch.save(content, tmp_path / "own.ckpt")
    (tmp_path / "helpers.py").write_text(
        "open('imported', 'w').close()\nfrom tiny import Encoder\nclass Own(Encoder): ...\n"
    )
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "helpers", None)  # so that it is forgotten after the test
    del sys.modules["helpers"]

    def caption(*further: str) -> object:
        argv = ["caption.py", "ckpt=own.ckpt", "images=red.png", "device=cpu", *further]
        monkeypatch.setattr(sys, "argv", argv)
        return tiny.status_of_script("caption.py")

    assert caption() == 1
    refused = capsys.readouterr().err
    assert refused.startswith("error: ckpt=own.ckpt: encoder._target_=helpers.Own is not a")
    assert "give trust=helpers." in refused
    assert not (tmp_path / "imported").exists()
    assert not caption("trust=helpers")
    assert capsys.readouterr().out.startswith("red.png\t")
    assert (tmp_path / "imported").exists()


def test_the_page_and_python_need_the_same_trust(
    changed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "part_of_mine.py").write_text(
        "from captioning.models.attention.additive import AdditiveAttention\n"
        "class Mine(AdditiveAttention): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = changed(lambda c: c["hyper_parameters"]["model"].update(attention="part_of_mine.Mine"))
    assert "give trust=part_of_mine." in refusal(path)
    assert demo.main([f"ckpt={path}", "port=0"]) == 1
    assert "give trust=part_of_mine." in capsys.readouterr().err
    assert "part_of_mine" not in sys.modules
    with pytest.raises(CaptioningError, match=r"trust=no package: give the name"):
        Captioner.load_from_checkpoint(path, trust="no package")
    loaded = Captioner.load_from_checkpoint(path, trust="part_of_mine")
    assert type(loaded.decoder.attention).__name__ == "Mine"
    sys.modules.pop("part_of_mine")


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_what_only_training_would_import_is_checked_at_once(
    changed: Callable[..., Path], key: str
) -> None:
    path = changed(lambda c: c["hyper_parameters"][key].update(_target_="helpers.Own"))
    assert f"{key}._target_=helpers.Own is not a class of captioning" in refusal(path)
