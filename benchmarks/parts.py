"""The other decoders, self-critical training, ensembles and MBR, each compared with the default.

The reference of a decoder is a training step of ``model=attn_lstm``; of self-critical training, one
with cross entropy; of an ensemble, one of its members. Captions are sampled by the model that comes
with the package, since those of random weights would all have the greatest length.
"""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.beam import BATCH, LENGTH, WIDTH
from benchmarks.measure import Figure, native_precision, seconds, time_in_turns
from benchmarks.scoring import make_captions
from benchmarks.training import (
    CAPTIONS,
    CHANNELS,
    IMAGES,
    LOCATIONS,
    WORDS,
    Step,
    batch_of,
    decoder_of,
)
from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.decoding import MBR, Beam
from captioning.models.decoders.adaptive_lstm import AdaptiveLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.decoders.ensemble import Ensemble
from captioning.models.decoders.hard_attn_lstm import HardAttentionLSTM
from captioning.models.decoders.lstm import LSTM
from captioning.models.decoders.transformer import TransformerDecoder
from captioning.objectives import CrossEntropy, HardAttention, SelfCritical
from captioning.support.memory import keep_freed_memory

WARM_UP = 10  # steps of each decoder before the first one that is timed
MEMBERS, CANDIDATES = 4, 20


def decoders(words: int = WORDS, units: int = 512) -> dict[str, Decoder]:
    """Every decoder by its name, with all dimensions of ``units``."""
    size = {"hidden_dim": units, "embed_dim": units}
    return {
        "attn_lstm": decoder_of(words=words, size=units, attention_dim=units),
        "lstm": LSTM(words, CHANNELS, **size),
        "hard_attn_lstm": HardAttentionLSTM(words, CHANNELS, attention_dim=units, **size),
        "adaptive_lstm": AdaptiveLSTM(words, CHANNELS, attention_dim=units, **size),
        "transformer": TransformerDecoder(
            words, CHANNELS, hidden_dim=units, feed_forward_dim=2 * units
        ),
    }


def step_of(decoder: Decoder) -> Step:
    """A training step with the objective that the decoder needs."""
    hard = decoder.needs_objective == "hard_attention"
    return Step(decoder, native_precision(), objective=HardAttention() if hard else CrossEntropy())


class SampledStep:
    """A self-critical training step, with rewards from made-up references.

    Args:
        decoder: which knows its words.
        precision: as for :class:`~benchmarks.training.Step`.
        images: the number of images that have references; their ids are 0, 1, ...
    """

    def __init__(self, decoder: Decoder, precision: str, images: int = IMAGES) -> None:
        objective = SelfCritical(samples=CAPTIONS)
        made = make_captions(np.random.default_rng(0), CAPTIONS, images)
        captions = {str(number): of for number, of in enumerate(made.values())}
        data: Any = SimpleNamespace(
            vocabulary=SimpleNamespace(words=decoder.words[4:]),
            descriptions=captions,
            images=lambda split: [SimpleNamespace(id=image) for image in captions],
        )
        objective.setup(data)
        self.step = Step(decoder.train(), precision, objective=objective)

    def __call__(self, grid: Tensor, first: int = 0) -> None:
        """One step with the grids of the images ``first``, ``first + 1``, ..."""
        ids = [str(first + number) for number in range(len(grid))]
        self.step.make(Batch(grid, torch.zeros(0, dtype=torch.long), ids))


def trained_decoder() -> Decoder:
    """The decoder of the model that comes with the package."""
    return cast(Decoder, Captioner.from_pretrained().decoder)


def run(rounds: int) -> list[Figure]:
    """Time each part in turn with its reference."""
    keep_freed_memory()
    torch.manual_seed(0)
    return [*training(rounds), self_critical(rounds), ensemble(rounds), mbr(rounds)]


def training(rounds: int) -> list[Figure]:
    """Time training steps of the decoders with attention, compared with ``attn_lstm``."""
    generator = torch.Generator().manual_seed(0)
    steps = {name: step_of(decoder) for name, decoder in decoders().items() if name != "lstm"}
    for _ in range(WARM_UP):
        batch = batch_of(generator)
        for step in steps.values():
            step(*batch)
    reference = steps.pop("attn_lstm")
    figures = []
    for name, step in steps.items():
        mine, other, ratio = time_in_turns(
            lambda step=step: step(*batch_of(generator)),
            lambda: reference(*batch_of(generator)),
            rounds=2 * rounds,
        )
        count = IMAGES * CAPTIONS
        figures.append(
            Figure(
                f"training {name}", count / mine, "captions/s", count / other, ratio, goal_ratio=0.5
            )
        )
    return figures


def self_critical(rounds: int) -> Figure:
    """Time a self-critical step, compared with a step of cross entropy."""
    generator = torch.Generator().manual_seed(0)
    decoder = trained_decoder()
    sampled, plain = SampledStep(decoder, native_precision()), step_of(decoder)
    for step in (sampled.step, plain):  # which must not unlearn how long captions are
        step.optimizer.param_groups[0]["lr"] = 0.0

    def grids() -> Tensor:
        return torch.randn(IMAGES, LOCATIONS, CHANNELS, generator=generator).relu()

    for _ in range(3):
        plain(*batch_of(generator, words=decoder.vocabulary_size))
        sampled(grids())
    mine, other, ratio = time_in_turns(
        lambda: sampled(grids()),
        lambda: plain(*batch_of(generator, words=decoder.vocabulary_size)),
        rounds=2 * rounds,
    )
    return Figure(
        f"a self-critical step of {IMAGES} x {CAPTIONS}", mine, "s", other, ratio, goal_ratio=1 / 3,
        note=f"it takes {1 / ratio:.2f} steps of cross entropy",
    )  # fmt: skip


def ensemble(rounds: int) -> Figure:
    """Time beam search with four decoders, compared with one of them."""
    members = [decoder_of().eval() for _ in range(MEMBERS)]
    search, grid = Beam(beam_size=WIDTH, max_length=LENGTH), grids_to_decode()
    mine, other, ratio = time_in_turns(
        lambda: decode(search, Ensemble(members), grid),
        lambda: decode(search, members[0], grid),
        rounds=rounds,
    )
    return Figure(
        f"beam search, an ensemble of {MEMBERS}", BATCH / mine, "images/s", BATCH / other, ratio,
        goal_ratio=0.2,
    )  # fmt: skip


def mbr(rounds: int) -> Figure:
    """Time MBR over the candidates of beam search, weighted by how rare n-grams are."""
    search = MBR(beam_size=CANDIDATES, max_length=LENGTH)
    search.set_documents(make_captions(np.random.default_rng(0), each=5))
    decoder, grid = decoder_of().eval(), grids_to_decode()
    decode(search, decoder, grid)
    mine = sorted(seconds(lambda: decode(search, decoder, grid)) for _ in range(rounds))
    rate = BATCH / mine[len(mine) // 2]
    return Figure(f"MBR over {CANDIDATES} candidates", rate, "images/s", goal_value=50)


def grids_to_decode() -> Tensor:
    """The grids of a batch."""
    return torch.randn(BATCH, LOCATIONS, CHANNELS).relu()


def decode(search: Beam | MBR, decoder: Decoder, grid: Tensor) -> None:
    """Decode a batch in this machine's precision."""
    with torch.autocast("cpu", torch.bfloat16, enabled=native_precision() == "bf16"):
        search(decoder, grid)
