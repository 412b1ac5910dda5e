"""Models to give away: what their folder holds, that it is read as it was written, and by whom."""

import json
import os
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import tiny
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from captioning.apps import export
from captioning.captioner import Captioner
from captioning.checkpoints import read_checkpoint
from captioning.decoding import Greedy
from captioning.ensembles import load_captioner
from captioning.pretrained import places
from captioning.pretrained.folder import FROZEN
from captioning.reporting.results import read_results
from captioning.support import trust
from captioning.support.errors import CaptioningError
from captioning.training.initialization import initialize, read_initial
from captioning.training.lineage import started_from, taught_by
from captioning.training.resume import check_resumable
from captioning.training.teacher import load_teacher

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "docs" / "results" / "flickr8k" / "attn_lstm_seed0" / "results.json"
WORDS = [f"word{number}" for number in range(30)]
NAMES = {"model.safetensors", "config.json", "vocabulary.json", "README.md"}

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


def made(**settings: Any) -> Captioner:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 12, "embed_dim": 8}
    model = {"_target_": "attn_lstm", "attention_dim": 6, **sizes}
    captioner = Captioner(WORDS, **{"encoder": tiny.ENCODER, "model": model} | settings)
    for parameter in captioner.decoder.parameters():  # captions vary with the image
        torch.nn.init.normal_(parameter, std=0.5)
    return captioner.eval()


def checkpoint(captioner: Captioner, path: Path) -> Path:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.strategy.connect(captioner)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    made().save_pretrained(folder, results=read_results(RECORDED), license="cc-by-4.0")
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder in which a function has changed the content of a file."""

    def write(name: str = "config.json", change: Callable[[Any], Any] = lambda c: None) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        for path in exported.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if name == "model.safetensors":
            weights = load_file(folder / name)
            change(weights)
            save_file(weights, folder / name)
        elif name:
            content = json.loads((folder / name).read_text())
            change(content)
            (folder / name).write_text(json.dumps(content))
        return folder

    return write


def refusal(folder: Path | str) -> str:
    with pytest.raises(CaptioningError) as error:
        Captioner.load_from_checkpoint(folder)
    message = str(error.value)
    assert message.startswith(f"ckpt={folder}")
    assert "\n" not in message
    return message


# What is written


def test_the_folder_has_the_decoder_in_half_precision_and_the_encoder_by_name(
    exported: Path,
) -> None:
    captioner = made()
    assert {path.name for path in exported.iterdir()} == NAMES
    weights = load_file(exported / "model.safetensors")
    expected = captioner.state_dict()
    assert weights.keys() == expected.keys()
    for name, array in weights.items():
        assert array.dtype == np.float16
        assert np.array_equal(array, expected[name].numpy().astype(np.float16))
    config = json.loads((exported / "config.json").read_text())
    assert config["encoder"]["fingerprint"] == captioner.encoder.fingerprint
    assert config["settings"]["encoder"] == tiny.ENCODER
    assert json.loads((exported / "vocabulary.json").read_text())["words"] == WORDS


def test_single_precision_is_exact_and_a_shared_matrix_is_written_once(tmp_path: Path) -> None:
    captioner = made(model={"_target_": "lstm", "hidden_dim": 12, "embed_dim": 8,
                            "tie_embeddings": True})  # fmt: skip
    captioner.save_pretrained(tmp_path / "model", half=False)
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert "decoder.embedding.weight" in names
    assert "decoder.output_words.weight" not in names
    loaded = Captioner.from_pretrained(tmp_path / "model")
    assert loaded.decoder.output_words.weight is loaded.decoder.embedding.weight
    for name, value in captioner.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_an_encoder_that_was_trained_or_came_from_a_file_is_contained(tmp_path: Path) -> None:
    """Nothing in the folder says where anything lay on the computer that wrote it."""
    other = {name: value + 1 for name, value in tiny.Encoder().state_dict().items()}
    torch.save(other, tmp_path / "mine.pth")
    of_file = made(encoder=tiny.ENCODER | {"weights": str(tmp_path / "mine.pth")})
    data = {"root": str(tmp_path), "cache": str(tmp_path), "min_count": 5}
    of_file.run = {"name": "mine", "seed": 3, "config": {"data": data, "resume": str(tmp_path)}}
    trained = made(encoder=tiny.ENCODER | {"trainable": True})
    for captioner in (of_file, trained):
        folder = tmp_path / "model"
        captioner.save_pretrained(folder)
        for name in NAMES - {"model.safetensors"}:
            assert str(tmp_path) not in (folder / name).read_text()
        (tmp_path / "mine.pth").unlink(missing_ok=True)
        loaded = Captioner.from_pretrained(folder).encoder.state_dict()
        for name, value in captioner.encoder.state_dict().items():
            torch.testing.assert_close(loaded[name], value, rtol=1e-3, atol=1e-6)
    assert not any(name.startswith(FROZEN) for name in load_file(folder / "model.safetensors"))
    made().save_pretrained(tmp_path / "whole", encoder=True)
    found = load_file(tmp_path / "whole" / "model.safetensors")
    assert found[f"{FROZEN}features.0.weight"].dtype == np.float32  # it keeps its fingerprint
    Captioner.from_pretrained(tmp_path / "whole")


def test_the_card_has_scores_intervals_data_and_licence_as_the_hub_reads_them(
    exported: Path,
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(exported / "README.md")
    recorded = read_results(RECORDED)
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "captioning"
    found = {(each.dataset_split, each.metric_name): each for each in card.data.eval_results}
    assert found["test", "CIDEr"].metric_value == round(recorded.scores["test"]["CIDEr"], 4)
    assert found["test", "BLEU-4"].metric_type == "bleu"
    low, high = (f"{100 * each:.1f}" for each in recorded.intervals["test"]["CIDEr"])
    score = f"{100 * recorded.scores['test']['CIDEr']:.1f}"
    assert f"| test | CIDEr | {score} | {low}–{high} |" in card.text
    for part in ("6,000 train", "research and education only", "from_pretrained(", "cc-by-4.0"):
        assert part in card.text


def test_weights_without_a_licence_have_the_terms_of_their_data(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "model"
    made().save_pretrained(folder, results=read_results(RECORDED))
    data = hub.ModelCard.load(folder / "README.md").data
    assert data.license == "other"
    assert data.license_name == "research-and-education-only"
    assert data.license_link == "LICENSE.md"  # the hub takes this name or LICENSE, and no other
    assert "Flickr8k (Hodosh" in (folder / "LICENSE.md").read_text()
    assert data.datasets == ["jxie/flickr8k"]
    assert {"bleu", "meteor", "rouge", "cider"} == set(data.metrics)
    assert {each.dataset_type for each in data.eval_results} == set(data.datasets)
    assert data.language == ["en"]
    # A file that may be the user's own stays, and a licence of one's own needs none.
    (folder / "LICENSE.md").write_text("mine")
    made().save_pretrained(folder, results=read_results(RECORDED))
    assert (folder / "LICENSE.md").read_text() == "mine"
    made().save_pretrained(tmp_path / "free", license="mit")
    assert not (tmp_path / "free" / "LICENSE.md").exists()


def test_a_model_that_was_trained_further_keeps_the_terms_of_its_first_data(tmp_path: Path) -> None:
    tuned = made()
    tuned.run = {**tuned.run, "earlier_data": ["flickr8k"]}
    recorded = read_results(RECORDED)
    own = recorded.data.model_copy(update={"name": "own"})
    command = (
        "python train.py experiment=finetune \"init_from='flickr8k-vgg16-attn'\" data.root=a/b"
    )
    own_results = recorded.model_copy(update={"data": own, "command": command})
    tuned.save_pretrained(tmp_path / "model", results=own_results)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "trained on flickr8k and then on own: " in card
    assert "license_name: research-and-education-only" in card
    assert "started from a model of flickr8k" in card
    assert "experiment=finetune init_from=flickr8k-vgg16-attn data.root=...\n" in card
    assert "research and education only" in (tmp_path / "model" / "LICENSE.md").read_text()
    again = Captioner.from_pretrained(tmp_path / "model")
    assert again.run["earlier_data"] == ["flickr8k"]


def test_a_distilled_model_names_its_teachers_and_keeps_the_terms_of_their_data(
    tmp_path: Path,
) -> None:
    """Two teachers, of which one was tuned on own photographs, and a student of own photographs."""
    paths = []
    for seed, earlier, data in ((1, [], "flickr8k"), (2, ["coco"], "own\nphotographs")):
        teacher = made()
        config = {"data": {"name": data}}
        teacher.run = {"name": "big", "seed": seed, "earlier_data": earlier, "config": config}
        paths.append(str(checkpoint(teacher, tmp_path / f"{seed}.ckpt")))
    taught = made(objective={"_target_": "distillation", "teachers": paths})
    load_teacher(taught)
    recorded = read_results(RECORDED)
    own = recorded.data.model_copy(update={"name": "own"})
    results = recorded.model_copy(update={"data": own})

    def card_of(captioner: Captioner) -> str:
        captioner.save_pretrained(tmp_path / "model", results=results)
        return (tmp_path / "model" / "README.md").read_text()

    teachers = (
        "learned from the word probabilities of big (seed 1, trained on flickr8k); "
        "big (seed 2, trained on coco and then on own photographs)."
    )
    card = card_of(taught)
    assert teachers in card
    assert "license_name: research-and-education-only" in card
    terms = (tmp_path / "model" / "LICENSE.md").read_text()
    for part in ("research and education only", "CC BY 4.0", "terms of the training data apply"):
        assert part in card
        assert part in terms
    # A checkpoint, an exported model, and a model that starts from it, as self-critical training.
    again = Captioner.from_pretrained(tmp_path / "model")
    again = Captioner.load_from_checkpoint(checkpoint(again, tmp_path / "taught.ckpt"))
    assert teachers in card_of(again)
    later = made()
    later.run = started_from(later.run, again.run)
    assert teachers in card_of(later)
    assert taught_by({}, [again.run])["teachers"][1:] == again.run["teachers"]
    # Of a teacher that was given in a notebook, nothing is known.
    assert "other models, not recorded here" in card_of(made(objective="distillation"))
    assert "word probabilities" not in card_of(made())


def test_a_card_without_results_says_so(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "No scores were recorded" in card
    assert "license_name: not-stated" in card


def test_the_command_exports_the_best_checkpoint_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder, captioner = tmp_path / "run", tmp_path / "model", made()
    captioner.load_state_dict({k: v.half().float() for k, v in captioner.state_dict().items()})
    best = checkpoint(captioner, run / "checkpoints" / "best.ckpt")
    (run / "results.json").write_bytes(RECORDED.read_bytes())

    def exported(source: Path, *further: str) -> np.dtype[Any]:
        arguments = [str(source), "--to", str(folder), "--trust", "tiny", *further]
        assert export.main(arguments) == 0
        dtype: np.dtype[Any] = load_file(folder / "model.safetensors")[
            "decoder.embedding.weight"
        ].dtype
        return dtype

    assert exported(run) == np.float16
    assert "12 of 12 captions of drawn scenes are the same" in capsys.readouterr().out
    assert "| test | CIDEr |" in (folder / "README.md").read_text()
    # Where rounding changes a caption, nothing is rounded.
    monkeypatch.setattr(export, "compare", lambda *_: (3, 4, "photographs"))
    assert exported(run) == np.float32
    assert "3 of 4" in capsys.readouterr().out
    assert exported(run, "--precision", "half") == np.float16
    # Other checkpoints of the run are not what was scored.
    last = best.rename(best.with_name("last.ckpt"))
    assert exported(last, "--precision", "single") == np.float32
    assert "no scores" in capsys.readouterr().err
    assert export.main([str(run), "--to", str(folder)]) == 1
    assert "is a folder: name a file in it" in capsys.readouterr().err


# How it is read


def test_the_command_writes_the_captions_of_the_model_that_was_exported(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a folder where nothing else than the folder is left."""
    photographs = {f"{colour}.png": colour for colour in ("red", "green", "grey")}
    captioner, expected = made(), {}
    captioner.load_state_dict({k: v.half().float() for k, v in captioner.state_dict().items()})
    for name, colour in photographs.items():
        picture = Image.new("RGB", (60, 40), colour)
        picture.paste("blue", (5, 5, 25, 20))
        picture.save(tmp_path / name)
        grid = captioner.encoder(captioner.encoder.preprocessing(picture)[None]).half()
        tokens = captioner.generate(grid.float(), Greedy())[0][0].tokens
        expected[name] = captioner.vocabulary.decode(tokens)
    assert len(set(expected.values())) > 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_named_by_user", set())  # as in a fresh process
    monkeypatch.setattr(sys, "argv", [
        "caption.py", f"ckpt={exported}", "images=.", "decoding=greedy", "device=cpu",
        "precision=fp32", "trust=tiny",
    ])  # fmt: skip
    assert not tiny.status_of_script("caption.py")
    printed = capsys.readouterr().out
    assert dict(line.split("\t") for line in printed.splitlines()) == expected


def test_it_stands_wherever_a_checkpoint_does(exported: Path, tmp_path: Path) -> None:
    ensemble = load_captioner([exported, checkpoint(made(), tmp_path / "best.ckpt")])
    assert ensemble.run["name"] == "ensemble of 2"
    initial = read_initial(str(exported), None)
    assert initial is not None
    assert initial.vocabulary.to_list() == WORDS
    fresh = made()
    torch.nn.init.zeros_(fresh.decoder.embedding.weight)
    initialize(fresh, initial)
    expected = Captioner.from_pretrained(exported).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict().items())
    with pytest.raises(CaptioningError, match=r"resume=.*weights alone.*init_from="):
        check_resumable(exported, fresh)


def test_it_is_saved_as_a_checkpoint_and_exported_again(exported: Path, tmp_path: Path) -> None:
    path = checkpoint(Captioner.from_pretrained(exported), tmp_path / "again.ckpt")
    Captioner.load_from_checkpoint(path).save_pretrained(tmp_path / "again")
    first, second = (
        load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "again")
    )
    assert all(np.array_equal(first[name], second[name]) for name in (*first, *second))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", lambda c: c.update(format=3), "config.json: format:"),
        ("config.json", lambda c: c.update(more=1), "config.json: more:"),
        ("config.json", lambda c: c.pop("settings"), "config.json: settings:"),
        ("config.json", lambda c: c["settings"].update(more=1), "Captioner has no"),
        ("config.json", lambda c: c["settings"]["model"].update(hidden_dim=13), "belong together"),
        ("config.json", lambda c: c["settings"]["model"].update(hidden_dim=30_000), "larger model"),
        (
            "config.json",
            lambda c: c["settings"]["encoder"].update(weights="/etc/hostname"),
            "names a file (/etc/hostname), which is not read",
        ),
        ("config.json", lambda c: c["encoder"].update(fingerprint="0"), "other weights of tiny"),
        ("config.json", lambda c: c.update(shared={"a": "b"}), "shared: a is in"),
        ("config.json", lambda c: c["run"].pop("name"), "the name of its run is missing"),
        ("vocabulary.json", lambda c: c["words"].append("word0"), "the word 'word0' twice"),
        ("vocabulary.json", lambda c: c["words"].append("more"), "do not belong together"),
        ("vocabulary.json", lambda c: c.update(words=3), "not a vocabulary"),
        (
            "model.safetensors",
            lambda w: w["decoder.embedding.weight"].fill(np.nan),
            "are no numbers",
        ),
        ("model.safetensors", lambda w: w.pop("decoder.embedding.weight"), "the weights lack"),
    ],
)
def test_a_strange_folder_is_refused_in_one_sentence(
    copy: Callable[..., Path], name: str, change: Callable[[Any], Any], said: str
) -> None:
    assert said in refusal(copy(name, change))


def test_damaged_and_missing_files_are_named(copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:-100], whole[:20], b"\xff" * 100, whole[8:]):
        weights.write_bytes(content)
        assert "model.safetensors cannot be read as safetensors" in refusal(folder)
    weights.unlink()
    os.mkfifo(weights)
    assert "no file model.safetensors" in refusal(folder)
    (folder / "config.json").write_text('{"a":')
    weights.unlink()
    weights.write_bytes(whole)
    assert "config.json" in refusal(folder)
    # Weights of other libraries are pickles, which are not even looked for.
    (folder / "config.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "is a folder" in refusal(folder)


def test_nothing_in_the_folder_is_run(
    copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file of Python beside the weights, nor a class that the configuration names."""
    folder = copy(
        change=lambda c: c["settings"]["model"].update(_target_="modeling_captioning.Mine")
    )
    mark = tmp_path / "was_run"
    (folder / "modeling_captioning.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert "give trust=modeling_captioning" in refusal(folder)
    assert not mark.exists()


# Names


def test_a_name_is_one_of_the_package_and_a_mistyped_one_is_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.DEFAULT in places.shipped()
    assert places.find_model(places.DEFAULT).parent == Path(places.__file__).parent
    assert "did you mean flickr8k-vgg16-attn?" in refusal("flickr8k-vgg16-atn")
    assert "no such file" in refusal("nothing/like-it")  # not a name on the hub, without hf://
    with pytest.raises(CaptioningError, match="revision=v1 is of a model on the Hugging Face hub"):
        Captioner.from_pretrained(places.DEFAULT, revision="v1")
    # A file of that name comes first.
    monkeypatch.chdir(tmp_path)
    made().save_pretrained(places.DEFAULT)
    assert len(read_checkpoint(places.DEFAULT)["hyper_parameters"]["vocabulary"]) == len(WORDS)


@pytest.fixture
def hub_cache(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub's client without a network, whose cache has the model as OWNER/NAME."""
    hub = pytest.importorskip("huggingface_hub")
    commit = "a" * 40
    place = tmp_path / "hub" / "models--someone--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in exported.iterdir():
        (snapshot / path.name).symlink_to(path)  # as the client stores them
    plain = hub.snapshot_download
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda name, **named: plain(
            name, **named, cache_dir=tmp_path / "hub", local_files_only=True
        ),
    )
    return hub


def test_a_model_on_the_hub_is_found_by_its_name(hub_cache: Any, exported: Path) -> None:
    expected = Captioner.from_pretrained(exported).state_dict()
    for found in (
        Captioner.from_pretrained("someone/model"),
        Captioner.from_pretrained("hf://someone/model", revision="a" * 40),
        load_captioner("hf://someone/model"),
    ):
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    with pytest.raises(CaptioningError, match=r"hf://someone/else cannot be fetched \("):
        Captioner.from_pretrained("someone/else")


def test_a_model_is_given_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    """To one that keeps repositories in a folder, and takes the arguments of the true one."""
    hub = pytest.importorskip("huggingface_hub")
    real = hub.HfApi

    class Local:
        def __init__(self, **named: Any) -> None:
            signature(real).bind(**named)

        def create_repo(self, **named: Any) -> None:
            assert named["private"] is True
            signature(real.create_repo).bind(self, **named)
            (tmp_path / "hub" / named["repo_id"]).mkdir(parents=True)

        def upload_folder(self, **named: Any) -> Any:
            signature(real.upload_folder).bind(self, **named)
            target = tmp_path / "hub" / named["repo_id"]
            for path in Path(named["folder_path"]).iterdir():
                (target / path.name).write_bytes(path.read_bytes())
            return type("Commit", (), {"commit_url": f"https://hub/{named['repo_id']}"})

    monkeypatch.setattr(hub, "HfApi", Local)
    captioner = Captioner.from_pretrained(exported)
    address = captioner.push_to_hub("someone/mine", private=True, license="mit")
    assert address == "https://hub/someone/mine"
    given = tmp_path / "hub" / "someone" / "mine"
    assert {path.name for path in given.iterdir()} == NAMES
    expected = captioner.state_dict()
    found = Captioner.from_pretrained(given).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
