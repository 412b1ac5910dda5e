"""The recipe of ``experiment=finetune``: a new word is learned, and the others are kept."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.decoding import Greedy
from captioning.training.callbacks.ema import EMA
from captioning.training.callbacks.new_words import NewWords
from captioning.training.initialization import initialize, read_initial
from captioning.training.teacher import load_teacher

CONF = Path(__file__).parents[2] / "conf"
COLOURS, SHAPES = ["red", "blue", "black"], ["circle", "square", "star"]
OLD_WORDS = ["a", "there", "is", "and", *COLOURS, *SHAPES[:2]]
MODEL = {
    "_target_": "attn_lstm", "hidden_dim": 32, "embed_dim": 24, "attention_dim": 16,
    "dropout": 0.1, "recurrent_dropout": 0.0,
}  # fmt: skip

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


def batches(count: int, size: int, seed: int, words: Sequence[str], *, star: bool) -> list[Batch]:
    """Images of one or two objects, as grids, in whose locations colour and shape add up."""
    random, numbers = Random(seed), torch.Generator().manual_seed(seed)
    looks = dict(zip([*COLOURS, *SHAPES], torch.eye(128).reshape(8, 16, 128).sum(1), strict=False))
    ids = {word: number for number, word in enumerate(["", "<", ">", "?", *words])}
    found = []
    for number in range(count):
        grid = 0.3 * torch.randn(size, 49, 128, generator=numbers)
        tokens = torch.zeros(size, 1, 11, dtype=torch.int64)
        for image in range(size):
            shapes = random.sample(SHAPES[:2], 2)[: random.choice((1, 2))]
            if star:
                shapes[0] = "star"
            random.shuffle(shapes)
            named = [(random.choice(COLOURS), shape) for shape in shapes]
            for (colour, shape), place in zip(named, random.sample(range(49), 2), strict=False):
                grid[image, place] += 3 * (looks[colour] + looks[shape])
            text = " and ".join(f"a {colour} {shape}" for colour, shape in named)
            text = random.choice(("", "there is ")) + text
            read = [1, *(ids[word] for word in text.split()), 2]
            tokens[image, 0, : len(read)] = torch.tensor(read)
        found.append(Batch(grid, tokens, [f"{number}-{image}" for image in range(size)]))
    return found


def fit(captioner: Captioner, data: list[Batch], epochs: int, *callbacks: pl.Callback) -> None:
    torch.manual_seed(0)
    trainer = tiny.trainer(Path(), *callbacks, max_epochs=epochs, gradient_clip_val=2.0)
    loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(captioner, train_dataloaders=loader)


def captions(captioner: Captioner, given: Batch) -> list[set[str]]:
    """The objects that the captions name, since their order is a matter of chance."""
    found = captioner.eval().generate(given.images, Greedy(max_length=9), attention=False)
    texts = [captioner.vocabulary.decode(hypotheses[0].tokens) for hypotheses in found]
    return [{*text.removeprefix("there is ").split(" and ")} for text in texts]


def truth(captioner: Captioner, given: Batch) -> list[set[str]]:
    texts = [captioner.vocabulary.decode(tokens[0]) for tokens in given.tokens]
    return [{*text.removeprefix("there is ").split(" and ")} for text in texts]


def recipe() -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["experiment=finetune", "name=x", "data.root=x", "init_from=x"])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def share(a: list[set[str]], b: list[set[str]]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def test_a_new_word_is_learned_and_the_others_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(1)
    old = Captioner(
        OLD_WORDS, encoder=tiny.ENCODER, model=MODEL, backend="torch",
        optimizer={"_target_": "adamw", "lr": 1e-2},
    )  # fmt: skip
    fit(old, batches(40, 16, 1, OLD_WORDS, star=False), 4)
    old.trainer.save_checkpoint(tmp_path / "old.ckpt")

    known = batches(1, 200, 2, OLD_WORDS, star=False)[0]
    before = captions(old, known)
    assert share(before, truth(old, known)) > 0.95  # it has something to forget

    settings, words = recipe(), [*OLD_WORDS, "star"]
    initial = read_initial(str(tmp_path / "old.ckpt"), None)
    assert initial is not None
    new = Captioner(
        words, encoder=tiny.ENCODER, model=MODEL, backend="torch",
        objective=settings["objective"] | {"teachers": str(tmp_path / "old.ckpt")},
        optimizer=settings["optimizer"], scheduler=settings["scheduler"],
    )  # fmt: skip
    initialize(new, initial)
    load_teacher(new)
    ours = settings["callbacks"]
    few = batches(10, settings["data"]["batch_size"], 3, words, star=True)
    fit(
        new, few, settings["trainer"]["max_epochs"],
        NewWords(ours["new_words"]["factor"]), EMA(ours["ema"]["decay"]),
    )  # fmt: skip

    unseen = batches(1, 200, 4, words, star=True)[0]
    learned = share(captions(new, unseen), truth(new, unseen))
    kept = share(captions(new, known), before)
    assert learned > 0.9
    assert kept > 0.95
