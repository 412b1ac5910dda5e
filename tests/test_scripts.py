"""The scripts as a user runs them: real photographs, a tiny model that knows nothing yet."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pytest
import torch
from hydra.errors import HydraException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from captioning.apps import leaderboard
from captioning.apps.caption import caption_files
from captioning.captioner import Captioner
from captioning.data import scenes
from captioning.data.corpus import read_corpus
from captioning.data.features.extraction import choose_precision, encode
from captioning.data.images import load_rgb
from captioning.decoding import Beam
from captioning.metrics import intervals, paired, score_captions
from captioning.metrics.clipscore import ClipScorer
from captioning.models.decoders.ensemble import Ensemble
from captioning.reporting.per_image import read_captions, read_statistics
from captioning.reporting.results import read_results
from captioning.training.mlflow_logger import LightningLogger as LightningMLFlowLogger
from captioning.training.wandb_logger import WandbLogger

ROOT = Path(__file__).parent.parent

TINY = (
    "encoder.weights=random",
    "encoder.image_size=32",  # a grid of 2 x 2
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "data.min_count=3",
)
TINY_MODEL = (
    "model.hidden_dim=24",
    "model.embed_dim=16",
    "backend=torch",
    "trainer.log_every_n_steps=1",
)


class Ended(NamedTuple):
    """How a script ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Run:
    """Run a script in this process, as ``python SCRIPT.py OVERRIDES`` would."""
    return lambda script, *overrides: call(script, overrides, cache, capsys, monkeypatch)


def call(
    script: str,
    overrides: tuple[str, ...],
    cache: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Ended:
    given = [*TINY, *TINY_MODEL] if script == "train" else TINY[2:4]
    argv = [f"{script}.py", *given, f"data.cache={cache}", *overrides]
    monkeypatch.setattr(sys, "argv", argv)
    status = 0
    try:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)


@pytest.fixture(scope="module")
def trained(flickr8k_mini: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("run")

    class Silent:
        def readouterr(self) -> Any:
            return Ended(0, "", "")

    overrides = (f"data.root={flickr8k_mini}", "trainer.max_epochs=3", f"hydra.run.dir={folder}")
    with pytest.MonkeyPatch.context() as patch:
        assert call("train", overrides, cache, Silent(), patch).status == 0
    return folder


def losses(folder: Path) -> list[tuple[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]


def test_a_run_leaves_results_whose_scores_are_those_of_its_captions(
    trained: Path, flickr8k_mini: Path
) -> None:
    results = read_results(trained / "results.json")
    assert set(results.scores) == {"dev", "test"}
    assert results.data.images == {"train": 120, "dev": 40, "test": 40}
    assert results.model.name == "attn_lstm"
    assert results.decoding.label == "beam 5"
    assert results.arithmetic is not None
    assert results.arithmetic.precision == "32-true"
    assert results.arithmetic.backend.asked == "torch"
    assert set(results.arithmetic.backend.ops.values()) == {"torch"}
    assert results.model.parameters.keys() == {"encoder", "decoder", "objective"}
    assert results.model.trainable == results.model.parameters["decoder"]
    corpus = read_corpus(flickr8k_mini)
    for split in ("dev", "test"):
        captions = read_captions(trained / f"captions_{split}.json")
        again = score_captions(captions, corpus.references(split))
        assert again.corpus == results.scores[split]
        statistics = read_statistics(trained / f"statistics_{split}.json")
        assert statistics.references == results.data.references[split]
        assert intervals(statistics) == results.intervals[split]
        entries = json.loads((trained / f"captions_{split}.json").read_text())
        assert all(e["scores"] == again.per_image[e["image_id"]] for e in entries)
        words = [word for caption in captions.values() for word in caption.split()]
        language = results.language[split]
        assert language.length == len(words) / len(captions)
        assert language.vocabulary == len({*words} - {"<unk>"})
        assert language.unknown == words.count("<unk>") / len(words)
        assert language.novel is not None
    for split, scores in results.scores.items():
        for name, (low, high) in results.intervals[split].items():
            assert low <= scores[name] <= high
            assert low < high
    assert results.objects == {}  # photographs come without boxes
    report = (trained / "report.html").read_text()
    assert all(image in report for image in read_captions(trained / "captions_test.json"))
    assert (trained / "vocabulary.json").is_file()
    assert (trained / "descriptions.txt").is_file()


def test_eval_gives_the_same_scores_again(
    trained: Path, run: Run, flickr8k_mini: Path, tmp_path: Path
) -> None:
    # In a folder with such a name as a sweep gives its jobs.
    ckpt = tmp_path / "model.dropout=0.3,seed=1" / "best.ckpt"
    ckpt.parent.mkdir()
    ckpt.symlink_to(trained / "checkpoints" / "best.ckpt")
    ended = run(
        "eval", f"ckpt={ckpt}", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}",
        "split=test", "decoding=beam", "decoding.beam_size=5",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    curves = [
        re.findall("<title>(.*?)</title></circle>", (folder / "report.html").read_text())
        for folder in (trained, tmp_path)
    ]
    assert curves[0] == curves[1]  # the learning curves are those of the training
    assert [title.partition(":")[0] for title in curves[1] if title.startswith("CIDEr")] == [
        f"CIDEr, epoch {epoch}" for epoch in (1, 2, 3)
    ]
    before, after = (read_results(f / "results.json") for f in (trained, tmp_path))
    assert after.scores["test"] == before.scores["test"]
    assert after.name == before.name
    assert after.training == before.config
    assert after.data.references == {"test": before.data.references["test"]}
    statistics = [read_statistics(f / "statistics_test.json") for f in (trained, tmp_path)]
    assert paired(*statistics)["CIDEr"].difference == 0
    captions = [f / "captions_test.json" for f in (trained, tmp_path)]
    assert read_captions(captions[0]) == read_captions(captions[1])


def test_several_checkpoints_are_scored_as_an_ensemble(
    trained: Path,
    run: Run,
    flickr8k_mini: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = trained / "checkpoints" / "best.ckpt"
    content = torch.load(first, weights_only=True)
    content["run"]["config"] |= {"seed": 7}
    noise = torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if name.startswith("decoder.") and value.is_floating_point():
            value += 0.3 * torch.randn(value.shape, generator=noise)
    second = tmp_path / "model.dropout=0.3,seed=7" / "best.ckpt"
    second.parent.mkdir()
    torch.save(content, second)
    options = (f"data.root={flickr8k_mini}", "decoding=beam", "decoding.beam_size=3")
    ended = run("eval", f"ckpt=[{first},{second}]", f"hydra.run.dir={tmp_path / 'both'}", *options)
    assert ended.status == 0, ended.err

    results = read_results(tmp_path / "both" / "results.json")
    one = read_results(trained / "results.json")
    assert (results.name, results.model.name) == ("ensemble of 2", "ensemble")
    assert results.config["ckpt"] == [str(first), str(second)]
    assert results.model.parameters == {
        "encoder": one.model.parameters["encoder"],
        "decoder": 2 * one.model.parameters["decoder"],
    }
    assert results.seed is None
    assert results.training == {key: each for key, each in one.config.items() if key != "seed"}

    captioner, other = (Captioner.load_from_checkpoint(each) for each in (first, second))
    alone = [captioner.decoder, other.decoder]
    found = []
    captions = read_captions(tmp_path / "both" / "captions_test.json")
    pictures = [load_rgb(flickr8k_mini / "Flicker8k_Dataset" / image) for image in captions]
    inputs = [captioner.encoder.preprocessing(picture) for picture in pictures]
    cpu = torch.device("cpu")  # in the precision in which the feature store was filled
    grids = encode(captioner.encoder, inputs, cpu, choose_precision("auto", cpu))
    for decoder in (Ensemble(alone), *alone):
        captioner.decoder = decoder
        hypotheses = captioner.generate(grids, Beam(beam_size=3))
        texts = [captioner.vocabulary.decode(of_image[0].tokens) for of_image in hypotheses]
        found.append(dict(zip(captions, texts, strict=True)))
    # As above, another order of sums may decide between like words.
    agree = [sum(each[image] == captions[image] for image in captions) for each in found]
    assert agree[0] >= 0.9 * len(captions)
    assert max(agree[1:]) < 0.9 * len(captions)

    assert leaderboard.main([str(trained), str(tmp_path / "both")]) == 0
    shown = capsys.readouterr().out
    assert "ensemble of 2" in shown
    assert "callbacks" not in shown  # the settings of the training are the same in both rows
    content["hyper_parameters"]["vocabulary"].reverse()
    torch.save(content, second)
    ended = run("eval", f"ckpt=[{first},{second}]", f"hydra.run.dir={tmp_path / 'no'}", *options)
    assert_one_sentence(ended, f"ckpt={second}", "another vocabulary", str(first))


def test_metrics_that_are_asked_for_stand_beside_the_others(
    trained: Path, run: Run, clip_weights: Path, flickr8k_mini: Path, tmp_path: Path
) -> None:
    ended = run(
        "eval", f"ckpt={trained / 'checkpoints' / 'best.ckpt'}", f"data.root={flickr8k_mini}",
        f"hydra.run.dir={tmp_path}", "split=test", "extra_metrics=[RefCLIPScore,CLIPScore]",
        f"clip_weights={clip_weights}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    captions = read_captions(tmp_path / "captions_test.json")
    photographs = {image: flickr8k_mini / "Flicker8k_Dataset" / image for image in captions}
    references = read_corpus(flickr8k_mini).references("test")
    expected = ClipScorer(str(clip_weights), device="cpu").scores(captions, photographs, references)
    results = read_results(tmp_path / "results.json")
    before = read_results(trained / "results.json").scores["test"]
    means = {name: pytest.approx(fmean(values)) for name, values in expected.items()}
    assert results.scores["test"] == before | means
    entries = json.loads((tmp_path / "captions_test.json").read_text())
    for name, values in expected.items():
        assert [entry["scores"][name] for entry in entries] == pytest.approx(values)
        low, high = results.intervals["test"][name]
        assert low < results.scores["test"][name] < high
        assert name in ended.out
        assert name in (tmp_path / "report.html").read_text()
    read_statistics(tmp_path / "statistics_test.json")


def test_any_photographs_get_the_captions_that_an_evaluation_gives_them(
    trained: Path, run: Run, flickr8k_mini: Path, tmp_path: Path
) -> None:
    ckpt = trained / "checkpoints" / "best.ckpt"
    ended = run(
        "eval", f"ckpt={ckpt}", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}",
        "trainer.precision=auto",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    expected = read_captions(tmp_path / "captions_test.json")
    files = [flickr8k_mini / "Flicker8k_Dataset" / image for image in expected]
    found = {}
    for captioned, errors in caption_files(
        Captioner.load_from_checkpoint(ckpt), files, Beam(), device="cpu"
    ):
        assert not errors
        found |= {each.path.name: each.caption for each in captioned}
    assert found.keys() == expected.keys()
    # Batches of another size are summed in another order, which may decide between like words.
    assert sum(found[image] == expected[image] for image in expected) >= 0.9 * len(expected)


def test_a_checkpoint_loads_from_its_file_alone(trained: Path, tmp_path: Path) -> None:
    moved = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "elsewhere.ckpt")
    captioner = Captioner.load_from_checkpoint(moved)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hypotheses = captioner.generate(images, Beam(), attention=True)
    assert [len(of_image) for of_image in hypotheses] == [5, 5]
    for of_image in hypotheses:
        assert len({tuple(each.tokens) for each in of_image}) == 5
        for each in of_image:
            assert captioner.vocabulary.decode(each.tokens)
            assert each.attention is not None
            assert each.attention.shape[1] == 4
            torch.testing.assert_close(each.attention.sum(1), torch.ones(len(each.attention)))
    saved = torch.load(moved, weights_only=True)["state_dict"]  # the average of the weights
    assert all(torch.equal(value, saved[name]) for name, value in captioner.state_dict().items())
    assert captioner.encoder.weights_source.startswith("random")


def test_a_resumed_run_continues_exactly(
    trained: Path, run: Run, flickr8k_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Captioner.on_train_epoch_start

    def interrupted(self: Captioner) -> None:
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        start(self)

    options = (f"data.root={flickr8k_mini}", "trainer.max_epochs=3")
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "on_train_epoch_start", interrupted)
        ended = run("train", *options, f"hydra.run.dir={tmp_path / 'first'}")
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert ended.status == 130
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert f"resume={last}" in ended.err

    ended = run("train", *options, f"hydra.run.dir={tmp_path / 'second'}", f"resume={last}")
    assert ended.status == 0, ended.err
    whole, rest = losses(trained), losses(tmp_path / "second")
    assert rest == whole[-len(rest) :]
    assert rest
    states = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (trained, tmp_path / "first")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    scores = [read_results(f / "results.json").scores for f in (trained, tmp_path / "second")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_as_before_a_time_limit_says_which_command_goes_on(
    run: Run, flickr8k_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    step = Captioner.training_step

    def signalled(self: Captioner, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 1:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Captioner, "training_step", signalled)
        ended = run(
            "train", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}",
            "trainer.max_epochs=3", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        )  # fmt: skip
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert ended.status == 128 + number
    last = tmp_path / "checkpoints" / "last.ckpt"
    said = ended.err.splitlines()[-1]
    assert said.startswith(
        f"stopped by {signal.Signals(number).name}; this continues after the last complete epoch: "
        "python "
    )
    command = shlex.split(said)
    assert command[-1] == f"resume={last}"
    assert any(each.endswith("train.py") for each in command)
    assert f"data.root={flickr8k_mini}" in command
    assert torch.load(last, weights_only=True)["epoch"] == 0
    assert_one_sentence(
        run("train", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}"),
        *(f"resume={last}", "was not finished"),
    )


def test_a_run_whose_output_is_not_read_is_complete(
    run: Run, flickr8k_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train.py ... | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        ended = run(
            "train", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}", "decoding=greedy",
            "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=1",
        )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    assert (tmp_path / "report.html").exists()
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        assert list(csv.DictReader(file))[-1]["final/test/CIDEr"]


def test_relative_paths_are_of_the_folder_of_the_command(
    run: Run, flickr8k_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Hydra is asked to change to the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(flickr8k_mini)
    ended = run(
        "train", "data.root=data", "hydra.run.dir=run", "hydra.job.chdir=true", "decoding=greedy",
        "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert (tmp_path / "run" / "results.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}


def test_resuming_with_other_settings_names_them(
    trained: Path, run: Run, flickr8k_mini: Path, tmp_path: Path
) -> None:
    ended = run(
        "train",
        f"data.root={flickr8k_mini}",
        f"resume={trained / 'checkpoints' / 'last.ckpt'}",
        f"hydra.run.dir={tmp_path}",
        "optimizer.lr=0.05",
        "encoder.image_size=48",
        "model.attention_dim=7",
    )
    assert_one_sentence(
        ended,
        "last.ckpt: that run has other settings",
        "optimizer.lr=0.05 in place of",
        "encoder.image_size=48 in place of 32",
        "model.attention_dim=7 in place of",
    )


def test_scenes_are_drawn_and_their_objects_looked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "IMAGES", {"train": 160, "dev": 10, "test": 20})
    options = (
        "experiment=scenes", f"data.cache={tmp_path}", "~callbacks.ema", "decoding=greedy",
        "optimizer.lr=0.01", "data.batch_size=4",
    )  # fmt: skip
    for model, epochs in (("attn_lstm", 3), ("lstm", 2)):
        ended = run(
            "train", *options, f"model={model}", f"trainer.max_epochs={epochs}",
            f"hydra.run.dir={tmp_path / model}",
        )  # fmt: skip
        assert ended.status == 0, ended.err
        results = read_results(tmp_path / model / "results.json")
        assert results.data.name == "scenes"
        objects = results.objects["test"]
        assert objects.right is not None
        assert objects.right < 0.5  # of what such an encoder sees
        assert objects.words > 0
        assert (objects.peak_inside is None) == (model == "lstm")
        assert all(word in ended.out for word in ("objects", "right", "complete"))


def test_a_trainable_encoder_learns_from_images_in_its_last_block_alone(
    run: Run, flickr8k_mini: Path, tmp_path: Path
) -> None:
    ended = run(
        "train", f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}",
        "encoder.trainable=true", "encoder_lr=0.01", "data.workers=0", "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "~callbacks.ema", "data.eval_batch_size=4",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    results = read_results(tmp_path / "results.json")
    assert results.data.images["test"] == 4  # what was scored, not what there is
    tuned = Captioner.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt").encoder
    fresh = type(tuned)(weights="random", image_size=32)
    changed = {
        name.split(".")[1]
        for name, value in tuned.state_dict().items()
        if not torch.equal(value, fresh.state_dict()[name])
    }
    assert changed == {"24", "26", "28"}


QUICK = (  # with figures of a few words
    "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_test_batches=1",
    "decoding=greedy", "validation.max_length=4",
)  # fmt: skip


def test_tensorboard_compares_settings_and_scores(
    run: Run, flickr8k_mini: Path, tmp_path: Path, trained: Path
) -> None:
    options = (f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}", "logger=tensorboard")
    ended = run("train", *options, *QUICK)
    assert ended.status == 0, ended.err
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert any(tag.startswith("attention/") for tag in events.Tags()["images"])
    assert "dev/captions/text_summary" in events.Tags()["tensors"]
    hparams = events.summary_metadata
    started = HParamsPluginData.FromString(
        hparams["_hparams_/session_start_info"].plugin_data.content
    )
    settings = started.session_start_info.hparams
    assert settings["model.hidden_dim"].number_value == 24
    assert settings["data.root"].string_value == str(flickr8k_mini)
    named = HParamsPluginData.FromString(hparams["_hparams_/experiment"].plugin_data.content)
    shown = [each.name.tag for each in named.experiment.metric_infos]
    scores = read_results(tmp_path / "results.json").scores
    for split in ("dev", "test"):
        assert f"final/{split}/CIDEr" in shown
        (logged,) = events.Scalars(f"final/{split}/CIDEr")
        assert logged.value == pytest.approx(scores[split]["CIDEr"])
    # No value was logged before the run had one.
    assert len(events.Scalars("dev/CIDEr")) == 1
    assert "hp_metric" not in events.Tags()["scalars"]


def test_wandb_keeps_the_model_and_a_table_of_captions_without_an_account(
    run: Run,
    flickr8k_mini: Path,
    tmp_path: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    uploaded: list[Path] = []
    upload = WandbLogger.upload_model

    def note(logger: WandbLogger, folder: Path, metadata: dict[str, Any]) -> None:
        uploaded.append(shutil.copytree(folder, tmp_path / "uploaded" / folder.name))
        upload(logger, folder, metadata)

    monkeypatch.setattr(WandbLogger, "upload_model", note)
    options = (f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}", "logger=wandb")
    ended = run("train", *options, *QUICK, "logger.log_model=true", "name='a (model)'")
    assert ended.status == 0, ended.err
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (written,) = folder.glob("*.wandb")
    assert b"attention/" in written.read_bytes()
    (table,) = (folder / "files/media/table/dev").glob("captions_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["epoch", "image", "picture", "caption", "references"]
    assert len(content["data"]) == 8
    references = read_corpus(flickr8k_mini).references("dev")
    for epoch, image, picture, _, listed in content["data"]:
        assert (epoch, listed.splitlines()) == (1, references[image])
        assert picture == "Image"  # whose pixels are in the table's artifact
    # The artifact waits for `wandb sync`; it is the folder of an exported model.
    (model,) = uploaded
    assert b"a--model-" in written.read_bytes()
    kept = {path.read_bytes() for path in tmp_path.glob("wandb_data/artifacts/staging/*")}
    assert {path.read_bytes() for path in model.iterdir()} <= kept
    assert_is_the_model_of(tmp_path, model)
    assert len(losses(tmp_path)) > 0  # CSV is written beside it


def assert_is_the_model_of(run: Path, folder: Path) -> None:
    """A folder is the exported model of a run: the same captions, its scores, and no optimiser."""
    model = Captioner.from_pretrained(folder)
    checkpoint = Captioner.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    grid = torch.rand(2, model.encoder.locations, model.encoder.channels)
    for ours, theirs in zip(model(grid), checkpoint(grid), strict=True):
        assert [each.tokens for each in ours] == [each.tokens for each in theirs]
        assert [each.score for each in ours] == [each.score for each in theirs]
    assert read_results(folder / "results.json") == read_results(run / "results.json")
    cider = read_results(run / "results.json").scores["test"]["CIDEr"]
    assert f"| test | CIDEr | {100 * cider:.1f} |" in (folder / "README.md").read_text()
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # mlflow's own
def test_mlflow_keeps_settings_scores_and_images_in_a_local_file(
    run: Run, flickr8k_mini: Path, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    options = (f"data.root={flickr8k_mini}", "hydra.run.dir=run", "logger=mlflow", "name=mine")
    ended = run("train", *options, *QUICK, "logger.log_model=true")
    assert ended.status == 0, ended.err
    client = tracking.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("captioning")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.params["model.hidden_dim"] == "24"
    scores = read_results(Path("run/results.json")).scores["test"]
    assert found.data.metrics["final/test/CIDEr"] == pytest.approx(scores["CIDEr"])
    (table,) = client.list_artifacts(found.info.run_id, "dev/captions")
    assert table.path.endswith("epoch_001.md")
    assert len(client.list_artifacts(found.info.run_id, "images")) >= 4
    (tmp_path / "model").mkdir()
    kept = client.download_artifacts(found.info.run_id, "model", str(tmp_path))
    assert_is_the_model_of(tmp_path / "run", Path(kept))


def test_a_logger_whose_library_is_missing_is_one_sentence(
    run: Run, flickr8k_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met.")

    monkeypatch.setattr(LightningMLFlowLogger, "__init__", missing)
    options = (f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}", "logger=mlflow")
    assert_one_sentence(run("train", *options), "logger=mlflow", "pip install 'captioning[mlflow]'")


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    lines = [line for line in ended.err.splitlines() if line]
    assert ended.status == 1, ended
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.out + ended.err
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.hidden_dim=wide", ["model.hidden_dim=wide", "integer"]),
        ("seed=abc", ["seed=abc", "integer"]),
        ("+model.droput=3", ["model.droput: AttentionLSTM", "did you mean dropout?", "gate"]),
        ("+patiance=3", ["patiance: no such setting; there are add_words, backend"]),
        ("+schedule.warmup=0.1", ["schedule: this setting is now called scheduler"]),
        ("+callbacks.mine._target_=os.system", ["callbacks.mine._target_=os.system"]),
        ("callbacks.ema.decay=1", ["callbacks.ema.decay=1", "below 1"]),
        ("+trainer.logger=false", ["trainer.logger cannot be set", "logger=tensorboard"]),
        ("+trainer.callbacks=[]", ["trainer.callbacks cannot be set", "+callbacks.mine"]),
        ("trainer._target_=os.system", ["trainer._target_=os.system is not a Trainer"]),
        ("backend=fast", ["backend=fast", "'auto'", "'torch'", "'native'"]),
        ("model.gate=open", ["model.gate=open", "scalar", "channel"]),
        ("+trainer.max_epoch=3", ["trainer", "max_epoch"]),
        ("trainer.precision=7", ["trainer", "7"]),
        ("optimizer._target_=torch.optim.Sgd", ["optimizer._target_=torch.optim.Sgd"]),
        ("model._target_=os.system", ["model._target_=os.system", "Decoder"]),
        ("data.layout=zip", ["data.layout=zip", "karpathy"]),
        ("encoder.image_size=33", ["encoder.image_size=33", "multiple of 16"]),
        ("encoder.weights=no.pth", ["no.pth"]),
        ("scheduler.warmup=2", ["scheduler.warmup=2", "0 and 1"]),
        ("decoding.beam_size=0", ["decoding.beam_size=0", "1 or more"]),
        ("resume=nothing.ckpt", ["nothing.ckpt", "no such file"]),
        ("extra_metrics=[Spice]", ["extra_metrics=[Spice]", "SPICE, SPIDEr, CLIPScore"]),
        ("extra_metrics=[CIDEr-D]", ["extra_metrics=[CIDEr-D]", "CIDEr-D is the standard CIDEr"]),
        ("extra_metrics=SPICE", ["extra_metrics=SPICE", "list"]),
        ("spice_memory=lots", ["spice_memory=lots", "8G"]),
        ("data.root=nowhere", ["nowhere: there is no such folder or file"]),
        ("data.root=", ["data.root is empty"]),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    run: Run, flickr8k_mini: Path, tmp_path: Path, override: str, parts: list[str]
) -> None:
    place = f"hydra.run.dir={tmp_path / 'runs' / 'mine'}"
    assert_one_sentence(run("train", f"data.root={flickr8k_mini}", place, override), *parts)
    assert list(tmp_path.iterdir()) == []  # no folder is left behind


@pytest.mark.parametrize("override", ["optimizer.lr=fast", "optimizer.lr=-1"])
def test_a_wrong_optimiser_is_refused_before_images_are_encoded(
    run: Run, flickr8k_mini: Path, tmp_path: Path, override: str
) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    place = f"hydra.run.dir={tmp_path / 'runs' / 'mine'}"
    ended = run("train", f"data.root={flickr8k_mini}", cache, place, override)
    assert_one_sentence(ended, "optimizer", override.partition("=")[2])
    assert list(tmp_path.rglob("features")) == []


WRONG = [
    (["model.attention_dims=64"],
     "model.attention_dims: no such setting; did you mean model.attention_dim?"),
    (["model=attn_lsmt"],
     "model=attn_lsmt: there is no such choice; did you mean attn_lstm? There are adaptive_lstm, "
     "as_trained, attn_lstm, hard_attn_lstm, lstm, transformer"),
    (["modle=lstm"], "modle: no such setting; did you mean model?"),
    (["attention_dim=64"], "attention_dim: no such setting; did you mean model.attention_dim?"),
    (["model=lstm", "model.gate=scalar"],
     "model.gate: no such setting; model has _target_, dropout, embed_dim, hidden_dim, "
     "normalize_grid, recurrent_dropout, tie_embeddings, word_dropout"),
    (["~callbacks.early_stoping"],
     "~callbacks.early_stoping: no such setting; did you mean callbacks.early_stopping?"),
    (["trainer.max_epoch=3"],
     "trainer.max_epoch: no such setting; did you mean trainer.max_epochs? To add another argument "
     "of pytorch_lightning.Trainer, write +trainer.max_epoch=3"),
    (["+model.dropout=0.1"],
     "+model.dropout: there is such a setting already; leave out the +"),
    (["compile=false"],
     "compile: this setting is now called backend, which takes auto, torch or native"),
    (["patience=3"], "patience: this setting is now called callbacks.early_stopping.patience"),
    (["average_decay=0"], "average_decay: this setting is now called callbacks.ema.decay"),
    (["schedule.warmup=0.1"], "schedule.warmup: this setting is now called scheduler.warmup"),
    (["schedule.final=0"], "schedule.final: this setting is now called scheduler.final"),
    (["-m", "model.attention_dims=64,128"],
     "model.attention_dims: no such setting; did you mean model.attention_dim?"),
    (["-m", "model=attn_lstm,lstn"],
     "model=lstn: there is no such choice; did you mean lstm? There are adaptive_lstm, "
     "as_trained, attn_lstm, hard_attn_lstm, lstm, transformer"),
    (["-m", "patience=2,3"],
     "patience: this setting is now called callbacks.early_stopping.patience"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "sentence"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_key_or_choice_is_answered_with_the_nearest(
    overrides: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ended = as_given("train", overrides, tmp_path, monkeypatch, capsys)
    assert ended == Ended(1, "", f"error: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "override", "sentence"),
    [
        ("eval", "decoding=bean", "decoding=bean: there is no such choice; did you mean beam? "
         "There are beam, diverse_beam, greedy, mbr, sample"),
        ("eval", "splitt=dev", "splitt: no such setting; did you mean split?"),
        ("eval", "compile=true",
         "compile: this setting is now called backend, which takes auto, torch or native"),
        ("caption", "image=x.jpg", "image: no such setting; did you mean images?"),
        ("caption", "decoding.beam_sizes=3",
         "decoding.beam_sizes: no such setting; did you mean decoding.beam_size?"),
    ],
)  # fmt: skip
def test_so_it_is_in_the_other_scripts(
    script: str, override: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for multirun in ([], ["-m"]):
        ended = as_given(script, [*multirun, override], tmp_path, monkeypatch, capsys)
        assert ended == Ended(1, "", f"error: {sentence}\n")
        assert list(tmp_path.iterdir()) == []


def as_given(
    script: str, overrides: list[str], folder: Path, monkeypatch: Any, capsys: Any
) -> Ended:
    """How a script ends with nothing but these overrides, in an empty folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *overrides])
    status = 0
    try:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)


def test_hydras_own_report_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(HydraException, match=r"Could not override 'model.attention_dims'"):
        as_given("train", ["model.attention_dims=64"], tmp_path, monkeypatch, capsys)


def test_a_wrong_key_is_answered_without_torch(tmp_path: Path) -> None:
    """Whose import takes seconds."""
    code = (
        "import runpy, sys; sys.argv = ['train.py', 'model.attention_dims=64']\n"
        f"try: runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit: print({'torch', 'pydantic', 'pytorch_lightning'} & sys.modules.keys())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.stdout == "set()\n"
    assert "did you mean model.attention_dim?" in ended.stderr


@pytest.fixture
def copied(flickr8k_mini: Path, tmp_path: Path) -> Path:
    """A copy of the data set in its official layout, to be damaged."""
    root = tmp_path / "data"
    for name in ("Flicker8k_Dataset", "Flickr8k_text"):
        shutil.copytree(flickr8k_mini / name, root / name, copy_function=shutil.copyfile)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)
    return root


def first_image(root: Path, split: str) -> str:
    return (root / f"Flickr8k_text/Flickr_8k.{split}Images.txt").read_text().split()[0]


def remove_an_image(root: Path) -> list[str]:
    name = first_image(root, "dev")
    (root / "Flicker8k_Dataset" / name).unlink()
    return [name, "data.skip_bad=true"]


def break_an_image(root: Path) -> list[str]:
    name = first_image(root, "train")
    path = root / "Flicker8k_Dataset" / name
    path.write_bytes(path.read_bytes()[:3000])
    return [name]


def remove_captions(root: Path) -> list[str]:
    name = first_image(root, "test")
    path = root / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join(line for line in lines if not line.startswith(name)))
    return [name, "data.skip_bad=true"]


def name_an_unknown_image(root: Path) -> list[str]:
    with (root / "Flickr8k_text" / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write("unheard_of.jpg\n")
    return ["unheard_of.jpg"]


@pytest.mark.parametrize(
    "damage", [remove_an_image, break_an_image, remove_captions, name_an_unknown_image]
)
def test_damaged_data_is_one_sentence_and_can_be_left_out(
    run: Run, copied: Path, tmp_path: Path, damage: Callable[[Path], list[str]]
) -> None:
    parts = damage(copied)
    options = (f"data.root={copied}", f"hydra.run.dir={tmp_path / 'run'}")
    assert_one_sentence(run("train", *options), *parts)
    quick = (
        "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "data.eval_batch_size=8", "decoding=greedy",
    )  # fmt: skip
    ended = run("train", *options, *quick, "data.skip_bad=true")
    assert ended.status == 0, ended.err
    assert parts[0] in (tmp_path / "run" / "train.log").read_text()


def test_a_damaged_index_of_a_store_is_one_sentence(
    run: Run, flickr8k_mini: Path, tmp_path: Path, trained: Path, cache: Path
) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache / "features", copy / "features")
    (store,) = (copy / "features").glob("*/index.txt")
    store.write_text("damaged\n" + store.read_text())
    ended = run(
        "train", f"data.root={flickr8k_mini}", f"data.cache={copy}", f"hydra.run.dir={tmp_path}"
    )
    assert_one_sentence(ended, str(store.parent), "delete")


def test_what_is_no_checkpoint_is_one_sentence(
    run: Run, flickr8k_mini: Path, tmp_path: Path, trained: Path
) -> None:
    options = (f"data.root={flickr8k_mini}", f"hydra.run.dir={tmp_path}")
    assert_one_sentence(run("eval", *options), "ckpt")
    for content in (b"not a checkpoint", (trained / "checkpoints/best.ckpt").read_bytes()[:9999]):
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes(content)
        assert_one_sentence(run("eval", *options, f"ckpt={broken}"), "broken.ckpt")
    torch.save({"weights": torch.ones(2)}, tmp_path / "other.ckpt")
    assert_one_sentence(run("eval", *options, f"ckpt={tmp_path / 'other.ckpt'}"), "other.ckpt")
