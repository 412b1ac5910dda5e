"""The extensions in examples/, trained from the outside by the commands of their README."""

import csv
import hashlib
import json
import math
import re
import runpy
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

from captioning import testing
from captioning.apps import leaderboard
from captioning.captioner import Captioner
from captioning.data import scenes
from captioning.data.corpus import read_corpus
from captioning.data.datamodule import CaptionDataModule
from captioning.kernels.ops import Rows
from captioning.models.attention.additive import AdditiveAttention
from captioning.models.attention.base import Attention
from captioning.models.encoders.base import GridEncoder
from captioning.reporting.per_image import read_captions
from captioning.reporting.results import read_results
from captioning.support import trust
from captioning.support.build import build
from captioning.support.errors import CaptioningError
from captioning.testing import check_attention, check_decoder, check_encoder, check_objective
from examples.coverage import CoverageLSTM
from examples.gru_decoder import AttentionGRU
from examples.json_lines import JsonLinesReader
from examples.learned_temperature import LearnedTemperature
from examples.length_bonus import LengthBonus
from examples.precomputed_grids import PrecomputedData
from examples.word_repeats import WordRepeats

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README = (EXAMPLES / "README.md").read_text()

IMAGES = {"train": 40, "dev": 6, "test": 12}

TINY = (
    "encoder.weights=random", "encoder.image_size=64", "trainer.precision=32-true",
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.log_every_n_steps=1",
    "data.min_count=1", "data.workers=0", "model.hidden_dim=24", "model.embed_dim=16",
    "model.attention_dim=16",
)  # fmt: skip

Trained = Callable[..., Path]


def commands() -> list[list[str]]:
    """The arguments of the README's commands, the script first."""
    return [found.split()[1:] for found in re.findall(r"`(python [\w/]+\.py [^`]*)`", README)]


def command(choice: str) -> list[str]:
    """The README's command that makes a choice, such as ``model=attn_gru``."""
    (found,) = (each for each in commands() if each[0] == "train.py" and choice in each)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module", autouse=True)
def _few_scenes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "IMAGES", IMAGES)
        yield


def run(arguments: list[str]) -> None:
    """Run a script in this process, as ``python SCRIPT.py ARGUMENTS`` would from the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", arguments)
        status = None
        try:
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        except SystemExit as end:
            status = end.code
        assert not status


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """Trains by the README's command for a choice, the first time that it is asked for."""

    def train(choice: str, *further: str) -> Path:
        place = folder / "runs" / choice
        if not place.exists():
            given = [*TINY, f"data.cache={folder / 'cache'}", f"hydra.run.dir='{place}'"]
            run([*command(choice), *given, *further])
        return place

    return train


def logged(run: Path) -> list[dict[str, str]]:
    """The steps of a training, with all that was logged of them."""
    with (run / "logs" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def test_the_readme_names_every_file_and_config_and_links_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)]+)\)", README))
    files = {path for path in EXAMPLES.glob("*.py") if path.name != "__init__.py"}
    files |= set(EXAMPLES.glob("conf/*/*.yaml"))
    assert {str(path.relative_to(EXAMPLES)) for path in files} <= links
    assert all((EXAMPLES / link).exists() for link in links)
    assert len([each for each in commands() if each[0] == "train.py"]) == 8
    for path in EXAMPLES.glob("*.py"):  # each says the command that the README has
        for line in re.findall("^python train.*", path.read_text(), re.M):
            assert line in README


def test_the_walk_in_contributing_is_the_example() -> None:
    walk = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", walk, re.DOTALL))
    config = yaml.safe_load((EXAMPLES / "conf/model/learned_temperature.yaml").read_text())
    assert yaml.safe_load(textwrap.dedent(blocks["yaml"])) == config
    source = (EXAMPLES / "learned_temperature.py").read_text()
    written = [line.strip() for line in blocks["python"].splitlines()]
    code = [line for line in written if line and not line.startswith("def ")]
    assert [line for line in code if line not in source] == []
    for check in set(re.findall(r"check_\w+", walk)):
        assert callable(getattr(testing, check))


# An attention


def test_the_temperature_is_learned_saved_and_loaded_by_its_name_alone(
    trained: Trained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = trained("model=learned_temperature")
    ckpt = place / "checkpoints" / "best.ckpt"
    learned = torch.load(ckpt, weights_only=True)["state_dict"]["decoder.attention.log_temperature"]
    assert learned.item() != 0  # where it started
    attention = Captioner.load_from_checkpoint(ckpt).decoder.attention
    assert type(attention) is LearnedTemperature
    assert attention.log_temperature.equal(learned)
    assert read_results(place / "results.json").config["model"]["attention"] == {
        "_target_": "examples.learned_temperature.LearnedTemperature",
        "temperature": 1.0,
    }
    again = folder / "again"
    # As in a fresh process, which has neither imported the class nor named it in a configuration.
    for name in [name for name in sys.modules if name.partition(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(trust, "_named_by_user", set())
    run(
        [
            "eval.py", f"ckpt='{ckpt}'", "trust=examples", "data=scenes",
            "trainer.accelerator=cpu", "trainer.precision=32-true",
            f"data.cache={folder / 'cache'}", f"hydra.run.dir={again}",
        ]
    )  # fmt: skip
    assert "examples.learned_temperature" in sys.modules
    captions = read_captions(again / "captions_test.json")
    assert len(captions) == IMAGES["test"]
    assert captions == read_captions(place / "captions_test.json")


def test_the_attention_keeps_to_the_contract_and_to_its_formula() -> None:
    check_attention(LearnedTemperature, temperature=2.0)
    torch.manual_seed(0)
    attention = LearnedTemperature(8, 6, 5, temperature=3.0)
    plain = AdditiveAttention(8, 6, 5)
    plain.load_state_dict(attention.state_dict(), strict=False)
    grid, states, rows = (
        torch.randn(2, 4, 8),
        torch.randn(6, 6),
        Rows.all(2, 3, torch.device("cpu")),
    )
    memory, query = attention.prepare(grid), attention.query(states)
    expected = (plain(query, memory, rows)[0].log() / 3).softmax(-1)
    torch.testing.assert_close(attention(query, memory, rows)[0], expected)
    # What it says in `scores` is what it computes in `forward`.
    torch.testing.assert_close(Attention.forward(attention, query, memory, rows)[0], expected)
    with pytest.raises(CaptioningError, match=r"model\.attention\.temperature=0"):
        LearnedTemperature(8, 6, 5, temperature=0.0)


def test_coverage_is_the_sum_of_the_weights_of_the_words_before() -> None:
    torch.manual_seed(0)
    decoder = CoverageLSTM(11, 6, hidden_dim=8, embed_dim=6, attention_dim=4)
    torch.nn.init.normal_(decoder.coverage, std=3.0)
    check_decoder(decoder, channels=6)
    grid, tokens = torch.randn(1, 5, 6), torch.tensor([1, 7, 4, 9])
    attention = decoder.eval().attention
    memory = decoder.prepare(grid)
    state, covered = decoder.start(memory, 1), torch.zeros(5)
    for token in tokens:
        query = attention.query(state["hidden"][0, 0])
        keys = attention.key(memory["grid"][0])
        scores = [
            (key + query + c * decoder.coverage).tanh() @ attention.score
            for key, c in zip(keys, covered, strict=True)
        ]
        weights = torch.stack(scores).softmax(0)
        step = decoder.step(token.view(1, 1), state, memory)
        torch.testing.assert_close(step.attention[0, 0], weights)
        state, covered = step.state, covered + weights
    with pytest.raises(CaptioningError, match=r"model\.attention: coverage is for additive"):
        CoverageLSTM(11, 6, attention="multiplicative")


# A decoder


def test_the_gru_is_trained_and_results_name_it(trained: Trained) -> None:
    place = trained("model=attn_gru")
    results = read_results(place / "results.json")
    assert results.name == "attn_gru"
    assert results.model.name == "AttentionGRU"
    assert results.config["model"]["_target_"] == "examples.gru_decoder.AttentionGRU"
    source = (EXAMPLES / "gru_decoder.py").read_bytes()
    (digest,) = [results.own_code.pop("examples.gru_decoder.AttentionGRU")]
    assert hashlib.sha256(source).hexdigest().startswith(digest)
    assert results.own_code == {}
    decoder = Captioner.load_from_checkpoint(place / "checkpoints" / "best.ckpt").decoder
    assert type(decoder) is AttentionGRU
    assert decoder.gru.hidden_size == 24
    losses = [float(row["train/loss"]) for row in logged(place)]
    assert losses[-1] < losses[0]


def test_the_decoder_keeps_to_the_contract() -> None:
    torch.manual_seed(0)
    check_decoder(AttentionGRU(11, 6, hidden_dim=7, embed_dim=5, attention_dim=4), channels=6)


# An objective


def test_the_parts_of_the_objective_are_logged(trained: Trained) -> None:
    steps = logged(trained("objective=length_bonus"))
    assert len(steps) == math.ceil(IMAGES["train"] / 16)
    for step in steps:
        length = float(step["train/length"])
        assert length < 0  # the mean of logarithms of probabilities
        loss = float(step["train/cross_entropy"]) - 0.1 * length
        assert float(step["train/loss"]) == pytest.approx(loss, rel=1e-5)


def test_the_objective_keeps_to_the_contract() -> None:
    check_objective(LengthBonus(bonus=0.3))


# An encoder


def test_a_backbone_is_chosen_by_a_config_alone(trained: Trained) -> None:
    place = trained("encoder=efficientnet_b0")
    assert read_results(place / "results.json").encoder.name == "efficientnet_b0-features.8"
    encoder = Captioner.load_from_checkpoint(place / "checkpoints" / "best.ckpt").encoder
    assert encoder.grid_size == (2, 2)  # a 32nd of 64 pixels
    assert encoder.channels == 1280


def test_the_backbone_keeps_to_the_contract() -> None:
    spec = yaml.safe_load((ROOT / "conf/encoder/torchvision.yaml").read_text())
    spec |= yaml.safe_load((EXAMPLES / "conf/encoder/efficientnet_b0.yaml").read_text())
    del spec["defaults"]
    small = spec | {"weights": "random", "image_size": 128}
    check_encoder(build(small, GridEncoder, "encoder"))


def test_grids_from_files_are_those_of_their_images(folder: Path, tmp_path: Path) -> None:
    """The files are numbered: the first location of an image has its number in all channels."""
    drawn = {split: list(scenes.scenes(split))[:count] for split, count in IMAGES.items()}
    names = [scene.name for of_split in drawn.values() for scene in of_split]
    files = folder / "grids"
    files.mkdir()
    for number, name in enumerate(names):
        np.save(files / f"{Path(name).stem}.npy", np.full((2, 3, 8), number, np.float16))
    place = folder / "runs" / "precomputed"
    given = [each for each in TINY if not each.startswith("encoder.")]
    given += ["data.name=scenes", f"encoder.folder='{files}'", f"data.cache={folder / 'cache'}"]
    line = [each for each in command("encoder=precomputed") if each != "encoder.folder=DIR"]
    run([*line, *given, f"hydra.run.dir='{place}'"])
    results = read_results(place / "results.json")
    assert results.encoder.name == "precomputed"
    assert results.encoder.weights_source == f"the files of {files}"
    captioner = Captioner.load_from_checkpoint(place / "checkpoints" / "best.ckpt")
    encoder = captioner.encoder
    assert encoder.grid_size == (2, 3)

    data = PrecomputedData(name="scenes", min_count=1, cache=str(folder / "cache"))
    data.open_features(encoder)
    batch = next(iter(data.test_dataloader()))
    assert batch.images.shape == (len(batch.ids), 6, 8)
    assert batch.images[:, 0, 0].tolist() == [names.index(name) for name in batch.ids]
    assert data.images("test")[0].id == names[46]

    fingerprint = encoder.fingerprint
    assert type(encoder)(str(files), name="others").fingerprint != fingerprint
    with pytest.raises(
        CaptioningError, match=r"precomputed: grids .* are read by data=precomputed"
    ):
        captioner.caption(data.images("test")[0].path)
    usual = CaptionDataModule(name="scenes", min_count=1, cache=str(folder / "cache"))
    with pytest.raises(
        CaptioningError, match=r"precomputed: grids .* are read by data=precomputed"
    ):
        usual.open_features(encoder)
    with pytest.raises(CaptioningError, match="encoder=precomputed"):
        data.open_features(tiny.Encoder())
    np.save(files / f"{Path(names[0]).stem}.npy", np.zeros((4, 8)))
    with pytest.raises(CaptioningError, match=r"shape is \(4, 8\), not \(2, 3, 8\)"):
        data.store.gather(names[:1])
    (files / f"{Path(names[-1]).stem}.npy").unlink()
    with pytest.raises(CaptioningError, match=r"\.npy is missing"):
        data.open_features(encoder)
    with pytest.raises(CaptioningError, match=r"there are no \.npy files"):
        type(encoder)(str(tmp_path))


# A metric


def test_the_metric_is_in_the_results_and_ranks_the_leaderboard(
    trained: Trained, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Captions of six words at least, of which any may come again.
    place = trained(
        "experiment=word_repeats", "decoding.min_length=6", "decoding.allow_repeats=true",
        "decoding.no_repeat_ngram=0", "name=repeating",
    )  # fmt: skip
    results = read_results(place / "results.json")
    captions = read_captions(place / "captions_test.json")
    expected = [
        sum(word in text.split()[:place] for place, word in enumerate(text.split()))
        / len(text.split())
        for text in captions.values()
    ]
    mean = sum(expected) / len(expected)
    assert mean > 0
    assert results.scores["test"]["repeated words"] == pytest.approx(mean)
    assert results.metrics["repeated words"].model_dump() == {
        "highest": 1.0,
        "higher_is_better": False,
    }
    low, high = results.intervals["test"]["repeated words"]
    assert low <= mean <= high
    entries = json.loads((place / "captions_test.json").read_text())
    assert [each["scores"]["repeated words"] for each in entries] == pytest.approx(expected)

    (line,) = (each for each in commands() if each[0] == "eval.py" and "extra" in each[-1])
    ckpt = place / "checkpoints" / "best.ckpt"
    line = [f"ckpt='{ckpt}'" if each == "ckpt=CKPT" else each for each in line]
    brief = tmp_path / "brief"
    run(
        [
            *line, "name=brief", f"data.cache={folder / 'cache'}", f"hydra.run.dir={brief}",
            "decoding.max_length=1", "trainer.accelerator=cpu", "trainer.precision=32-true",
        ]
    )  # fmt: skip
    assert read_results(brief / "results.json").scores["test"]["repeated words"] == 0

    shutil.copytree(place, tmp_path / "repeating")
    capsys.readouterr()
    assert leaderboard.main([str(tmp_path), "--sort", "repeated words"]) == 0
    assert "repeated words" in capsys.readouterr().out
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["brief", "repeating"]  # the lower, the better
    scores = [float(row["repeated words"]) for row in rows]
    assert scores == pytest.approx([0, mean])  # in its own scale; people read it times 100
    table = (tmp_path / "leaderboard.md").read_text()
    (column,) = (line for line in table.splitlines() if "repeated words" in line and "|" in line)
    (row,) = (line for line in table.splitlines() if line.startswith("| repeating"))
    place_of = [cell.strip() for cell in column.split("|")].index("repeated words")
    assert f"{100 * mean:.1f}" in row.split("|")[place_of]


def test_the_metric_scores_captions_without_words() -> None:
    captions = {"a": "a dog and a dog", "b": "", "c": "one two"}
    assert WordRepeats()(captions, {}, {}) == {"a": pytest.approx(0.4), "b": 0, "c": 0}


# A data set


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, list[scenes.Scene]]:
    """A folder with a few scenes as JSON lines, and what was written into it."""
    root = folder / "json_lines"
    (root / "images").mkdir(parents=True)
    found = {
        split: list(scenes.scenes(split))[:count]
        for split, count in (("train", 20), ("dev", 3), ("test", 4))
    }
    lines = []
    for split, of_split in found.items():
        for scene in of_split:
            scenes.draw(scene)[0].save(root / "images" / scene.name)
            lines.append({"image": scene.name, "captions": scene.captions, "split": split})
    text = "".join(f"{json.dumps(line)}\n" for line in reversed(lines))
    (root / "captions.jsonl").write_text(text)
    return found


def test_json_lines_are_read_as_they_were_written_and_trained_on(
    trained: Trained, folder: Path, drawn: dict[str, list[scenes.Scene]]
) -> None:
    root = folder / "json_lines"
    corpus = read_corpus(root, layout="examples.json_lines.JsonLinesReader")
    for split, of_split in drawn.items():
        expected = {scene.name: list(scene.captions) for scene in of_split}
        assert corpus.references(split) == expected
    place = trained("data=json_lines", f"data.root='{root}'")
    results = read_results(place / "results.json")
    assert results.data.name == "json_lines"
    assert results.data.images == {"train": 20, "dev": 3, "test": 4}
    assert set(read_captions(place / "captions_test.json")) == {s.name for s in drawn["test"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "1.png", "captions": [', "not JSON"),
        ('{"image": "1.png", "captions": ["a dog"]}', "expected"),
        ('{"image": "1.png", "captions": "a dog", "split": "train"}', "expected"),
        ('{"image": "1.png", "captions": ["a dog", 3], "split": "train"}', "expected"),
        ('{"image": "1.png", "captions": ["a dog"], "split": "val"}', "'val' is not one of train"),
        ("[1, 2]", "expected"),
    ],
)
def test_a_wrong_json_line_is_one_sentence_with_its_number(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    path = tmp_path / "captions.jsonl"
    path.write_text(f'{{"image": "0.png", "captions": ["x"], "split": "train"}}\n\n{line}\n')
    reader: Any = JsonLinesReader()
    with pytest.raises(CaptioningError) as raised:
        reader.read(tmp_path, reader.detect(tmp_path), "any")
    sentence = str(raised.value)
    assert sentence.startswith(f"{path}:3: ")
    assert message in sentence
    assert "\n" not in sentence
