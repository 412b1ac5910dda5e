"""Training and beam search, compared with the code of the best-known tutorial.

The tutorial is github.com/sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning. Nothing of it is part of
this project: the benchmark runs the files ``models.py`` and ``caption.py`` of a checkout::

    python -m benchmarks tutorial --tutorial FOLDER

Its decoder trains in single precision with its loss, its optimiser and one copy of the grid per
caption, as in its ``train.py``. Its beam search divides integers by ``/``, whose result PyTorch no
longer takes as an index, and imports functions that SciPy no longer has. The former is corrected
when the file is read; the latter, which only read the photograph, are replaced.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks import beam
from benchmarks.beam import LENGTH, WIDTH
from benchmarks.measure import Figure, fresh_process, native_precision, time_in_turns
from benchmarks.training import (
    CAPTIONS,
    CHANNELS,
    IMAGES,
    LOCATIONS,
    REPEAT,
    SIZE,
    WORDS,
    batch_of,
    decoder_of,
    warm_steps,
)
from captioning.support.memory import keep_freed_memory
from captioning.support.special_tokens import END, PAD, START

TRAINING_GOAL, BEAM_GOAL = 22, 48  # times the tutorial's rates, in bfloat16
SIDE = 14  # of the grid
IMAGES_OF_A_ROUND = 4  # which the tutorial captions while this project captions 200
WORD_MAP = {{START: "<start>", END: "<end>"}.get(k, str(k)): k for k in range(WORDS)}


@cache
def module_of(path: Path) -> ModuleType:
    """Run a file of the tutorial as a module, with the two corrections named above."""
    source = path.read_text(encoding="utf-8")
    images: Any = ModuleType("scipy.misc")
    images.imread = lambda _: np.zeros((1, 1, 3))  # the encoder's answer is given
    images.imresize = lambda image, _: image
    drawing: Any = ModuleType("skimage")
    drawing.transform = None
    replaced = {"scipy.misc": images, "skimage": drawing, "skimage.transform": drawing}
    before = {name: sys.modules.get(name) for name in replaced}
    sys.modules.update(replaced)
    module = ModuleType(path.stem)
    try:
        code = compile(source.replace("top_k_words / vocab", "top_k_words // vocab"), path, "exec")
        exec(code, module.__dict__)
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
    return module


class TutorialStep:
    """A training step of the tutorial's ``train.py``, without its printing.

    Args:
        folder: a checkout of the tutorial.
    """

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        models = module_of(folder / "models.py")
        self.decoder: nn.Module = models.DecoderWithAttention(
            attention_dim=SIZE, embed_dim=SIZE, decoder_dim=SIZE, vocab_size=WORDS,
            encoder_dim=CHANNELS, dropout=0.5,
        )  # fmt: skip
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), 4e-4)

    def loss(self, grid: Tensor, tokens: Tensor) -> Tensor:
        """The loss of the grids (captions x 14 x 14 x channels) and tokens (captions x words)."""
        lengths = (tokens != PAD).sum(1, keepdim=True)
        logits, rows, steps, weights, _ = self.decoder(grid, tokens, lengths)
        packed = [pack_padded_sequence(x, steps, batch_first=True) for x in (logits, rows[:, 1:])]
        of_words = nn.functional.cross_entropy(packed[0].data, packed[1].data)
        return of_words + ((1 - weights.sum(1)) ** 2).mean()

    def __call__(self, grid: Tensor, tokens: Tensor) -> None:
        """One step."""
        loss = self.loss(grid, tokens)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.decoder.parameters(), 5.0)
        self.optimizer.step()
        loss.item()


class EndAfter(nn.Module):
    """A word layer that says the end token at one word of a caption and never before.

    The weights of the benchmark are random. With them, the tutorial's search would go on to its
    limit of 50 words.

    Args:
        layer: the layer before it.
        words: number of words, with the end token.
    """

    def __init__(self, layer: nn.Module, words: int) -> None:
        super().__init__()
        self.layer, self.words, self.word = layer, words, 0

    def forward(self, state: Tensor) -> Tensor:
        """The logits, with shape rows x words of the vocabulary."""
        self.word = self.word % self.words + 1  # after the last word, the next caption begins
        logits: Tensor = self.layer(state)
        logits[:, END] = 1e4 if self.word == self.words else -1e4
        return logits


@cache
def tutorial_step(folder: Path) -> Callable[[], None]:
    """A training step of the tutorial on one batch, made once in a process."""
    step = TutorialStep(folder)
    grid, tokens = batch_of(torch.Generator().manual_seed(0))
    copies = grid.unflatten(1, (SIDE, SIDE)).repeat_interleave(CAPTIONS, 0)
    return partial(step, copies, tokens.flatten(0, 1))


def make_step(folder: Path) -> None:
    """Make one training step of the tutorial."""
    tutorial_step(folder)()


@cache
def decoder_and_grids(folder: Path) -> tuple[Any, Tensor]:
    """The tutorial's decoder and grids to caption, made once in a process."""
    decoder: Any = TutorialStep(folder).decoder.eval()
    decoder.fc = EndAfter(decoder.fc, LENGTH)
    return decoder, torch.randn(IMAGES_OF_A_ROUND, 1, SIDE, SIDE, CHANNELS).relu()


@torch.no_grad()
def search(folder: Path) -> list[list[int]]:
    """Caption images by the tutorial's beam search, one after the other.

    Returns:
        The tokens of each caption, with those of start and end.
    """
    decoder, grids = decoder_and_grids(folder)
    beam_search = module_of(folder / "caption.py").caption_image_beam_search
    return [
        beam_search(lambda _, grid=grid: grid, decoder, "", WORD_MAP, WIDTH)[0] for grid in grids
    ]


def run(rounds: int, folder: Path) -> list[Figure]:
    """Time both in this machine's precision; the tutorial runs in a process of its own.

    There it has the allocator's default settings, without `keep_freed_memory`.
    """
    keep_freed_memory()  # as train.py does
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    precision = native_precision()
    goal = precision == "bf16"
    step = warm_steps(precision, "auto", generator, 1 + REPEAT * rounds)
    decoder = decoder_of().eval()
    grids = torch.randn(beam.IMAGES, LOCATIONS, CHANNELS).relu()

    with fresh_process() as call:
        call(partial(make_step, folder))
        call(partial(search, folder))
        training = time_in_turns(
            step,
            lambda: call(partial(make_step, folder)),
            rounds=rounds,
            repeat=REPEAT,
        )
        decoding = time_in_turns(
            lambda: beam.decode(decoder, grids, precision),
            lambda: call(partial(search, folder)),
            rounds=rounds,
        )
    count, few = IMAGES * CAPTIONS, IMAGES_OF_A_ROUND
    return [
        Figure(
            f"training, {precision}",
            count / training[0],
            "captions/s",
            count / training[1],
            training[2],
            goal_ratio=TRAINING_GOAL if goal else None,
        ),
        Figure(
            f"beam search, {precision}",
            len(grids) / decoding[0],
            "images/s",
            few / decoding[1],
            decoding[2] * len(grids) / few,
            goal_ratio=BEAM_GOAL if goal else None,
        ),
    ]
